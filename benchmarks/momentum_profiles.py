"""HOMO momentum profiles on molecules that the organic model has not seen, against those of the reference labels.

One geometry, the first, of every test molecule (`mlsemi.data.split`) of the label files whose density is unique. The
reference orbitals are those of the stored Fock matrices; no SCF is run.

    python benchmarks/momentum_profiles.py reference_data/organic/organic_b3lyp_def2svp{,_a,_b}.h5
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import mlsemi
from mlsemi.data.pack import whole_fock
from mlsemi.data.split import split_of
from mlsemi.data.store import LabelStore
from mlsemi.engine import Engine
from mlsemi.integrals import overlap, plan
from mlsemi.properties.momentum import profiles
from mlsemi.state import solve_state
from mlsemi.units import HARTREE_IN_EV

MOMENTA = np.linspace(0.0, 3.0, 121)


def compare(engine: Engine, store: LabelStore, i: int) -> tuple[float, float, float]:
    """Overlap of the two profiles, largest deviation [of the peak], error of the HOMO energy [eV]."""
    molecule = store.molecule(i)
    batch = engine.batch([molecule])
    prediction = engine(batch)
    n = int(batch.n_ao[0])
    stored = torch.as_tensor(np.asarray(store.fock_values(i))).double().reshape(1, -1, n, n)
    fock = whole_fock(store, stored, prediction.integrals.baseline.fock)
    reference = solve_state(fock, overlap(batch, plan(batch)), batch)
    homo = molecule.n_electrons // 2 - 1
    p = torch.from_numpy(MOMENTA)
    a, b = (profiles(batch, s.mo_coeff[..., [homo]], p)[0, 0, 0].numpy() for s in (prediction.state, reference))
    weight = MOMENTA**2
    shared = (weight * a * b).sum() / np.sqrt((weight * a * a).sum() * (weight * b * b).sum())
    error = float(prediction.state.mo_energy[0, 0, homo] - reference.mo_energy[0, 0, homo]) * HARTREE_IN_EV
    return float(shared), float(np.abs(a - b).max() / b.max()), error


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path, nargs="+", help="label files")
    paths = parser.parse_args().labels
    engine = mlsemi.load("organic-b3lyp-def2svp").engine
    rows: dict[str, tuple[float, float, float]] = {}
    with torch.no_grad():
        for path in paths:
            with LabelStore.open(path) as store:
                for i in range(len(store)):
                    name = store.molecule(i).name
                    if name not in rows and split_of(name) == "test" and not store.is_degenerate(i):
                        rows[name] = compare(engine, store, i)
    shared, deviation, error = np.array(list(rows.values())).T
    print(f"{len(rows)} molecules")
    print(f"overlap of profiles: median {np.median(shared):.6f}, 5 % below {np.quantile(shared, 0.05):.6f}")
    middle, mean, tail = 100 * np.median(deviation), 100 * deviation.mean(), 100 * np.quantile(deviation, 0.95)
    print(f"largest deviation [% of the peak]: median {middle:.1f}, mean {mean:.1f}, 5 % above {tail:.1f}")
    print(f"HOMO energy [eV]: mean absolute error {np.abs(error).mean():.3f}, largest {np.abs(error).max():.3f}")
    for name in sorted(rows, key=lambda n: rows[n][0])[:3]:
        print(f"worst: {name:16s} overlap {rows[name][0]:.4f}, deviation {100 * rows[name][1]:.0f} %")


if __name__ == "__main__":
    main()
