"""Geometries to label: SMILES to three dimensions by RDKit, thermal geometries by dynamics with GFN2-xTB.

GFN2-xTB: C. Bannwarth, S. Ehlert, S. Grimme, J. Chem. Theory Comput. 15, 1652 (2019), by the tblite library. Dynamics:
Langevin in the splitting BAOAB of B. Leimkuhler and C. Matthews, J. Chem. Phys. 138, 174102 (2013), whose positions are
distributed correctly, even exactly in harmonic potentials, at steps where other splittings are not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy.constants import physical_constants as _codata

from mlsemi.molecule import Molecule, symbol_of

FEMTOSECOND_IN_AU = 1e-15 / _codata["atomic unit of time"][0]
KELVIN_IN_HARTREE = _codata["kelvin-hartree relationship"][0]
DALTON_IN_ELECTRON_MASS = _codata["atomic mass constant"][0] / _codata["electron mass"][0]

BONDED = 1.3
"""Atoms nearer than this times the sum of their covalent radii are bonded in a geometry at rest."""
BROKEN = 1.5
"""A bond longer than this times the sum of the covalent radii is broken: thermal stretching stays well below."""
FORMED = 1.1
"""Atoms not bonded at the start and nearer than this times the sum of their covalent radii have formed a bond."""


class NotIntactError(RuntimeError):
    """No geometry in which the molecule has its bonds: on relaxation, or in every trajectory that was tried."""


@dataclass(frozen=True, kw_only=True)
class Dynamics:
    """How the dynamics runs; the defaults suit molecules of light elements at 200 K to 1000 K.

    Attributes:
        step: time step [fs].
        equilibration: time before the first frame [fs].
        spacing: time between frames [fs].
        friction: of the Langevin bath [1/fs]; its inverse is the time in which velocities are forgotten.
        attempts: trajectories to try before a molecule is said to fall apart.

    Raises:
        ValueError: for a value that is not positive.
    """

    step: float = 1.0
    equilibration: float = 200.0
    spacing: float = 100.0
    friction: float = 0.02
    attempts: int = 5

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_positive(field.name, getattr(self, field.name))


def canonical_smiles(smiles: str) -> str:
    """RDKit's canonical SMILES.

    Raises:
        ValueError: if RDKit cannot read it, or if it has no atoms.
    """
    return _chem().MolToSmiles(_parsed(smiles))


def seed_of(seed: int, *parts: object) -> int:
    """A seed in [0, 2^31) that depends on all parts, and on nothing else: not on the machine, run or Python's hash."""
    text = "|".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def geometry_from_smiles(smiles: str, *, seed: int = 0) -> Molecule:
    """A relaxed three-dimensional geometry of a SMILES.

    Distance geometry (ETKDGv3) and a force field (MMFF94, UFF where it lacks parameters) by RDKit, then GFN2-xTB.

    Args:
        smiles: any SMILES of one molecule; its charge and number of radical electrons become charge and spin.
        seed: of the distance geometry: which conformer comes out.

    Returns:
        The molecule, named by its canonical SMILES.

    Raises:
        ValueError: if RDKit cannot read the SMILES, or it is of several molecules.
        NotIntactError: if RDKit finds no geometry, or the relaxation makes or breaks bonds, for three conformers.
    """
    chem = _chem()
    name = canonical_smiles(smiles)
    if "." in name:
        raise ValueError(
            f"smiles {smiles!r} is of several molecules that are not bonded; give an xyz file of them instead"
        )
    with_hydrogens = chem.AddHs(_parsed(name))  # read anew: the order of the atoms is that of the name
    failures = []
    for attempt in range(3):
        try:
            start = _embedded(with_hydrogens, name, seed_of(seed, "embed", name, *([attempt] if attempt else [])))
            molecule = relaxed(start)
        except NotIntactError as error:
            failures.append(str(error))
            continue
        changed = changed_bonds(molecule, frozenset(_bonded_indices(with_hydrogens)))
        if not changed:
            return molecule
        failures.append(f"it does not keep its bonds when relaxed by GFN2-xTB, {changed}")
    raise NotIntactError(f"{name}: {failures[0]}")


def _embedded(with_hydrogens: Any, name: str, seed: int) -> Molecule:
    """The geometry that RDKit gives a molecule of its own."""
    from rdkit import rdBase
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    options = rdDistGeom.ETKDGv3()
    options.randomSeed = seed
    with rdBase.BlockLogs():
        if rdDistGeom.EmbedMolecule(with_hydrogens, options) != 0:
            options.useRandomCoords = True
            if rdDistGeom.EmbedMolecule(with_hydrogens, options) != 0:
                raise NotIntactError("RDKit finds no three-dimensional geometry; give an xyz file instead")
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(with_hydrogens):
            rdForceFieldHelpers.MMFFOptimizeMolecule(with_hydrogens, maxIters=500)
        elif rdForceFieldHelpers.UFFHasAllMoleculeParams(with_hydrogens):
            rdForceFieldHelpers.UFFOptimizeMolecule(with_hydrogens, maxIters=500)
    return Molecule.from_angstrom(
        np.array([atom.GetAtomicNum() for atom in with_hydrogens.GetAtoms()]),
        with_hydrogens.GetConformer().GetPositions(),
        charge=_chem().GetFormalCharge(with_hydrogens),
        spin=sum(atom.GetNumRadicalElectrons() for atom in with_hydrogens.GetAtoms()),
        name=name,
    )


def _bonded_indices(parsed: Any) -> Iterator[tuple[int, int]]:
    for bond in parsed.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        yield min(i, j), max(i, j)


def relaxed(molecule: Molecule, *, gradient_norm: float = 2e-3, steps: int = 200) -> Molecule:
    """The molecule brought near the next minimum of GFN2-xTB.

    Args:
        molecule: where to start.
        gradient_norm: largest component of the gradient to stop at [Eh/bohr].
        steps: of BFGS, at most; a molecule still on the way is good enough to start dynamics from.

    Raises:
        NotIntactError: if xTB does not converge, or nuclei fall on top of each other.
    """
    from scipy.optimize import minimize

    if molecule.n_atoms == 1:
        return molecule
    evaluate = Gfn2(molecule)

    def flat(x: np.ndarray) -> tuple[float, np.ndarray]:
        energy, gradient = evaluate(x.reshape(-1, 3))
        return energy, gradient.ravel()

    result = minimize(
        flat,
        molecule.positions.ravel(),
        jac=True,
        method="BFGS",
        options={"gtol": gradient_norm, "maxiter": steps},
    )
    return _moved(molecule, result.x.reshape(-1, 3))


def thermal_geometries(
    molecule: Molecule, *, frames: int, temperature: float = 500.0, seed: int = 0, dynamics: Dynamics | None = None
) -> list[Molecule]:
    """Geometries of the molecule at a temperature, from one trajectory with GFN2-xTB.

    Args:
        molecule: where to start, best relaxed.
        frames: how many geometries.
        temperature: of the Langevin bath [K].
        seed: of the velocities and of the random forces.
        dynamics: steps and times.

    Returns:
        As many molecules as asked for, the centre of nuclear charge at the origin.

    Raises:
        ValueError: for a number of frames or a temperature that is not positive.
        NotIntactError: if no trajectory keeps the bonds of the start.
    """
    return intact_trajectory(molecule, frames=frames, temperature=temperature, seed=seed, dynamics=dynamics)[0]


def intact_trajectory(
    molecule: Molecule, *, frames: int, temperature: float, seed: int, dynamics: Dynamics | None = None
) -> tuple[list[Molecule], int]:
    """As `thermal_geometries`, with the seed of the trajectory that the geometries are from.

    A trajectory in which a bond breaks or forms is thrown away as a whole, and another one with a seed derived from
    the given one is tried.
    """
    dynamics = dynamics or Dynamics()
    _check_positive("frames", frames)
    _check_positive("temperature", temperature)
    bonds = bonds_of(molecule)
    failures = []
    for attempt in range(dynamics.attempts):
        used = seed if attempt == 0 else seed_of(seed, "again", attempt)
        taken: list[Molecule] = []
        try:
            for now in _langevin(molecule, temperature, np.random.default_rng(used), dynamics):
                changed = changed_bonds(now, bonds)
                if changed:
                    raise NotIntactError(changed)
                taken.append(now)
                if len(taken) == frames:
                    return taken, used
        except NotIntactError as error:
            failures.append(str(error))
    raise NotIntactError(
        f"{molecule.name or molecule.formula} does not stay intact at {temperature:g} K in {dynamics.attempts} "
        f"trajectories with GFN2-xTB ({failures[0]}): lower the temperature"
    )


def _langevin(
    molecule: Molecule, temperature: float, rng: np.random.Generator, dynamics: Dynamics
) -> Iterator[Molecule]:
    """Endless BAOAB dynamics: a geometry after the equilibration, then one after each spacing."""
    if molecule.n_atoms == 1:
        while True:
            yield _moved(molecule, molecule.positions)
    evaluate = Gfn2(molecule)
    mass = _masses(molecule.numbers)[:, None]
    dt = dynamics.step * FEMTOSECOND_IN_AU
    keep = np.exp(-dynamics.friction * dynamics.step)
    thermal = np.sqrt(temperature * KELVIN_IN_HARTREE / mass)
    position = molecule.positions.copy()
    velocity = thermal * rng.standard_normal(position.shape)
    gradient = evaluate(position)[1]
    wait = dynamics.equilibration
    while True:
        for _ in range(max(round(wait / dynamics.step), 1)):
            velocity -= 0.5 * dt * gradient / mass
            position += 0.5 * dt * velocity
            velocity = keep * velocity + np.sqrt(1.0 - keep**2) * thermal * rng.standard_normal(position.shape)
            position += 0.5 * dt * velocity
            gradient = evaluate(position)[1]
            velocity -= 0.5 * dt * gradient / mass
        wait = dynamics.spacing
        yield _moved(molecule, position)


class Gfn2:
    """GFN2-xTB energy [Eh] and gradient [Eh/bohr] of one molecule at changing positions, each SCF from the last one."""

    def __init__(self, molecule: Molecule) -> None:
        from tblite.interface import Calculator, Result

        self._calculator = Calculator(
            "GFN2-xTB", molecule.numbers, molecule.positions, charge=float(molecule.charge), uhf=molecule.spin
        )
        self._calculator.set("verbosity", 0)
        self._result = Result()

    def __call__(self, positions: np.ndarray) -> tuple[float, np.ndarray]:
        try:
            self._calculator.update(positions)
            result = self._calculator.singlepoint(self._result)
            energy, gradient = float(result["energy"]), np.array(result["gradient"])
        except RuntimeError as error:
            raise NotIntactError(f"GFN2-xTB fails: {str(error).strip()}") from error
        if not (np.isfinite(energy) and np.isfinite(gradient).all()):
            raise NotIntactError("GFN2-xTB gives energies or gradients that are not finite")
        return energy, gradient


def bonds_of(molecule: Molecule) -> frozenset[tuple[int, int]]:
    """Bonded pairs i < j by distance, for a geometry near a minimum."""
    first, second, ratio = _ratios(molecule)
    return frozenset(zip(first[ratio < BONDED].tolist(), second[ratio < BONDED].tolist(), strict=True))


def changed_bonds(molecule: Molecule, bonds: frozenset[tuple[int, int]]) -> str:
    """What is no longer as in the bond graph, in words; empty if nothing is.

    Between `FORMED` and `BROKEN` a pair counts as what it was, since at 700 K bonds stretch and neighbours meet.
    """
    changes = []
    for i, j, ratio in zip(*(a.tolist() for a in _ratios(molecule)), strict=True):
        was = (i, j) in bonds
        if (was and ratio > BROKEN) or (not was and ratio < FORMED):
            pair = f"{symbol_of(int(molecule.numbers[i]))}{i}-{symbol_of(int(molecule.numbers[j]))}{j}"
            changes.append(f"{pair} {'breaks' if was else 'forms'}")
    return ", ".join(changes)


def _ratios(molecule: Molecule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs i < j and their distance over the sum of their covalent radii (Cordero 2008, from ASE)."""
    from ase.data import covalent_radii

    first, second = np.triu_indices(molecule.n_atoms, 1)
    distance = np.linalg.norm(molecule.positions_angstrom[first] - molecule.positions_angstrom[second], axis=1)
    radii = covalent_radii[molecule.numbers]
    return first, second, distance / (radii[first] + radii[second])


def _masses(numbers: np.ndarray) -> np.ndarray:
    from ase.data import atomic_masses

    return atomic_masses[numbers] * DALTON_IN_ELECTRON_MASS


def _moved(molecule: Molecule, positions: np.ndarray) -> Molecule:
    """The molecule elsewhere, its centre of nuclear charge at the origin."""
    centre = molecule.numbers @ positions / molecule.numbers.sum()
    try:
        return Molecule(
            molecule.numbers, positions - centre, charge=molecule.charge, spin=molecule.spin, name=molecule.name
        )
    except ValueError as error:
        raise NotIntactError(str(error)) from error


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")


def _chem() -> Any:
    from rdkit import Chem

    return Chem


def _parsed(smiles: str) -> Any:
    from rdkit import rdBase

    with rdBase.BlockLogs():
        molecule = _chem().MolFromSmiles(smiles)
    if molecule is None or molecule.GetNumAtoms() == 0:
        raise ValueError(f"smiles {smiles!r} is not a SMILES that RDKit reads; that of ethanol is 'CCO'")
    return molecule
