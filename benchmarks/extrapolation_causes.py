"""Where the errors beyond the training size come from, on the reference labels that `extrapolation.py` has kept.

    OMP_NUM_THREADS=1 python benchmarks/extrapolation_causes.py [--families alkane polyene peptide water]

Gap: to first order the error of an orbital energy is <i|dF|i> with the orbital of the reference, a sum over pairs of
atoms, which is split by their distance (`EDGES`). F0 has no exact exchange between atoms that do not overlap. What that
is worth between atoms far apart is seen by adding it in Löwdin's basis from the density of the predicted F, and solving
once more:

    K_AB = -a/2 D_AB / R_AB,    a: share of exact exchange, D: density of both spins,

switched on between `SWITCH`. Up to `VARIATIONAL_UP_TO` AOs also what it does to the `variational` energy.

`fast` energy, 1/2 Tr[(F0 + F)(D - D0)] and atomic energies: its error with the F of the model and the density of the
reference, the other way round, with both, and that of the atomic energies, which is the rest.

Water: error of the Löwdin charges of whole molecules by the number of oxygen atoms within `NEIGHBOUR`. The clusters of
the training have up to five molecules.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from extrapolation import SIZES
from larger_molecules import FAMILIES, heavy_atoms
from pyscf.dft.numint import NumInt
from scipy.linalg import eigh, sqrtm

from mlsemi.data.pack import whole_fock
from mlsemi.data.store import LabelStore
from mlsemi.energy import electronic_energy
from mlsemi.files import sha256_of, written_whole
from mlsemi.model import DEFAULT_MODEL, Model, find_model, load
from mlsemi.molecule import Molecule
from mlsemi.properties.populations import loewdin_charges
from mlsemi.reference.variational import variational
from mlsemi.state import solve_state
from mlsemi.train.evaluate import check_labels
from mlsemi.units import HARTREE_IN_EV, HARTREE_IN_KCAL_PER_MOL

ROOT = Path(__file__).resolve().parents[1]
EDGES = (9.0, 14.0, np.inf)
"""Upper ends of the classes of distance [bohr]: the organic model's `reach`, its `cutoff`, all."""

SWITCH = (8.0, 9.0)
"""Where the exchange of far pairs begins and where it is whole [bohr]."""


NEIGHBOUR = 3.0
"""Largest distance of the oxygen atoms of neighbours [angstrom]."""

VARIATIONAL_UP_TO = 250
"""AOs; a Fock build of the larger ones takes minutes."""


def smooth_step(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, two continuous derivatives."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t**3 * (10 - 15 * t + 6 * t**2)


def causes(model: Model, path: Path) -> dict[str, Any]:
    """Errors of the molecule of a label, by where they come from [Eh]."""
    header, engine = model.header, model.engine
    with LabelStore.open(path) as store, torch.no_grad():
        record = store.record(0)
        molecule, energy, stored = record.molecule, record.observables.energy, record.observables.fock
        assert energy is not None and stored is not None
        check_labels(header, store, [molecule])
        batch = engine.batch([molecule])
        prediction = engine(batch)
        baseline, overlap = prediction.integrals.baseline, prediction.state.overlap
        fock = whole_fock(store, torch.from_numpy(stored)[None], baseline.fock)
        reference = solve_state(fock, overlap, batch)
        electronic = [
            float(electronic_energy(baseline.fock, f.fock, baseline.density, d.density))
            for f in (reference, prediction.state)
            for d in (reference, prediction.state)
        ]
    wanted, found = fock[0, 0].double().numpy(), prediction.state.fock[0, 0].double().numpy()
    s, c = overlap[0].double().numpy(), reference.mo_coeff[0, 0].double().numpy()
    atom = np.repeat(np.arange(molecule.n_atoms), [header.basis.n_ao(z) for z in molecule.numbers.tolist()])
    distance = np.linalg.norm(molecule.positions[:, None] - molecule.positions, axis=-1)[np.ix_(atom, atom)]
    homo = molecule.n_electrons // 2 - 1

    def gap_error(matrix: np.ndarray) -> float:
        levels, exact = (eigh(f, s, eigvals_only=True) for f in (matrix, wanted))
        return float(np.diff(levels - exact)[homo])

    def by_distance(matrix: np.ndarray) -> list[float]:
        place = np.searchsorted(EDGES, distance)
        return [float(matrix[place == k].sum()) for k in range(len(EDGES))]

    share = exchange_share(header.method)
    root = np.real(sqrtm(s))
    density = root @ prediction.state.density[0, 0].double().numpy() @ root
    far = smooth_step(distance, *SWITCH) / np.maximum(distance, 1.0)
    exchanged = found - share / 2 * root @ (density * far) @ root
    energies: list[float | None] = [None, None]
    if len(s) <= VARIATIONAL_UP_TO:
        mended = solve_state(torch.from_numpy(exchanged)[None, None], overlap, batch)
        states = (prediction.state, mended)
        energies = [variational_error(x.density[0, 0].numpy(), molecule, model, energy) for x in states]
    charges = [loewdin_charges(x.density[:, 0], overlap, batch) for x in (prediction.state, reference)]
    charge = (charges[0] - charges[1]).numpy()
    orbitals = np.outer(c[:, homo + 1], c[:, homo + 1]) - np.outer(c[:, homo], c[:, homo])
    _, of_density, of_fock, both = np.array(electronic) - electronic[0]
    fast = float(prediction.energy) - energy
    return {
        "name": molecule.name,
        "n_atoms": molecule.n_atoms,
        "gap_error": gap_error(found),
        "gap_first_order": by_distance(orbitals * (found - wanted)),
        "h_per_atom": [v / molecule.n_atoms for v in by_distance(np.abs(found - wanted))],
        "variational_error": energies[0],
        "with_exchange": {
            "variational_error": energies[1],
            "gap_error": gap_error(exchanged),
            "gap_first_order": by_distance(orbitals * (exchanged - wanted)),
            "h_per_atom": [v / molecule.n_atoms for v in by_distance(np.abs(exchanged - wanted))],
        },
        "by_neighbours": by_neighbours(molecule, charge) if path.name.startswith("water") else [],
        "fast_error": fast,
        "fast_of_fock": float(of_fock),
        "fast_of_density": float(of_density),
        "fast_of_both": float(both),
        "fast_of_atomic_energies": fast - float(both),
    }


def variational_error(density: np.ndarray, molecule: Molecule, model: Model, energy: float) -> float:
    """Of the energy at a density [Eh]."""
    return variational(molecule, model.header.basis, density, method=model.header.method).energy - energy


def by_neighbours(molecule: Molecule, charge: np.ndarray) -> list[dict[str, Any]]:
    """Rms of the charges of whole molecules of water, given those of atoms [e], by the number of their neighbours."""
    oxygen = np.flatnonzero(molecule.numbers == 8)
    positions = molecule.positions_angstrom
    distance = np.linalg.norm(positions[oxygen, None] - positions, axis=-1)
    whole = np.bincount(distance.argmin(axis=0), charge)
    neighbours = (distance[:, oxygen] < NEIGHBOUR).sum(axis=1) - 1
    classes = ((int(n), whole[neighbours == n]) for n in np.unique(neighbours))
    return [{"neighbours": n, "molecules": len(q), "rms_charge": float(np.sqrt((q**2).mean()))} for n, q in classes]


def exchange_share(method: str) -> float:
    """Share of exact exchange at all distances.

    Raises:
        ValueError: for a range-separated functional.
    """
    if method == "hf":
        return 1.0
    omega, _, share = NumInt().rsh_and_hybrid_coeff(method)
    if omega:
        raise ValueError(f"{method} is range-separated, which this script does not know")
    return float(share)


def per_atom(part: dict[str, Any], row: dict[str, Any]) -> str:
    """`variational` error for an atom [kcal/mol]."""
    error = part["variational_error"]
    return "-" if error is None else f"{error / row['n_atoms'] * HARTREE_IN_KCAL_PER_MOL:.4f}"


def show(rows: dict[str, Any]) -> None:
    """The tables."""
    print(f"\n| molecule | gap, eV | of it pairs up to {EDGES[0]:g} bohr | beyond | with exchange of far pairs "
          f"| H beyond {EDGES[0]:g} bohr, mEh an atom | with exchange | variational, kcal/mol/atom | with exchange |\n"
          + "|---" * 9 + "|")  # fmt: skip
    for key, row in rows.items():
        other, ev = row["with_exchange"], HARTREE_IN_EV
        first = row["gap_first_order"]
        print(f"| {key} | {row['gap_error'] * ev:.3f} | {first[0] * ev:.3f} | {sum(first[1:]) * ev:.3f} "
              f"| {other['gap_error'] * ev:.3f} | {sum(row['h_per_atom'][1:]) * 1e3:.1f} "
              f"| {sum(other['h_per_atom'][1:]) * 1e3:.1f} "
              f"| {per_atom(row, row)} | {per_atom(other, row)} |")  # fmt: skip
    print("\n| molecule | fast, kcal/mol | F of the model, density of the reference | the other way round | both "
          "| atomic energies |\n|---|---|---|---|---|---|")  # fmt: skip
    for key, row in rows.items():
        names = ("error", "of_fock", "of_density", "of_both", "of_atomic_energies")
        values = (f"{row[f'fast_{name}'] * HARTREE_IN_KCAL_PER_MOL:.1f}" for name in names)
        print(f"| {key} | {' | '.join(values)} |")
    for key, row in rows.items():
        for part in row["by_neighbours"]:
            print(f"{key}: {part['molecules']} molecules with {part['neighbours']} neighbours, "
                  f"charge {part['rms_charge'] * 1e3:.1f} me")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """All molecules whose reference is at hand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "extrapolation", help="where the labels are")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "extrapolation_causes.json")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = load(arguments.model)
    level = f"{model.header.method}_{model.header.basis.name}"
    paths = {
        f"{family} {heavy}": arguments.work / f"{family}_{heavy}_{level}.h5"
        for family in arguments.families
        for heavy in (heavy_atoms(family, size) for size in SIZES)
    }
    rows = {key: causes(model, path) for key, path in paths.items() if path.is_file()}
    if not rows:
        parser.error(f"no label in {arguments.work}: run extrapolation.py first")
    digest = sha256_of(find_model(arguments.model))
    with written_whole(arguments.out) as beside:
        beside.write_text(json.dumps({"model": model.name, "sha256": digest, "molecules": rows}, indent=1) + "\n")
    show(rows)
    missing = sorted(set(paths) - set(rows))
    print(f"\n{arguments.out}" + (f"; no label of {', '.join(missing)}" if missing else ""))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
