"""F of rotated, mirrored and permuted molecules against D F D^T; linear molecules along the axes, with their gradients.

python benchmarks/symmetry.py [--model organic-b3lyp-def2svp]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mlsemi.interop.ase import read_molecules
from mlsemi.layout import AOLayout
from mlsemi.model import Model, load
from mlsemi.molecule import Molecule

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NAMES = ("water", "ethanol", "formamide", "acetic_acid", "hydrogen_cyanide")


def orthogonal(rng: np.random.Generator, determinant: int) -> np.ndarray:
    """A random rotation (1) or rotation and mirror (-1), shape (3, 3)."""
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q)) * determinant


def fock_of(model: Model, molecule: Molecule) -> np.ndarray:
    """Predicted Fock matrix of a closed shell [Eh], shape (ao, ao)."""
    fock = model.predict(molecule).fock
    assert fock is not None
    return fock[0]


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
        worst: dict[str, float] = dict.fromkeys(("rotated", "mirrored", "permuted"), 0.0)
        for molecule in molecules:
            before = fock_of(model, molecule)
            for kind, determinant in (("rotated", 1), ("mirrored", -1)):
                for _ in range(5):
                    turn = orthogonal(rng, determinant)
                    after = fock_of(model, Molecule(molecule.numbers, molecule.positions @ turn.T))
                    d = AOLayout(basis, molecule.numbers).rotation(turn)
                    worst[kind] = max(worst[kind], float(np.abs(after - d @ before @ d.T).max()))
            order = rng.permutation(molecule.n_atoms)
            offsets = AOLayout(basis, molecule.numbers).atom_offsets
            index = np.concatenate([np.arange(int(offsets[k]), int(offsets[k + 1])) for k in order])
            after = fock_of(model, Molecule(molecule.numbers[order], molecule.positions[order]))
            worst["permuted"] = max(worst["permuted"], float(np.abs(after - before[np.ix_(index, index)]).max()))
        fock, gradient = linear(model)
        print(f"| {precision} | " + " | ".join(f"{v:.1e}" for v in (*worst.values(), fock, gradient)) + " |")


def of_line(model: Model, molecule: Molecule) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of F [Eh], and gradient [Eh/bohr], shape (atom, 3)."""
    found = model.predict(molecule, forces=True)
    assert found.fock is not None and found.gradient is not None
    return np.linalg.eigvalsh(found.fock[0]), found.gradient


def linear(model: Model) -> tuple[float, float]:
    """Largest deviation of F [Eh] and of the gradient [Eh/bohr] of HCN along the axes from HCN askew."""
    numbers, places = np.array([1, 6, 7]), np.array([-2.0, 0.0, 2.18])
    askew = np.array([1.0, 2.0, -0.7]) / np.linalg.norm([1.0, 2.0, -0.7])
    reference, gradient_askew = of_line(model, Molecule(numbers, np.outer(places, askew)))
    deviations = []
    for axis in (*np.eye(3), *-np.eye(3)):
        spectrum, gradient = of_line(model, Molecule(numbers, np.outer(places, axis)))
        # along the bond the gradient is a number for each atom; across it is zero
        along = gradient @ axis - gradient_askew @ askew
        across = gradient - np.outer(gradient @ axis, axis)
        deviations.append((np.abs(spectrum - reference).max(), max(np.abs(along).max(), np.abs(across).max())))
    of_fock, of_gradient = np.max(deviations, axis=0)
    return float(of_fock), float(of_gradient)


if __name__ == "__main__":
    main()
