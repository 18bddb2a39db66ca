"""Distorted geometries for training: where dynamics never goes, and optimizers and users' drafts do.

    python benchmarks/organic/distort_geometries.py GEOMETRIES.xyz -o distorted.xyz --count 280 --seed 1

Takes geometries of training molecules in the order of a hash, one of each, shrinks or stretches it as a whole by -12
to +8 %, and moves each atom at random (normal, 0.06 angstrom for heavy atoms, 0.18 for H). What brings two atoms
nearer than 0.7 times the sum of their covalent radii is drawn again.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from mlsemi.data.split import split_of

NEAREST = 0.7
HEAVY, HYDROGEN = 0.06, 0.18
SCALE = (0.88, 1.08)


def distorted(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """One distorted copy."""
    radii = covalent_radii[atoms.numbers]
    sigma = np.where(atoms.numbers == 1, HYDROGEN, HEAVY)[:, None]
    centre = atoms.positions.mean(0)
    for _ in range(1000):
        moved = atoms.copy()
        scaled = centre + rng.uniform(*SCALE) * (atoms.positions - centre)
        moved.positions = scaled + sigma * rng.standard_normal(scaled.shape)
        distance = moved.get_all_distances() + 10 * np.eye(len(moved))
        if (distance > NEAREST * (radii[:, None] + radii)).all():
            return moved
    raise RuntimeError(f"{atoms.info['smiles']}: no distortion leaves the atoms apart")


def main() -> None:
    """Reads, distorts, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("geometries", type=Path, nargs="+", help="xyz files of `mlsemi sample`")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=280, help="molecules")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    first: dict[str, Atoms] = {}
    for path in arguments.geometries:
        for atoms in ase.io.iread(path, index=":"):
            if split_of(atoms.info["smiles"]) == "train" and len(atoms) > 2:
                first.setdefault(atoms.info["smiles"], atoms)
    order = sorted(first, key=lambda s: hashlib.sha256(f"distort:{s}".encode()).hexdigest())
    rng = np.random.default_rng(arguments.seed)
    made = []
    for smiles in order[: arguments.count]:
        atoms = distorted(first[smiles], rng)
        atoms.info = {**first[smiles].info, "key": f"{smiles}/distorted/0", "temperature": 0.0}
        made.append(atoms)
    ase.io.write(arguments.output, made, format="extxyz")
    print(f"{len(made)} distorted geometries of {len(first)} training molecules: {arguments.output}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
