"""The HOMO of trans and gauche ethanol: its momentum profile, and the hyperconjugation that tells the two apart.

Predicts both with the shipped organic model, calculates them with PySCF at the same level (B3LYP/def2-SVP), prints what
docs/how-to-momentum.md explains, and draws the profiles.

    python examples/ethanol_hyperconjugation.py -o ethanol_hyperconjugation.png
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch

import mlsemi
from mlsemi.basis import Basis
from mlsemi.batch import Batch
from mlsemi.interop.ase import read_molecules
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables
from mlsemi.properties.momentum import profiles
from mlsemi.reference.donor_acceptor import interactions
from mlsemi.reference.mean_field import solve
from mlsemi.units import HARTREE_IN_EV, HARTREE_IN_KCAL_PER_MOL

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

FOLDER = Path(__file__).parent
CONFORMERS = ("trans", "gauche")
MOMENTA = np.linspace(0.0, 3.0, 121)
"""What spectrometers reach [hbar/bohr]."""

SHOWN = 0.05
"""Weaker interactions are not printed [kcal/mol]."""

FWHM = 0.1
"""Momentum resolution of the second set of profiles [hbar/bohr]."""


@dataclass(frozen=True)
class Result:
    """HOMO energy [eV], its profiles without and with resolution, E(2) by donor and acceptor [kcal/mol]."""

    homo: float
    profile: np.ndarray
    blurred: np.ndarray
    energies: dict[str, float]


def analyse(state: Observables, molecule: Molecule, basis: Basis) -> Result:
    """HOMO profile and donor-acceptor energies of one state."""
    assert state.mo_coeff is not None and state.mo_occ is not None and state.homo is not None
    batch = Batch.of([molecule], basis)
    homo = int((state.mo_occ[0] > 0).sum()) - 1
    coefficients = torch.from_numpy(state.mo_coeff[None, :, :, [homo]])
    p = torch.from_numpy(MOMENTA)
    sharp, blurred = (profiles(batch, coefficients, p, fwhm=w)[0, 0, 0].numpy() for w in (0.0, FWHM))
    found = interactions(state, molecule, basis, threshold=0.0, geminal=False)
    energies = {
        f"{i.donor} -> {i.acceptor}": i.energy * HARTREE_IN_KCAL_PER_MOL
        for i in found
        if i.donor.startswith("lone pair")
    }
    return Result(state.homo * HARTREE_IN_EV, sharp, blurred, energies)


def compare(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Overlap int p^2 a b / (int p^2 a^2 int p^2 b^2)^1/2 of two profiles, and largest deviation [of the peak of b]."""
    weight = MOMENTA**2
    overlap = (weight * a * b).sum() / np.sqrt((weight * a * a).sum() * (weight * b * b).sum())
    return float(overlap), float(np.abs(a - b).max() / b.max())


def report(name: str, model: Result, reference: Result) -> None:
    """Prints one conformer."""
    overlap, deviation = compare(model.profile, reference.profile)
    print(f"\n{name} ethanol")
    print(f"  HOMO energy [eV]             model {model.homo:9.4f}   PySCF {reference.homo:9.4f}")
    print(f"  HOMO profile at p = 0        model {model.profile[0]:9.4f}   PySCF {reference.profile[0]:9.4f}")
    print(
        f"  HOMO profile, both           overlap {overlap:.6f}   largest deviation {100 * deviation:.2f} % of the peak"
    )
    print(f"  {'E(2) [kcal/mol]':48s}{'model':>8s}{'PySCF':>8s}")
    for key, energy in reference.energies.items():
        if energy < -SHOWN:
            print(f"  {key:48s}{model.energies[key]:8.2f}{energy:8.2f}")


def draw(path: Path, results: dict[str, tuple[Result, Result]]) -> None:
    """Profiles of both conformers, the model's as lines and PySCF's as points."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, width in zip(axes, (0.0, FWHM), strict=True):
        for (name, pair), colour in zip(results.items(), ("C0", "C3"), strict=True):
            model, reference = ((r.blurred if width else r.profile) for r in pair)
            axis.plot(MOMENTA, model, colour, label=f"{name}, model")
            axis.plot(MOMENTA[::4], reference[::4], "o", color=colour, ms=3, mfc="none", label=f"{name}, PySCF")
        axis.set_title(f"resolution {width:g} (full width at half maximum)" if width else "no resolution function")
        axis.set_xlabel(r"$p$ [$\hbar$/bohr]")
    axes[0].set_ylabel(r"$\rho(p)$ of the HOMO [bohr$^3$]")
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("ethanol_hyperconjugation.png"), help="plot")
    output = parser.parse_args().output
    model = mlsemi.load("organic-b3lyp-def2svp")
    basis, method = model.header.basis, model.header.method
    results = {}
    for name in CONFORMERS:
        (molecule,) = read_molecules(FOLDER / f"ethanol_{name}.xyz")
        reference = solve(molecule, basis, method=method).observables
        results[name] = analyse(model.predict(molecule), molecule, basis), analyse(reference, molecule, basis)
        report(name, *results[name])
    overlaps = [compare(results["gauche"][k].profile, results["trans"][k].profile)[0] for k in (0, 1)]
    print(f"\nHOMO profiles of gauche and trans: overlap model {overlaps[0]:.4f}   PySCF {overlaps[1]:.4f}")
    draw(output, results)
    print(f"plot: {output}")


if __name__ == "__main__":
    main()
