"""Two water molecules at growing distance: F of a model against PySCF at its level.

    OMP_NUM_THREADS=1 python benchmarks/organic/dimer.py [--model organic-b3lyp-def2svp]

A hydrogen bond along the line of the oxygen atoms, molecules rigid. Printed for each O-O distance: the mean of |dF|
over all elements [uEh], the mean of the diagonal elements of dF on donor and acceptor [mEh], and the error of the
fast energy [kcal/mol].
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch

from mlsemi.model import DEFAULT_MODEL, load
from mlsemi.molecule import Molecule
from mlsemi.reference.mean_field import solve
from mlsemi.units import HARTREE_IN_KCAL_PER_MOL

DISTANCES = (2.6, 2.8, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 7.5, 9.0)
"""Of the oxygen atoms [angstrom]."""
BOND, HALF_ANGLE = 0.9572, np.radians(104.52 / 2)
"""Of a water molecule [angstrom, radian]."""
NUMBERS = np.array([8, 1, 1, 8, 1, 1])


def dimer(distance: float) -> Molecule:
    """The donor's O-H points along x to the acceptor's oxygen atom, whose plane is turned by a right angle."""
    x, y = BOND * np.cos(HALF_ANGLE), BOND * np.sin(HALF_ANGLE)
    turn = np.array([[x, y, 0.0], [-y, x, 0.0], [0.0, 0.0, BOND]]) / BOND
    donor = np.array([[0.0, 0.0, 0.0], [x, y, 0.0], [x, -y, 0.0]]) @ turn.T
    acceptor = np.array([[0.0, 0.0, 0.0], [x, 0.0, y], [x, 0.0, -y]]) + [distance, 0.0, 0.0]
    return Molecule.from_angstrom(NUMBERS, np.concatenate([donor, acceptor]), name=f"{distance:g} angstrom")


def main() -> None:
    """Computes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="shipped model or checkpoint")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load(arguments.model)
    print("| O-O, angstrom | H MAE, uEh | donor / acceptor, mEh | fast energy, kcal/mol |\n|---|---|---|---|")
    for distance in DISTANCES:
        molecule = dimer(distance)
        label = solve(molecule, model.header.basis, method=model.header.method).observables
        found = model.predict(molecule, estimate=False)
        assert found.fock is not None and label.fock is not None
        assert found.energy is not None and label.energy is not None
        error = found.fock[0] - label.fock[0]
        sites = 1e3 * np.diag(error).reshape(2, -1).mean(1)
        energy = HARTREE_IN_KCAL_PER_MOL * (found.energy - label.energy)
        print(f"| {distance} | {1e6 * np.abs(error).mean():.0f} | {sites[0]:.1f} / {sites[1]:.1f} | {energy:.2f} |")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
