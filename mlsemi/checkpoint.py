"""Checkpoints: safetensors with a readable JSON header, which says all that is needed to use the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mlsemi.basis import Basis
from mlsemi.engine import Engine
from mlsemi.files import written_whole
from mlsemi.layout import AO_ORDER
from mlsemi.nn.network import NetworkConfig

FORMAT_VERSION = 2
_KEY = "mlsemi"

_LATER = "pair_readout.span"
"""End of the names of what earlier checkpoints lack, and work without."""

ADDED = ("network.state_embedding.", "network.charge_potential.", "network.charge_transfer.", "network.spin_")
"""Beginnings of the names of what a network has for charges, of molecules and of atoms, and for open shells."""


@dataclass(frozen=True)
class Header:
    """What a checkpoint says about itself.

    Attributes:
        name: name of the model.
        method: the method of its labels, as asked for.
        resolved_functional: what that name meant in the program that made the labels.
        energy_method: method and basis that the energies of the fast mode are of, where fine-tuning made it another one
            than `method`; empty otherwise. Fock matrices stay those of `method`, and so do all other modes but the
            composite one.
        orbital_shift: see `mlsemi.engine.Engine`.
        difference_to: what the energy network (see `mlsemi.engine.Engine`) was trained on differences to: "variational"
            energies of the model, so that there is the composite mode, or "fast" ones; empty without such a network.
        basis: AO basis, of the covered elements.
        elements: atomic numbers that are covered.
        baseline: kind of F0.
        network: size of the network.
        overlap_floor: see `mlsemi.engine.Engine`.
        domain: what the model was trained on: `charges`, `spins`, `states` (lists; pairs of both), `min_atoms`,
            `max_atoms`, `max_heavy_atoms`, `max_fragments`, and, if the formulas are few, `formulas` and `distances`
            (least and largest of each pair of elements [angstrom]).
        difference_domain: the same of the labels of the energy network; empty without one.
        training: labels, steps, seed, versions: the record of the training.
        members: sizes of the further members, see `mlsemi.engine.Engine`.
        calibration: how estimates of energy errors are to be read, see `mlsemi.calibration`.
        errors: measured held-out errors, by name with unit.
    """

    name: str
    method: str
    resolved_functional: str
    basis: Basis
    elements: tuple[int, ...]
    baseline: str
    network: NetworkConfig
    overlap_floor: float = 0.0
    domain: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    errors: Mapping[str, Any] = field(default_factory=dict)
    members: tuple[NetworkConfig, ...] = ()
    calibration: Mapping[str, Any] = field(default_factory=dict)
    energy_method: str = ""
    orbital_shift: float = 0.0
    difference_to: str = ""
    difference_domain: Mapping[str, Any] = field(default_factory=dict)

    def level(self, mode: str = "fast") -> str:
        """Method and basis of the energies of a mode, in one line."""
        finetuned = self.energy_method and mode in ("fast", "composite")
        return self.energy_method if finetuned else f"{self.method}/{self.basis.name}"

    def domains(self, mode: str = "fast") -> tuple[Mapping[str, Any], ...]:
        """What the energies of a mode were trained on: that of F, and where they have one that of the difference."""
        with_difference = self.difference_domain and mode in ("fast", "composite")
        return (self.domain, self.difference_domain) if with_difference else (self.domain,)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        data = {k: v for k, v in vars(self).items() if k not in ("basis", "network", "members")}
        return {
            "format_version": FORMAT_VERSION,
            "ao_order": AO_ORDER,
            **data,
            "basis": self.basis.to_json(),
            "basis_hash": self.basis.content_hash(),
            "network": asdict(self.network),
            "members": [asdict(member) for member in self.members],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, path: object) -> Header:
        """Inverse of `to_json`.

        Raises:
            ValueError: for another format version or AO order, or a basis that does not match its hash.
        """
        version = data.get("format_version")
        if version != FORMAT_VERSION:
            newer = isinstance(version, int) and version > FORMAT_VERSION
            raise ValueError(
                f"{path}: checkpoint format {version!r}, this mlsemi reads format {FORMAT_VERSION}: "
                + ("upgrade mlsemi to use it" if newer else "it cannot be read")
            )
        if data["ao_order"] != AO_ORDER:
            raise ValueError(f"{path}: AO order {data['ao_order']!r}, this mlsemi has {AO_ORDER!r}")
        basis = Basis.from_json(data["basis"])
        if basis.content_hash() != data["basis_hash"]:
            raise ValueError(f"{path}: the basis does not match its hash {data['basis_hash']}: the file is damaged")
        names = ("name", "method", "resolved_functional", "baseline", "domain", "training", "errors")
        return cls(
            basis=basis,
            elements=tuple(data["elements"]),
            network=_network(data["network"]),
            members=tuple(_network(member) for member in data.get("members", [])),
            calibration=data.get("calibration", {}),
            overlap_floor=float(data.get("overlap_floor", 0.0)),
            energy_method=data.get("energy_method", ""),
            orbital_shift=float(data.get("orbital_shift", 0.0)),
            difference_to=data.get("difference_to", ""),
            difference_domain=data.get("difference_domain", {}),
            **{k: data[k] for k in names},
        )


def _network(data: Mapping[str, Any]) -> NetworkConfig:
    return NetworkConfig(**{**data, "bond": tuple(data["bond"])})


def engine_of(header: Header, *, dtype: torch.dtype = torch.float32, build: bool = True) -> Engine:
    """An engine as a header describes it, with fresh weights."""
    return Engine(
        header.basis,
        header.elements,
        header.network,
        baseline=header.baseline,
        overlap_floor=header.overlap_floor,
        members=header.members,
        orbital_shift=header.orbital_shift,
        energy_network=bool(header.difference_to),
        dtype=dtype,
        build=build,
    )


def save(path: str | Path, header: Header, tensors: Mapping[str, Tensor]) -> None:
    """Writes a checkpoint beside its place and renames it, so that it is never half there.

    Args:
        path: where to.
        header: what it says of itself.
        tensors: the state of the engine, `Engine.state_dict()`.
    """
    contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items() if v.numel()}
    with written_whole(path) as beside:
        save_file(contiguous, str(beside), metadata={_KEY: json.dumps(header.to_json())})
        # safetensors writes for the owner alone; a model is made to be shared
        beside.chmod(0o644)


def copy(path: str | Path, to: str | Path) -> None:
    """Copies a checkpoint beside its place and renames it."""
    with written_whole(to) as beside:
        shutil.copyfile(path, beside)


def read_header(path: str | Path) -> Header:
    """The header of a checkpoint.

    Raises:
        ValueError: if there is no such file, if it is truncated or of another kind, or of another version.
    """
    return _read(path, tensors=False)[0]


def load_extended(path: str | Path, network: NetworkConfig) -> tuple[Header, Engine]:
    """As `load`, but for training further, with a network that may also see charges and open shells, and have charges.

    What the checkpoint lacks for that keeps its initialization; its further members and its calibration are left out.

    Args:
        path: the checkpoint.
        network: that of the checkpoint, where `charges`, `partial_charges` and `open_shells` may be added.

    Raises:
        ValueError: as `load`, or if the network differs in anything else, or has an energy network beside it.
    """
    header, tensors = _read(path, tensors=True)
    if header.difference_to:
        raise ValueError(
            f"{path} was fine-tuned to energies of {header.energy_method} by a network of their own, which is not "
            "trained further: start from the model that it was made from"
        )
    flags = ("charges", "partial_charges", "open_shells")
    lost = [name for name in flags if getattr(header.network, name) and not getattr(network, name)]
    if lost or replace(header.network, **{name: getattr(network, name) for name in flags}) != network:
        raise ValueError(
            f"{path} has network {header.network}, the configuration {network}: they must agree, but for charges, "
            "partial_charges and open_shells, which may be added"
        )
    # what its error estimates are worth is not known of what it is trained to
    header = replace(header, network=network, members=(), calibration={})
    engine = engine_of(header, build=False)
    own = {name: value for name, value in tensors.items() if not name.startswith("members.")}
    load_tensors(engine, own, path=path, keep=ADDED)
    return header, engine


def load(path: str | Path, *, dtype: torch.dtype = torch.float32) -> tuple[Header, Engine]:
    """Header and engine of a checkpoint, on the CPU.

    Raises:
        ValueError: as `read_header`, or if the weights do not fit the header.
    """
    header, tensors = _read(path, tensors=True)
    engine = engine_of(header, dtype=dtype, build=False)
    load_tensors(engine, tensors, path=path)
    return header, engine.eval()


def load_tensors(
    engine: Engine, tensors: Mapping[str, Tensor], *, path: object = "checkpoint", keep: tuple[str, ...] = ()
) -> None:
    """Puts the state of a checkpoint into an engine.

    Args:
        engine: where to.
        tensors: the state, `Engine.state_dict()`.
        path: for messages.
        keep: beginnings of names that the checkpoint may lack; what it lacks of them stays as it is.

    Raises:
        ValueError: if names or shapes do not fit.
    """
    own = engine.state_dict()
    wanted = {k for k, v in own.items() if v.numel() and (k in tensors or not _may_lack(k, keep))}
    if wanted != set(tensors):
        odd = sorted(wanted ^ set(tensors))
        raise ValueError(f"{path}: weights do not fit the header: {odd[:4]}{' and more' if len(odd) > 4 else ''}")
    for key in wanted:
        if own[key].shape != tensors[key].shape:
            raise ValueError(f"{path}: {key} has shape {tuple(tensors[key].shape)}, expected {tuple(own[key].shape)}")
        own[key].copy_(tensors[key])
    engine.baseline.prepare()


def _may_lack(name: str, keep: tuple[str, ...]) -> bool:
    return name.startswith(keep) or name.endswith(_LATER)


def _read(path: str | Path, *, tensors: bool) -> tuple[Header, dict[str, Tensor]]:
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no such checkpoint: {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise ValueError(f"{path} is a safetensors file, but not a checkpoint of mlsemi")
            header = Header.from_json(json.loads(metadata[_KEY]), path=path)
            return header, {k: file.get_tensor(k) for k in file.keys()} if tensors else {}
    except (SafetensorError, json.JSONDecodeError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{path} is not a readable checkpoint (truncated or of another kind): {error}") from error
