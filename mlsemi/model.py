"""Model, the public face: `load(name).predict(molecule)`.

A model is an engine with what its checkpoint says of it. It refuses molecules that it does not cover, splits many
molecules into batches that fit the memory, and gives Observables.
"""

from __future__ import annotations

import time
import warnings as warning_filters
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch

from mlsemi import checkpoint, results
from mlsemi.calibration import stored_interval
from mlsemi.checkpoint import Header
from mlsemi.coverage import doubted, refuse, refuse_doubtful, refused
from mlsemi.domain import implausible
from mlsemi.eigen import LINEAR_DEPENDENCE
from mlsemi.engine import RESOLVED_GAP, Engine
from mlsemi.memory import CACHE_FRIENDLY, SHARE, available_bytes, estimate_bytes, split
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables

DEFAULT_MODEL = "organic-b3lyp-def2svp"

Mode = Literal["fast", "variational", "corrected", "composite", "scf"]
MODES: tuple[Mode, ...] = ("fast", "variational", "corrected", "composite", "scf")
"""fast: all from the predicted Fock matrix. variational: the energy of the reference method at the predicted density
by one Fock build of PySCF, with an error estimate. corrected: the same less what the estimate says, within the trained
domain only. composite: the variational energy plus a learned difference to another method. scf: PySCF from the
predicted density to convergence."""

CONV_TOL = 1e-9
"""Default convergence of the energy in the scf mode [Eh]: PySCF's."""

NO_FORCES = "there are no forces, because there is no gap between occupied and empty orbitals"

Errors = Literal["raise", "mark"]
"""What becomes of the other molecules if one fails: nothing, by an error that names it; or all their results, and an
Observables with `failure` for that one."""

FAILURES = (ValueError, RuntimeError, MemoryError)
"""What a molecule that cannot be computed raises; anything else is a mistake of the program."""

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
    def predict(
        self,
        molecules: Molecule,
        *,
        mode: Mode = ...,
        forces: bool = ...,
        dispersion: bool = ...,
        conv_tol: float = ...,
        compare: bool = ...,
        estimate: bool = ...,
        errors: Errors = ...,
    ) -> Observables: ...

    @overload
    def predict(
        self,
        molecules: Sequence[Molecule],
        *,
        mode: Mode = ...,
        forces: bool = ...,
        dispersion: bool = ...,
        conv_tol: float = ...,
        compare: bool = ...,
        estimate: bool = ...,
        errors: Errors = ...,
    ) -> list[Observables]: ...

    def predict(
        self,
        molecules: Molecule | Sequence[Molecule],
        *,
        mode: Mode = "fast",
        forces: bool = False,
        dispersion: bool = False,
        conv_tol: float = CONV_TOL,
        compare: bool = False,
        estimate: bool = True,
        errors: Errors = "raise",
    ) -> Observables | list[Observables]:
        """Predicts one molecule or many.

        Args:
            molecules: a molecule, or a sequence of any molecules.
            mode: one of `MODES`. Orbitals, density and charges are those of the predicted Fock matrix, in the scf mode
                those of the self-consistent one.
            forces: the gradient of the energy too.
            dispersion: add the D4 dispersion term of the functional to energy and gradient.
            conv_tol: scf mode: error of the energy that is accepted [Eh].
            compare: scf mode: converge from PySCF's default guess too, return the lower solution, and note what either
                took.
            estimate: fast mode: estimate the error of the energy, for which the further members of the model are
                evaluated too.
            errors: what a molecule does that cannot be predicted (not covered, a Fock matrix that is not finite, a
                singular overlap, an SCF that does not converge ...): "raise" an error that names it, or "mark" it: its
                Observables has no energy but `failure`, the reason, and all other molecules have their results.

        Returns:
            Observables of the molecule, or a list of them in the order of the molecules. `seconds` is the time of a
            batch divided by its size. Energies have an error estimate (see `mlsemi.calibration`), but for the fast mode
            of models without calibrated members, the composite and the scf mode.

        Raises:
            ValueError: for molecules that the model does not cover, or options that do not go together.
            ImportError: for the other modes without PySCF, or dispersion without dftd4.
            RuntimeError: if an SCF does not converge, or a result is not finite.
        """
        options = {"mode": mode, "forces": forces, "dispersion": dispersion, "conv_tol": conv_tol, "compare": compare}
        options |= {"estimate": estimate, "errors": errors}
        if isinstance(molecules, Molecule):
            return next(self.stream([molecules], **options))[1]
        results: dict[int, Observables] = dict(self.stream(molecules, **options))
        return [results[k] for k in range(len(molecules))]

    def stream(
        self,
        molecules: Sequence[Molecule],
        *,
        mode: Mode = "fast",
        forces: bool = False,
        dispersion: bool = False,
        conv_tol: float = CONV_TOL,
        compare: bool = False,
        estimate: bool = True,
        errors: Errors = "raise",
    ) -> Iterator[tuple[int, Observables]]:
        """As `predict`, for results that are not all to be held in memory.

        Yields:
            Index of a molecule and its observables, batch by batch: closed shells, then open ones, small molecules
            first.
        """
        if errors not in ("raise", "mark"):
            raise ValueError(f"errors={errors!r} must be 'raise' or 'mark'")
        self.check(molecules if errors == "raise" else [], mode=mode, forces=forces, dispersion=dispersion)
        if not conv_tol > 0:
            raise ValueError(f"conv_tol={conv_tol:g} must be a positive energy [Eh]")
        if mode != "scf" and (compare or conv_tol != CONV_TOL):
            raise ValueError(f"compare and conv_tol are options of mode='scf', and the mode is {mode!r}")
        impossible = refused(molecules, self.header, mode) if errors == "mark" else {}
        yield from ((k, _failed(message)) for k, message in impossible.items())
        accepted = [k for k in range(len(molecules)) if k not in impossible]
        in_fast_mode = forces and mode == "fast"
        with_members = estimate and mode == "fast" and stored_interval(self.header.calibration, "fast") is not None

        def finished(molecule: Molecule, values: dict, seconds: float) -> Observables:
            found = self._finish(molecule, values, seconds, mode)
            if mode != "fast":
                found = self._in_mode(found, molecule, mode, forces, conv_tol, compare)
            if dispersion:
                from mlsemi.reference.dispersion import with_dispersion

                found = with_dispersion(found, molecule, method=self.header.method)
            return found

        for members in self._batches([molecules[k] for k in accepted], in_fast_mode):
            batch = [accepted[k] for k in members]
            results = self._predict([molecules[k] for k in batch], in_fast_mode, with_members, errors)
            for k, (values, seconds) in zip(batch, results, strict=True):
                try:
                    yield k, values if isinstance(values, Observables) else finished(molecules[k], values, seconds)
                except FAILURES as error:
                    if errors == "raise":
                        raise
                    yield k, _failed(str(error), seconds)

    def hessian_vector_product(self, molecule: Molecule, vector: np.ndarray) -> np.ndarray:
        """The Hessian of the energy of the fast mode times a vector, without the Hessian.

        Args:
            molecule: a molecule that the model covers.
            vector: a displacement of the atoms [bohr], shape (atom, 3).

        Returns:
            Change of the gradient along the displacement [Eh/bohr], to first order, shape (atom, 3).

        Raises:
            ValueError: for a molecule that is not covered, a vector of another shape, or orbitals so close that the
                density has no derivative.
        """
        self.check([molecule])
        direction = torch.as_tensor(np.asarray(vector, dtype=np.float64), device=self.engine.device)
        if direction.shape != (molecule.n_atoms, 3):
            raise ValueError(f"vector must have shape ({molecule.n_atoms}, 3), got {tuple(direction.shape)}")
        batch = self.engine.batch([molecule])
        batch = batch.with_positions(batch.positions.clone().requires_grad_())
        prediction = self.engine(batch)
        if not bool(prediction.state.gap.amin() > RESOLVED_GAP):
            raise ValueError(f"{molecule.name or molecule.formula}: {NO_FORCES}")
        (gradient,) = torch.autograd.grad(prediction.energy.sum(), batch.positions, create_graph=True)
        (product,) = torch.autograd.grad((gradient * direction).sum(), batch.positions)
        return product.cpu().numpy()

    def check(
        self, molecules: Sequence[Molecule], *, mode: Mode = "fast", forces: bool = False, dispersion: bool = False
    ) -> None:
        """Raises what `predict` would raise for these arguments, before anything is computed."""
        if mode not in MODES:
            raise ValueError(f"mode={mode!r} must be one of {', '.join(MODES)}")
        for molecule in molecules:
            refuse(molecule, self.header, mode)
        if mode != "fast":
            self._reference_warnings(mode)
        if mode == "composite":
            from mlsemi.reference.modes import check_difference

            check_difference(self.header)
        if mode == "corrected":
            self._check_correction()
        if dispersion:
            from mlsemi.reference.dispersion import check_parameters

            if self.header.level(mode) != self.header.level("variational"):
                raise ValueError(
                    f"dispersion is of {self.header.method}, but the {mode} energies of {self.name} are of "
                    f"{self.header.level(mode)}, which has its own: leave it out"
                )
            check_parameters(self.header.method)

    def _check_correction(self) -> None:
        """Refuses the corrected mode for a model without a correction."""
        from mlsemi.reference.modes import stored_correction

        if stored_correction(self.header) is None:
            raise ValueError(
                f"mode='corrected': the model {self.name} has no correction that was fitted on validation molecules; "
                "take mode='variational' or 'scf'"
            )

    def _batches(self, molecules: Sequence[Molecule], forces: bool) -> list[list[int]]:
        """Closed and open shells apart, since those have two Fock matrices; small molecules first in each."""
        network = self.engine.network
        trunks = 1 if self.engine.energy_network is None else 2
        costs = estimate_bytes(
            molecules,
            self.header.basis,
            pair_width=sum(network.widths) * 2 + 2 * sum((2 * k + 1) * sum(c) for k, c in enumerate(network.channels)),
            n_bonds=trunks * len(network.bonds),
            forces=forces,
            wide=network.dtype == torch.float64,
        )
        budget = int(SHARE * available_bytes(self.engine.device))
        budget = min(budget, CACHE_FRIENDLY) if self.engine.device.type == "cpu" else budget
        batches: list[list[int]] = []
        for is_open in (False, True):
            members = [k for k, m in enumerate(molecules) if bool(m.spin) == is_open]
            # the second Fock matrix doubles what there is of matrices, and not what the network takes
            parts = split([costs[k] * (2 if is_open else 1) for k in members], budget)
            batches += [[members[k] for k in part] for part in parts]
        return batches

    def _predict(
        self, molecules: list[Molecule], forces: bool, with_members: bool, errors: Errors
    ) -> list[tuple[dict | Observables, float]]:
        """Predicts a batch. If it fails, its halves are tried: memory may suffice for them, or one culprit is found.

        Returns:
            Fields of the Observables of the fast mode, or the Observables of one that failed, and seconds, of each
            molecule.
        """
        start = time.perf_counter()
        try:
            return list(self._predict_batch(molecules, forces, with_members))
        except FAILURES as error:
            if len(molecules) == 1:
                message = _naming(molecules[0], error)
                if errors == "raise":
                    raise _like(error)(message) from error
                seconds = time.perf_counter() - start
                return [(_failed(message, seconds), seconds)]
        half = len(molecules) // 2
        parts = (molecules[:half], molecules[half:])
        return [o for part in parts for o in self._predict(part, forces, with_members, errors)]

    def _predict_batch(self, molecules: list[Molecule], forces: bool, with_members: bool) -> list[tuple[dict, float]]:
        start = time.perf_counter()
        batch = self.engine.batch(molecules)
        with torch.set_grad_enabled(forces), warning_filters.catch_warnings():
            # the results of the molecules that it is about say it
            warning_filters.filterwarnings("ignore", "S is nearly singular", RuntimeWarning)
            if forces:
                batch = batch.with_positions(batch.positions.clone().requires_grad_())
            prediction = self.engine(batch, dipole=True, with_members=with_members)
            gradient = prediction.gradient(batch) if forces else None
        arrays = results.arrays(batch, prediction)
        infinite = [m for m, e in zip(molecules, arrays["energy"], strict=True) if not np.isfinite(e)]
        if infinite:
            raise RuntimeError(f"the predicted energy of {infinite[0].name or infinite[0].formula} is not finite")
        if gradient is not None:
            arrays["gradient"] = gradient.cpu().numpy()
        values = results.split_arrays(molecules, arrays, batch.n_ao.tolist())
        seconds = (time.perf_counter() - start) / len(molecules)
        return [(v, seconds) for v in values]

    def _finish(self, molecule: Molecule, values: dict, seconds: float, mode: Mode) -> Observables:
        """Observables of one molecule in the fast mode, with what is doubtful about the mode that is asked for."""
        change, found, dropped = values.pop("electronic"), values.pop("spread", None), values.pop("dropped")
        interval = stored_interval(self.header.calibration, "fast")
        if found is not None and interval is not None:
            values["energy_error_estimate"] = interval.scale_68 * found
            values["energy_error_95"] = interval.scale_95 * found
        result = Observables(**values, seconds=seconds)
        warnings = doubted(molecule, self.header, mode)
        if dropped:
            warnings += (
                f"the overlap is nearly singular: {dropped} combination(s) of AOs with eigenvalues below "
                f"{LINEAR_DEPENDENCE:.0e} were dropped, and there are so many orbitals less; do atoms lie on top of "
                "each other?",
            )
        if found is not None and interval is not None and found > interval.largest:
            warnings += (
                f"the members of the model disagree by more than the {interval.largest:.1e} Eh at most that they do on "
                "the molecules that errors were measured on: it is unlike those of the training",
            )
        # only the superposed atoms are an F0 and a D0 that belong together
        if self.header.baseline != "atoms":
            change = None
        warnings += implausible(molecule, change=change, gap=result.gap, spin_gap=result.spin_gap)
        if result.gradient is not None and not np.isfinite(result.gradient).all():
            result = replace(result, gradient=None)
            warnings += (NO_FORCES,)
        return replace(result, warnings=warnings)

    def _in_mode(
        self, fast: Observables, molecule: Molecule, mode: Mode, forces: bool, conv_tol: float, compare: bool
    ) -> Observables:
        """A prediction of the fast mode in one of the other modes."""
        from mlsemi.reference.modes import ModeOptions, in_mode

        assert mode != "fast"
        if mode == "corrected":
            refuse_doubtful(molecule, self.header, fast.warnings)
        warnings = self._reference_warnings(mode)
        if forces and mode != "scf" and fast.spin_gap is not None and fast.spin_gap < RESOLVED_GAP:
            forces = False
            warnings += (NO_FORCES,)
        options = ModeOptions(forces=forces, conv_tol=conv_tol, compare=compare)
        try:
            found = in_mode(fast, molecule, mode=mode, engine=self.engine, header=self.header, options=options)
        except FAILURES as error:
            raise _like(error)(_naming(molecule, error)) from error
        return replace(found, warnings=found.warnings + warnings)

    def _reference_warnings(self, mode: Mode) -> tuple[str, ...]:
        """Warns if the method's name means something else in this PySCF than in the one that made the labels."""
        try:
            from mlsemi.reference.mean_field import resolve_functional
        except ModuleNotFoundError as error:
            raise ImportError(
                f"mode={mode!r} needs PySCF ({error}): install mlsemi[reference], or take mode='fast'"
            ) from error
        now, then = resolve_functional(self.header.method), self.header.resolved_functional
        if then and now != then:
            return (f"{self.header.method} means {now} in this PySCF, but the labels of the model have {then}",)
        return ()


def _like(error: Exception) -> type[Exception]:
    """Its kind; subclasses, such as numpy's MemoryError, are not all made of a message."""
    return next(kind for kind in FAILURES if isinstance(error, kind))


def _naming(molecule: Molecule, error: Exception) -> str:
    """What an error says, with the name of the molecule."""
    return f"{molecule.name or molecule.formula}: {error}"


def _failed(reason: str, seconds: float | None = None) -> Observables:
    """The result of a molecule that has none."""
    return Observables(failure=reason, warnings=(reason,), seconds=seconds)


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
