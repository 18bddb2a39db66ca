"""Packs a label file for `reference_data/`: residuals to F0 as integers, checked against the original.

    python benchmarks/pack_labels.py LABELS OUT --quantum 1e-7 [--model MODEL]

Without a model F0 is computed for the basis and the elements of the labels.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import mlsemi.checkpoint
from mlsemi.data.pack import pack_residuals
from mlsemi.data.store import LabelStore
from mlsemi.engine import Engine
from mlsemi.nn.network import NetworkConfig

_SMALL = NetworkConfig(natural=4, unnatural=2, bond=(4, 2, 2), layers=1, product=2, radial=8, n_radial=8)
"""The network plays no part in F0."""


def main() -> None:
    """Reads the command line, packs, prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path, help="label file with whole Fock matrices")
    parser.add_argument("out", type=Path, help="the packed file")
    parser.add_argument("--quantum", type=float, default=1e-6, help="step of the stored F - F0 [Eh]")
    parser.add_argument("--model", type=Path, help="checkpoint whose baseline is taken")
    parser.add_argument("--gradients", action="store_true", help="keep nuclear gradients")
    arguments = parser.parse_args()
    with LabelStore.open(arguments.labels) as store:
        if arguments.model:
            engine = mlsemi.checkpoint.load(arguments.model)[1]
        else:
            elements = sorted({z for i in range(len(store)) for z in store.molecule(i).numbers.tolist()})
            engine = Engine(store.basis, tuple(elements), _SMALL)
        deviation = pack_residuals(
            store,
            arguments.out,
            engine,
            quantum=arguments.quantum,
            gradients=arguments.gradients,
            report=lambda done, of: print(f"\r{done}/{of}", end="", file=sys.stderr, flush=True),
        )
        print(file=sys.stderr)
        first = range(min(len(store), 100))
        n_aos = sum(store.basis.n_ao(z) for i in first for z in store.molecule(i).numbers.tolist()) / len(first)
        print(
            f"{len(store)} labels ({n_aos:.0f} AOs on average of the first 100), quantum {arguments.quantum:g} Eh, "
            f"largest deviation {deviation:.2e} Eh, {arguments.labels.stat().st_size / 1e6:.2f} MB -> "
            f"{arguments.out.stat().st_size / 1e6:.2f} MB: {arguments.out}"
        )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
