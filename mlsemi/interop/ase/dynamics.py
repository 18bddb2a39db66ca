"""Molecular dynamics by ASE's integrators, which can be gone on with after a kill."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import ase.units
import numpy as np
from ase import Atoms
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet

from mlsemi.interop.ase.calculator import MlsemiCalculator
from mlsemi.interop.ase.optimize import atoms_of, molecule_of, settings_of
from mlsemi.interop.ase.record import Record
from mlsemi.interop.extxyz import frame_text
from mlsemi.molecule import Molecule
from mlsemi.properties.vibrations import is_linear, rigid_motions
from mlsemi.units import BOHR_IN_ANGSTROM, HARTREE_IN_EV

Ensemble = Literal["nve", "nvt"]

SAVE_SECONDS = 10.0
"""The state is kept at every frame, and this often between frames that are far apart."""

_TITLES = f"{'step':>9} {'time/fs':>12} {'Etot/Eh':>18} {'Epot/Eh':>18} {'Ekin/Eh':>14} {'T/K':>9}\n"


@dataclass(frozen=True)
class Dynamics:
    """Settings of a run.

    Attributes:
        ensemble: 'nve', velocity Verlet, or 'nvt', Langevin dynamics.
        temperature: of the first velocities, and of the bath [K].
        timestep: [fs].
        friction: of Langevin dynamics [1/ps].
        seed: of the first velocities and of the bath.
        every: steps from frame to frame.

    Raises:
        ValueError: for values that make no dynamics.
    """

    ensemble: Ensemble = "nve"
    temperature: float = 300.0
    timestep: float = 0.5
    friction: float = 10.0
    seed: int = 0
    every: int = 10

    def __post_init__(self) -> None:
        if self.ensemble not in get_args(Ensemble):
            raise ValueError(f"ensemble={self.ensemble!r} must be one of {', '.join(get_args(Ensemble))}")
        for name, unit in (("timestep", "fs"), ("friction", "1/ps")):
            value = getattr(self, name)
            if not value > 0 or not np.isfinite(value):
                raise ValueError(f"{name}={value:g} must be positive [{unit}]")
        if not self.temperature >= 0 or not np.isfinite(self.temperature):
            raise ValueError(f"temperature={self.temperature:g} must not be negative [K]")
        if self.seed < 0 or self.every < 1:
            raise ValueError(f"seed={self.seed} must not be negative, and every={self.every} at least 1")


@dataclass(frozen=True)
class Ran:
    """Result of `run`.

    Temperatures are of all coordinates in the nvt ensemble, and of the internal ones in the nve ensemble, in which the
    molecule as a whole stays where it is.

    Attributes:
        molecule: the last geometry.
        steps: steps taken, over all restarts.
        frames: frames in the trajectory.
        temperature: mean of the frames of this run [K]; nan if it wrote none.
        total_energy: energy of nuclei and electrons at the end [Eh].
    """

    molecule: Molecule
    steps: int
    frames: int
    temperature: float
    total_energy: float


OnStep = Callable[[int, float, float], None]
"""Called with the step, the total energy [Eh] and the temperature [K]."""


def run(
    molecule: Molecule,
    calculator: MlsemiCalculator,
    *,
    steps: int,
    trajectory: Path,
    state: Path,
    log: Path | None = None,
    settings: Dynamics | None = None,
    restart: bool = False,
    on_step: OnStep | None = None,
) -> Ran:
    """Dynamics of one molecule.

    A run that was killed and gone on with gives the same files as one that was not: the state has positions,
    velocities, the step, and that of the random numbers.

    Args:
        molecule: where to start; its first velocities are random, without translation and rotation of the whole.
        calculator: model and mode; charge and spin are those of the molecule.
        steps: number of steps, over all restarts.
        trajectory: extended xyz file of the frames: positions [angstrom], momenta [sqrt(u eV)], forces, charges.
        state: file that keeps the state. It stays at the end: a longer run goes on from it.
        log: file with one line for each frame.
        settings: ensemble, temperature and the like.
        restart: go on from `state`, with the same settings.
        on_step: told of every step.

    Raises:
        ValueError: for wrong settings, what the model does not cover, files that `Record` refuses, or a molecule that
            flies apart (a time step that is too long).
    """
    settings = settings or Dynamics()
    if steps < 0:
        raise ValueError(f"steps={steps} must not be negative")
    calculator.model.check([molecule], mode=calculator.mode, forces=True, dispersion=calculator.dispersion)
    same = settings_of(molecule, calculator) | vars(settings)
    with Record(state=state, trajectory=trajectory, log=log, settings=same, restart=restart) as record:
        running = _Running(molecule, calculator, record, settings, on_step)
        return running.go(steps)


class _Running:
    """Dynamics under way."""

    def __init__(
        self,
        molecule: Molecule,
        calculator: MlsemiCalculator,
        record: Record,
        settings: Dynamics,
        on_step: OnStep | None,
    ) -> None:
        self._start, self._calculator, self._record, self._settings = molecule, calculator, record, settings
        self._on_step = on_step
        self._rng = np.random.default_rng(settings.seed)
        self._atoms = atoms_of(molecule)
        self._saved = -1  # step of the last state
        kept = record.kept
        if kept is None:
            give_velocities(self._atoms, settings.temperature, self._rng)
            record.write("log", _TITLES)
        else:
            self._atoms.positions = np.array(kept["positions"])
            self._atoms.set_momenta(np.array(kept["momenta"]))
            self._rng.bit_generator.state = kept["random"]
            self._saved = kept["step"]
        calculator.charge, calculator.spin = molecule.charge, molecule.spin
        self._atoms.calc = calculator
        self._dynamics = self._integrator()
        self._freedom = 3 * len(self._atoms) if settings.ensemble == "nvt" else internal_freedom(self._start)
        self._dynamics.nsteps = max(0, self._saved)
        self._frames = 0 if kept is None else kept["frames"]
        self._temperatures: list[float] = []
        self._last_save = time.monotonic()

    def _integrator(self) -> Any:
        timestep = self._settings.timestep * ase.units.fs
        if self._settings.ensemble == "nve":
            return VelocityVerlet(self._atoms, timestep=timestep)
        return Langevin(
            self._atoms,
            timestep=timestep,
            temperature_K=self._settings.temperature,
            friction=self._settings.friction / (1000 * ase.units.fs),
            fixcm=False,  # with it the ensemble is not exact
            rng=self._rng,
        )

    def go(self, steps: int) -> Ran:
        """Runs to the last step."""
        first = max(0, self._saved)
        if steps < first:
            raise ValueError(f"steps={steps}: the run has {first} steps already; give more")
        for _ in self._dynamics.irun(steps=steps - first):
            self._note(last=self._dynamics.nsteps == steps)
        mean = float(np.mean(self._temperatures)) if self._temperatures else float("nan")
        total = float(self._atoms.get_total_energy()) / HARTREE_IN_EV
        return Ran(molecule_of(self._start, self._atoms), self._dynamics.nsteps, self._frames, mean, total)

    def _note(self, *, last: bool) -> None:
        """Writes what is of the present step, once."""
        step = self._dynamics.nsteps
        kinetic = float(self._atoms.get_kinetic_energy()) / HARTREE_IN_EV
        temperature = 2 * float(self._atoms.get_kinetic_energy()) / (self._freedom * ase.units.kB)
        potential = float(self._atoms.get_potential_energy()) / HARTREE_IN_EV
        if step > self._saved:
            frame = step % self._settings.every == 0
            if frame:
                self._write_frame(step, potential, kinetic, temperature)
            if frame or last or time.monotonic() - self._last_save > SAVE_SECONDS:
                self._save(step)
        if self._on_step is not None:
            self._on_step(step, potential + kinetic, temperature)

    def _write_frame(self, step: int, potential: float, kinetic: float, temperature: float) -> None:
        moment = step * self._settings.timestep
        info = {"step": step, "time_fs": moment, "temperature_K": temperature}
        molecule = molecule_of(self._start, self._atoms)
        momenta = self._atoms.get_momenta()
        text = frame_text(molecule, self._calculator.observables, momenta=momenta, info=info)
        self._record.write("trajectory", text)
        energies = f"{potential + kinetic:18.10f} {potential:18.10f} {kinetic:14.10f}"
        self._record.write("log", f"{step:9d} {moment:12.3f} {energies} {temperature:9.2f}\n")
        self._frames += 1
        self._temperatures.append(temperature)

    def _save(self, step: int) -> None:
        self._record.save(
            {
                "step": step,
                "frames": self._frames,
                "positions": self._atoms.positions,
                "momenta": self._atoms.get_momenta(),
                "random": self._rng.bit_generator.state,
            }
        )
        self._saved, self._last_save = step, time.monotonic()


def give_velocities(atoms: Atoms, temperature: float, rng: np.random.Generator) -> None:
    """Thermal velocities [K] without translation and rotation of the whole; none for a single atom."""
    if len(atoms) == 1 or temperature == 0:
        atoms.set_momenta(np.zeros((len(atoms), 3)))
        return
    masses = atoms.get_masses()
    root = np.sqrt(masses)[:, None]
    widths = np.sqrt(ase.units.kB * temperature)
    weighted = (rng.standard_normal((len(atoms), 3)) * widths).ravel()
    rigid = rigid_motions(atoms.positions / BOHR_IN_ANGSTROM, masses)
    weighted -= rigid.T @ (rigid @ weighted)
    atoms.set_momenta(weighted.reshape(-1, 3) * root)


def internal_freedom(molecule: Molecule) -> int:
    """Number of internal coordinates: 3N - 6, for linear molecules 3N - 5; three for an atom."""
    if molecule.n_atoms == 1:
        return 3
    return 3 * molecule.n_atoms - (5 if is_linear(molecule.positions) else 6)
