"""Model, the public face: `load(name).predict(molecule)`.

A model is an engine with what its checkpoint says of it. It refuses molecules that it does not cover, splits many
molecules into batches that fit the memory, and gives Observables.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch

from mlsemi import checkpoint
from mlsemi.batch import Batch
from mlsemi.checkpoint import Header
from mlsemi.domain import doubts, implausible, refuse_uncovered
from mlsemi.energy import electronic_energy
from mlsemi.engine import Engine, Prediction
from mlsemi.memory import CACHE_FRIENDLY, SHARE, available_bytes, estimate_bytes, split
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables
from mlsemi.properties.multipoles import dipole
from mlsemi.properties.populations import loewdin_charges, mulliken_charges

DEFAULT_MODEL = "organic-b3lyp-def2svp"

Mode = Literal["fast", "variational"]
MODES: tuple[Mode, ...] = ("fast", "variational")
"""fast: all from the predicted Fock matrix. variational: the energy of the reference method at the predicted density
by one Fock build of PySCF, with an error estimate."""

PRECISIONS = {"float32": torch.float32, "float64": torch.float64}
"""Of the network; all else is float64."""


def weights_directory() -> Path:
    """Folder of the shipped models."""
    return Path(str(files("mlsemi"))) / "weights"


def shipped_models() -> dict[str, Path]:
    """Name and checkpoint of every shipped model; its card lies beside with the suffix .md."""
    return {path.stem: path for path in sorted(weights_directory().glob("*.safetensors"))}


def find_model(name_or_path: str | Path) -> Path:
    """The checkpoint of a shipped model, or of a path.

    Raises:
        ValueError: if there is none, naming what is shipped.
    """
    shipped = shipped_models()
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    path = Path(name_or_path)
    if path.is_file():
        return path
    names = ", ".join(shipped) or "none in this installation"
    raise ValueError(f"no model {str(name_or_path)!r}: it is neither a file nor one of the shipped models ({names})")


def load(name_or_path: str | Path = DEFAULT_MODEL, *, device: str = "cpu", precision: str = "float32") -> Model:
    """A model, ready to predict.

    Args:
        name_or_path: name of a shipped model, or the path of a checkpoint.
        device: 'cpu' or 'cuda'.
        precision: 'float32' or 'float64', of the network; all else is float64.

    Raises:
        ValueError: if there is no such model, device or precision, or the checkpoint is truncated or of a newer format.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} must be one of {', '.join(PRECISIONS)}")
    where = _device(device)
    header, engine = checkpoint.load(find_model(name_or_path), dtype=PRECISIONS[precision])
    return Model(header, engine.to(where))


@dataclass(frozen=True, eq=False)
class Model:
    """A trained model.

    Attributes:
        header: what its checkpoint says of it: method, basis, elements, domain, measured errors.
        engine: baseline and network; it is used as it is, in evaluation mode and without gradients of its weights.
    """

    header: Header
    engine: Engine

    def __post_init__(self) -> None:
        self.engine.eval().requires_grad_(False)

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.header.name

    @overload
    def predict(self, molecules: Molecule, *, mode: Mode = ..., forces: bool = ...) -> Observables: ...

    @overload
    def predict(self, molecules: Sequence[Molecule], *, mode: Mode = ..., forces: bool = ...) -> list[Observables]: ...

    def predict(
        self, molecules: Molecule | Sequence[Molecule], *, mode: Mode = "fast", forces: bool = False
    ) -> Observables | list[Observables]:
        """Predicts one molecule or many.

        Args:
            molecules: a molecule, or a sequence of any molecules.
            mode: one of `MODES`. Orbitals, density and charges are those of the predicted Fock matrix in each mode.
            forces: the gradient of the energy too (fast mode).

        Returns:
            Observables of the molecule, or a list of them in the order of the molecules. `seconds` is the time of a
            batch divided by its size. The error estimate is None in the fast mode, which has none.

        Raises:
            ValueError: for molecules that the model does not cover, or options that do not go together.
            ImportError: for the variational mode without PySCF.
        """
        if isinstance(molecules, Molecule):
            return next(self.stream([molecules], mode=mode, forces=forces))[1]
        results: dict[int, Observables] = dict(self.stream(molecules, mode=mode, forces=forces))
        return [results[k] for k in range(len(molecules))]

    def stream(
        self, molecules: Sequence[Molecule], *, mode: Mode = "fast", forces: bool = False
    ) -> Iterator[tuple[int, Observables]]:
        """As `predict`, for results that are not all to be held in memory.

        Yields:
            Index of a molecule and its observables, batch by batch, small molecules first.
        """
        self.check(molecules, mode=mode, forces=forces)
        for members in self._batches(molecules, forces):
            for k, (values, seconds) in zip(
                members, self._predict([molecules[k] for k in members], forces), strict=True
            ):
                yield k, self._finish(molecules[k], values, seconds, mode)

    def check(self, molecules: Sequence[Molecule], *, mode: Mode = "fast", forces: bool = False) -> None:
        """Raises what `predict` would raise for these arguments, before anything is computed."""
        if mode not in MODES:
            raise ValueError(f"mode={mode!r} must be one of {', '.join(MODES)}")
        if forces and mode != "fast":
            raise ValueError(
                f"forces of mode={mode!r} are not in this release: take mode='fast' or leave out the forces"
            )
        for molecule in molecules:
            refuse_uncovered(molecule, model=self.name, elements=self.header.elements, domain=self.header.domain)
        if mode == "variational":
            self._reference_warnings()

    def _batches(self, molecules: Sequence[Molecule], forces: bool) -> list[list[int]]:
        network = self.engine.network
        costs = estimate_bytes(
            molecules,
            self.header.basis,
            pair_width=sum(network.widths) * 2 + 2 * sum((2 * k + 1) * sum(c) for k, c in enumerate(network.channels)),
            n_bonds=len(network.bonds),
            forces=forces,
            wide=network.dtype == torch.float64,
        )
        budget = int(SHARE * available_bytes(self.engine.device))
        return split(costs, min(budget, CACHE_FRIENDLY) if self.engine.device.type == "cpu" else budget)

    def _predict(self, molecules: list[Molecule], forces: bool) -> list[tuple[dict, float]]:
        """Predicts a batch. If it fails, its halves are tried: memory may suffice for them, or one culprit is found.

        Returns:
            Fields of the Observables of the fast mode, and seconds, of each molecule.
        """
        try:
            return self._predict_batch(molecules, forces)
        except (ValueError, RuntimeError, MemoryError) as error:
            if len(molecules) == 1:
                # subclasses, such as numpy's MemoryError, are not all made of a message
                kind = next(k for k in (ValueError, MemoryError, RuntimeError) if isinstance(error, k))
                raise kind(f"{molecules[0].name or molecules[0].formula}: {error}") from error
        half = len(molecules) // 2
        return [o for part in (molecules[:half], molecules[half:]) for o in self._predict(part, forces)]

    def _predict_batch(self, molecules: list[Molecule], forces: bool) -> list[tuple[dict, float]]:
        start = time.perf_counter()
        batch = self.engine.batch(molecules)
        with torch.set_grad_enabled(forces):
            if forces:
                batch = batch.with_positions(batch.positions.clone().requires_grad_())
            prediction = self.engine(batch, dipole=True)
            gradient = torch.autograd.grad(prediction.energy.sum(), batch.positions)[0] if forces else None
        arrays = _arrays(batch, prediction)
        if gradient is not None:
            arrays["gradient"] = gradient.cpu().numpy()
        values = _split_arrays(molecules, arrays, batch.n_ao.tolist())
        seconds = (time.perf_counter() - start) / len(molecules)
        return [(v, seconds) for v in values]

    def _finish(self, molecule: Molecule, values: dict, seconds: float, mode: Mode) -> Observables:
        """Observables of one molecule, with the reference's energy in the variational mode."""
        change = values.pop("electronic")
        result = Observables(**values, seconds=seconds)
        warnings = doubts(molecule, self.header.domain)
        # only the superposed atoms are an F0 and a D0 that belong together
        warnings += implausible(molecule, change=change if self.header.baseline == "atoms" else None, gap=result.gap)
        if mode == "fast":
            return replace(result, warnings=warnings)
        from mlsemi.reference.variational import variational

        found = variational(molecule, self.header.basis, values["density"], method=self.header.method)
        warnings += self._reference_warnings()
        if found.error_estimate is None:
            warnings += (
                "an orbital without electrons lies below one with electrons in the Fock matrix of the predicted "
                "density: it is not near a ground state, and its energy has no error estimate",
            )
        values |= {"energy": found.energy, "energy_error_estimate": found.error_estimate, "residual": found.residual}
        return Observables(**values, seconds=seconds + found.seconds, warnings=warnings)

    def _reference_warnings(self) -> tuple[str, ...]:
        """Warns if the method's name means something else in this PySCF than in the one that made the labels."""
        try:
            from mlsemi.reference.mean_field import resolve_functional
        except ModuleNotFoundError as error:
            raise ImportError(
                f"mode='variational' needs PySCF ({error}): install mlsemi[reference], or take mode='fast'"
            ) from error
        now, then = resolve_functional(self.header.method), self.header.resolved_functional
        if then and now != then:
            return (f"{self.header.method} means {now} in this PySCF, but the labels of the model have {then}",)
        return ()


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name!r} must be 'cpu' or 'cuda'") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={name!r} must be 'cpu' or 'cuda'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={name!r}: this machine has {torch.cuda.device_count()} usable CUDA devices; use 'cpu'"
        )
    return device


def _arrays(batch: Batch, prediction: Prediction) -> dict[str, np.ndarray]:
    """Results of a batch, padded."""
    state, exact = prediction.state, prediction.integrals
    with torch.no_grad():
        density, overlap = state.density.detach(), state.overlap.detach()
        assert exact.dipole is not None
        tensors = {
            "energy": prediction.energy,
            "electronic": electronic_energy(
                exact.baseline.fock.detach(), state.fock.detach(), exact.baseline.density, density
            ),
            "fock": state.fock,
            "overlap": overlap,
            "density": density,
            "mo_energy": state.mo_energy,
            "mo_coeff": state.mo_coeff,
            "mo_occ": state.mo_occ,
            "dipole": dipole(density, exact.dipole.detach(), batch),
            "charges_mulliken": mulliken_charges(density, overlap, batch),
            "charges_loewdin": loewdin_charges(density, overlap, batch),
        }
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def _split_arrays(molecules: list[Molecule], arrays: dict[str, np.ndarray], n_ao: list[int]) -> list[dict]:
    """The arrays of a batch by molecule: without padding, with a spin axis, and copied to let go of the batch."""
    out = []
    first = 0
    for k, (molecule, n) in enumerate(zip(molecules, n_ao, strict=True)):
        atoms = slice(first, first := first + molecule.n_atoms)
        values: dict = {"energy": float(arrays["energy"][k]), "dipole": arrays["dipole"][k].copy()}
        values["electronic"] = float(arrays["electronic"][k])  # for the plausibility of the result, not a field of it
        values["overlap"] = arrays["overlap"][k, :n, :n].copy()
        for name in ("fock", "density", "mo_coeff"):
            values[name] = arrays[name][k : k + 1, :n, :n].copy()
        for name in ("mo_energy", "mo_occ"):
            values[name] = arrays[name][k : k + 1, :n].copy()
        for name in ("charges_mulliken", "charges_loewdin", "gradient"):
            if name in arrays:
                values[name] = arrays[name][atoms].copy()
        out.append(values)
    return out
