"""Geometries of small molecules beside each other, with up to five heavy atoms in all: what the organic list lacks.

    python benchmarks/organic/clusters.py -o clusters.xyz [--seed 0]

Water clusters of two to five molecules, and `MIXED` compositions drawn from `MONOMERS`. For each of them

    apart    relaxed molecules, turned at random and put one after the other at a random place where the nearest
             contact to those before is `CONTACT` times a factor from 1 to `FURTHEST`: all distances up to those that
             messages do not reach;
    thermal  the same relaxed together by GFN2-xTB, then a frame of dynamics at `TEMPERATURE`: hydrogen bonds.

Frames are named by the SMILES of all molecules, so that the split by molecule holds for clusters too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from mlsemi.files import written_whole
from mlsemi.molecule import Molecule
from mlsemi.reference.sampling import (
    NotIntactError,
    bonds_of,
    canonical_smiles,
    changed_bonds,
    geometry_from_smiles,
    intact_trajectory,
    relaxed,
    seed_of,
)

MONOMERS = {
    "O": 6, "N": 2, "C": 1, "[H][H]": 1, "CO": 2, "C=O": 2, "C#N": 2, "CN": 1, "CC": 1, "C=C": 1, "C#C": 1, "N#N": 1,
    "[C-]#[O+]": 1, "OO": 1, "O=CO": 2, "O=C=O": 1, "CC#N": 1, "NC=O": 2, "CCO": 1, "CC=O": 1,
}  # fmt: skip
"""SMILES and how often they are drawn, relative to each other."""

WATER = {2: (40, 12), 3: (20, 12), 4: (10, 6), 5: (20, 12)}
"""Number of molecules, and frames apart and thermal."""
MIXED = 100
"""Compositions with one frame of each kind."""
MOST_HEAVY = 5
MOST_MOLECULES = 4
CONTACT = {(1, 1): 1.9, (1, 2): 1.75, (2, 2): 2.6}
"""Nearest distance of atoms of two molecules, H (1) or heavier (2) [angstrom]: just below hydrogen bonds."""
FURTHEST = 4.0
TEMPERATURE = 300.0


@cache
def monomer(smiles: str) -> Molecule:
    """A relaxed molecule, its centre at the origin."""
    made = geometry_from_smiles(smiles)
    return Molecule(made.numbers, made.positions - made.positions.mean(0), name=made.name)


def composition(rng: np.random.Generator) -> tuple[str, ...]:
    """Two to `MOST_MOLECULES` molecules with up to `MOST_HEAVY` heavy atoms, not all of them water."""
    names, weights = list(MONOMERS), np.array(list(MONOMERS.values()), dtype=float)
    while True:
        count = int(rng.integers(2, MOST_MOLECULES + 1))
        drawn = [names[k] for k in rng.choice(len(names), size=count, p=weights / weights.sum())]
        if sum(monomer(s).n_heavy_atoms for s in drawn) <= MOST_HEAVY and set(drawn) != {"O"}:
            return tuple(drawn)


def apart(parts: Sequence[str], rng: np.random.Generator) -> Molecule:
    """Molecules put beside each other, see the head of this script.

    Raises:
        RuntimeError: if there is no place for one of them.
    """
    numbers, positions = np.empty(0, dtype=int), np.empty((0, 3))
    for smiles in parts:
        molecule = monomer(smiles)
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        turned = molecule.positions_angstrom @ turn
        if len(numbers):
            factor = np.exp(rng.uniform(0, np.log(FURTHEST)))
            turned = turned + placed(numbers, positions, molecule.numbers, turned, factor, rng)
        numbers, positions = np.append(numbers, molecule.numbers), np.concatenate([positions, turned])
    return Molecule.from_angstrom(numbers, positions, name=canonical_smiles(".".join(parts)))


def placed(
    numbers: np.ndarray,
    positions: np.ndarray,
    added: np.ndarray,
    turned: np.ndarray,
    factor: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """The shift that brings a molecule in from far until its nearest contact is `factor` times `CONTACT` [angstrom]."""
    kinds = [[CONTACT[min(a, b), max(a, b)] for b in np.minimum(added, 2)] for a in np.minimum(numbers, 2)]
    least, start = factor * np.array(kinds), positions[rng.integers(len(positions))]
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    for distance in np.arange(40.0, 0.0, -0.02):
        shift = start + distance * direction
        gap = np.linalg.norm(positions[:, None] - (turned + shift), axis=-1) - least
        if gap.min() < 0:
            return shift + 0.02 * direction
    raise RuntimeError("the molecules do not meet")


def thermal(parts: Sequence[str], rng: np.random.Generator) -> Molecule:
    """The cluster relaxed, then a frame of its dynamics.

    Raises:
        NotIntactError: if bonds change, for several beginnings.
    """
    failure = ""
    for _ in range(5):
        start = apart(parts, rng)
        bonds = bonds_of(start)
        try:
            together = relaxed(start)
            failure = changed_bonds(together, bonds)
            if not failure:
                seed = int(rng.integers(2**31))
                return intact_trajectory(together, frames=1, temperature=TEMPERATURE, seed=seed)[0][0]
        except NotIntactError as error:
            failure = str(error)
    raise NotIntactError(f"{'.'.join(parts)}: {failure}")


def frames(seed: int) -> Iterator[Molecule]:
    """All frames, water first."""
    kinds = [(("O",) * n, *counts) for n, counts in WATER.items()]
    rng = np.random.default_rng(seed_of(seed, "compositions"))
    kinds += [(composition(rng), 1, 1) for _ in range(MIXED)]
    for number, (parts, n_apart, n_thermal) in enumerate(kinds):
        rng = np.random.default_rng(seed_of(seed, number, *parts))
        for _ in range(n_apart):
            yield apart(parts, rng)
        for _ in range(n_thermal):
            try:
                yield thermal(parts, rng)
            except NotIntactError as error:
                print(f"left out: {error}", file=sys.stderr, flush=True)


def main() -> None:
    """Makes and writes the frames."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, help="xyz file")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    made = []
    for molecule in frames(arguments.seed):
        made.append(molecule)
        print(f"\r{len(made)} frames", end="", file=sys.stderr, flush=True)
    with written_whole(arguments.out) as path:
        path.write_text("".join(molecule.to_xyz(f'smiles="{molecule.name}"') for molecule in made))
    print(f"\n{arguments.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
