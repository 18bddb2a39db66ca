"""Geometry optimization by ASE's optimizers, which can be gone on with after a kill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from ase import Atoms
from ase.optimize import BFGS, FIRE, LBFGS

from mlsemi.interop.ase.calculator import MlsemiCalculator
from mlsemi.interop.ase.record import Record
from mlsemi.interop.extxyz import frame_text
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables

Optimizer = Literal["bfgs", "fire", "lbfgs"]

FMAX = 0.01
"""Default of the largest force [eV/angstrom]: bond lengths to some 1e-3 angstrom."""

_TITLES = f"{'step':>6} {'energy/Eh':>18} {'fmax/(eV/A)':>12}\n"


@dataclass(frozen=True, eq=False)
class Optimized:
    """Result of `optimize`.

    Attributes:
        molecule: the last geometry.
        observables: its results, with the gradient and, where the mode has one, the error estimate of the energy.
        converged: whether the largest force is below the limit.
        steps: steps taken, over all restarts.
        fmax: largest force of an atom [eV/angstrom].
    """

    molecule: Molecule
    observables: Observables
    converged: bool
    steps: int
    fmax: float


OnStep = Callable[[int, float, float], None]
"""Called with the step, the energy [Eh] and the largest force [eV/angstrom]."""


class _Kept:
    """Mixed into an optimizer: what it would write to its restart file is kept here."""

    kept: Any = None

    def dump(self, data: Any) -> None:
        self.kept = data

    def load(self) -> Any:
        return self.kept


class _BFGS(_Kept, BFGS):
    pass


class _LBFGS(_Kept, LBFGS):
    pass


class _FIRE(_Kept, FIRE):
    pass


_KINDS: dict[str, type] = {"bfgs": _BFGS, "lbfgs": _LBFGS, "fire": _FIRE}
_BESIDES = {"fire": ("a", "Nsteps")}
"""What an optimizer leaves out of its restart file."""


def optimize(
    molecule: Molecule,
    calculator: MlsemiCalculator,
    *,
    state: Path,
    optimizer: Optimizer = "bfgs",
    fmax: float = FMAX,
    steps: int = 500,
    trajectory: Path | None = None,
    log: Path | None = None,
    restart: bool = False,
    on_step: OnStep | None = None,
) -> Optimized:
    """Minimizes the energy of a molecule.

    Args:
        molecule: where to start.
        calculator: model and mode; charge and spin are those of the molecule. Error estimates are made at the end.
        state: file that keeps the state after every step; removed once the optimization has converged.
        optimizer: 'bfgs', 'fire' or 'lbfgs'.
        fmax: largest force of an atom that is accepted [eV/angstrom].
        steps: largest number of steps, over all restarts.
        trajectory: extended xyz file of all steps; written over.
        log: file with one line for each step; written over.
        restart: go on from `state`, with the same settings but for fmax and steps.
        on_step: told of every step.

    Raises:
        ValueError: for wrong settings, what the model does not cover, or files that `Record` refuses.
    """
    if optimizer not in get_args(Optimizer):
        raise ValueError(f"optimizer={optimizer!r} must be one of {', '.join(get_args(Optimizer))}")
    if not fmax > 0 or not np.isfinite(fmax):
        raise ValueError(f"fmax={fmax:g} must be a positive force [eV/angstrom]")
    if steps < 0:
        raise ValueError(f"steps={steps} must not be negative")
    calculator.model.check([molecule], mode=calculator.mode, forces=True, dispersion=calculator.dispersion)
    settings = settings_of(molecule, calculator) | {"optimizer": optimizer}
    atoms = atoms_of(molecule)
    files: dict[str, Any] = {"state": state, "trajectory": trajectory, "log": log}
    with Record(**files, settings=settings, restart=restart, overwrite=True) as record:
        run = _Run(molecule, atoms, calculator, record, optimizer, on_step)
        converged = run.go(fmax, steps)
        if converged:
            record.remove_state()
    final = molecule_of(molecule, atoms)
    found = calculator.model.predict(final, mode=calculator.mode, forces=True, dispersion=calculator.dispersion)
    return Optimized(final, found, converged, run.step, run.fmax)


class _Run:
    """An optimization under way."""

    def __init__(
        self,
        molecule: Molecule,
        atoms: Atoms,
        calculator: MlsemiCalculator,
        record: Record,
        optimizer: str,
        on_step: OnStep | None,
    ) -> None:
        self._start, self._atoms, self._calculator, self._record = molecule, atoms, calculator, record
        self._besides, self._on_step = _BESIDES.get(optimizer, ()), on_step
        kept = record.kept
        self.step = self._written = -1
        if kept is not None:
            atoms.positions = np.array(kept["positions"])
            self._written = kept["step"]
        calculator.charge, calculator.spin, calculator.estimate = molecule.charge, molecule.spin, False
        atoms.calc = calculator
        self._optimizer = _KINDS[optimizer](atoms, logfile=None)
        if kept is not None:
            self._optimizer.nsteps = kept["step"]
            for name, value in zip(self._besides, kept["besides"], strict=True):
                setattr(self._optimizer, name, value)
            if kept["optimizer"] is not None:
                self._optimizer.kept = kept["optimizer"]
                self._optimizer.read()
        else:
            record.write("log", _TITLES)

    def go(self, fmax: float, steps: int) -> bool:
        """Runs to convergence or to the last step, and says which."""
        left = steps - max(0, self._written)
        if left < 0:
            raise ValueError(f"steps={steps}: the run has {self._written} steps already; give more")
        converged = False
        for done in self._optimizer.irun(fmax=fmax, steps=left):
            converged = bool(done)
            self._note()
        return converged

    def _note(self) -> None:
        """Writes what is of the present step, once."""
        self.step = self._optimizer.nsteps
        self.fmax = float(np.linalg.norm(self._atoms.get_forces(), axis=1).max())
        found = self._calculator.observables
        assert found is not None and found.energy is not None
        if self.step > self._written:
            self._written = self.step
            molecule = molecule_of(self._start, self._atoms)
            self._record.write("trajectory", frame_text(molecule, found, info={"step": self.step}))
            self._record.write("log", f"{self.step:6d} {found.energy:18.10f} {self.fmax:12.6f}\n")
            self._record.save(
                {
                    "step": self.step,
                    "positions": self._atoms.positions,
                    "optimizer": self._optimizer.kept,
                    "besides": [getattr(self._optimizer, name) for name in self._besides],
                }
            )
        if self._on_step is not None:
            self._on_step(self.step, found.energy, self.fmax)


def settings_of(molecule: Molecule, calculator: MlsemiCalculator) -> dict[str, Any]:
    """What makes the surface and the start of a run."""
    return {
        "model": calculator.model.name,
        "mode": calculator.mode,
        "dispersion": calculator.dispersion,
        "precision": str(calculator.model.engine.network.dtype).removeprefix("torch."),
        "charge": molecule.charge,
        "spin": molecule.spin,
        "elements of the molecule": molecule.numbers.tolist(),
        "geometry to start from": molecule.positions.ravel().tolist(),
    }


def atoms_of(molecule: Molecule) -> Atoms:
    """A molecule as ASE's Atoms, with charge and spin in `info`."""
    info = {"charge": molecule.charge, "spin": molecule.spin}
    return Atoms(numbers=molecule.numbers, positions=molecule.positions_angstrom, info=info)


def molecule_of(molecule: Molecule, atoms: Atoms) -> Molecule:
    """The molecule at the positions of atoms."""
    return Molecule.from_angstrom(
        molecule.numbers, atoms.positions, charge=molecule.charge, spin=molecule.spin, name=molecule.name
    )
