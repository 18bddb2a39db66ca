"""F of rotated, mirrored and permuted molecules against D F D^T; linear molecules along the axes, with their gradients.

python benchmarks/symmetry.py [--model organic-b3lyp-def2svp]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mlsemi.interop.ase import read_molecules
from mlsemi.layout import AOLayout
from mlsemi.model import load
from mlsemi.molecule import Molecule

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NAMES = ("water", "ethanol", "formamide", "acetic_acid", "hydrogen_cyanide")


def orthogonal(rng: np.random.Generator, determinant: int) -> np.ndarray:
    """A random rotation (1) or rotation and mirror (-1), shape (3, 3)."""
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q)) * determinant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="organic-b3lyp-def2svp")
    name = parser.parse_args().model
    molecules = [read_molecules(EXAMPLES / f"{example}.xyz")[0] for example in NAMES]
    print("| precision | rotated | mirrored | permuted | linear along x, y, z: F | gradient |")
    print("|---|---|---|---|---|---|")
    for precision in ("float32", "float64"):
        model = load(name, precision=precision)
        basis = model.engine.basis
        rng = np.random.default_rng(7)
        worst = dict.fromkeys(("rotated", "mirrored", "permuted"), 0.0)
        for molecule in molecules:
            before = model.predict(molecule).fock[0]
            for kind, determinant in (("rotated", 1), ("mirrored", -1)):
                for _ in range(5):
                    turn = orthogonal(rng, determinant)
                    after = model.predict(Molecule(molecule.numbers, molecule.positions @ turn.T)).fock[0]
                    d = AOLayout(basis, molecule.numbers).rotation(turn)
                    worst[kind] = max(worst[kind], float(np.abs(after - d @ before @ d.T).max()))
            order = rng.permutation(molecule.n_atoms)
            offsets = AOLayout(basis, molecule.numbers).atom_offsets
            index = np.concatenate([np.arange(offsets[k], offsets[k + 1]) for k in order])
            after = model.predict(Molecule(molecule.numbers[order], molecule.positions[order])).fock[0]
            worst["permuted"] = max(worst["permuted"], float(np.abs(after - before[np.ix_(index, index)]).max()))
        fock, gradient = linear(model)
        print(f"| {precision} | " + " | ".join(f"{v:.1e}" for v in (*worst.values(), fock, gradient)) + " |")


def linear(model) -> tuple[float, float]:  # noqa: ANN001
    """Largest deviation of F [Eh] and of the gradient [Eh/bohr] of HCN along the axes from HCN askew."""
    numbers, places = [1, 6, 7], np.array([-2.0, 0.0, 2.18])
    askew = np.array([1.0, 2.0, -0.7]) / np.linalg.norm([1.0, 2.0, -0.7])
    reference = model.predict(Molecule(numbers, np.outer(places, askew)), forces=True)
    deviations = []
    for axis in (*np.eye(3), *-np.eye(3)):
        found = model.predict(Molecule(numbers, np.outer(places, axis)), forces=True)
        # along the bond the gradient is a number for each atom; across it is zero
        along = found.gradient @ axis - reference.gradient @ askew
        across = found.gradient - np.outer(found.gradient @ axis, axis)
        spectrum = np.linalg.eigvalsh(found.fock[0]) - np.linalg.eigvalsh(reference.fock[0])
        deviations.append((np.abs(spectrum).max(), max(np.abs(along).max(), np.abs(across).max())))
    return tuple(float(x) for x in np.max(deviations, axis=0))


if __name__ == "__main__":
    main()
