"""Nuclear gradients for a part of the organic labels: which geometries, and how they come into the label files.

    python benchmarks/organic/gradients.py geometries LABELS.h5 ... -o gradients.xyz
    mlsemi label gradients.xyz -o gradients.h5 --method b3lyp --basis def2-svp --residual-tol 1e-5 --gradient
    python benchmarks/organic/gradients.py merge LABELS.h5 gradients.h5 -o MERGED.h5 [--quantum 5e-6]

`geometries` takes training and validation molecules, the smallest first: the first `--each` geometries of those with
up to `--small` heavy atoms, one of the larger ones. No test molecule is among them. `merge` writes a label file anew,
with a gradient wherever the geometry is the same to 1e-6 bohr; everything else is kept, and the steps of the stored
F - F0 only where `--quantum` asks for coarser ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from mlsemi.data.smiles import side_of
from mlsemi.data.store import LabelStore, Record, write_store
from mlsemi.files import written_whole
from mlsemi.molecule import Molecule

SAME = 1e-6
"""Geometries that differ by less [bohr] are one."""


def heavy_atoms(molecule: Molecule) -> int:
    """Number of atoms other than hydrogen."""
    return int((molecule.numbers > 1).sum())


def chosen(paths: list[Path], *, each: int, small: int, largest: int) -> list[Molecule]:
    """The geometries, the smallest molecules first."""
    found: dict[str, list[Molecule]] = {}
    for path in paths:
        with LabelStore.open(path) as store:
            for i in range(len(store)):
                molecule = store.molecule(i)
                of_it = found.setdefault(molecule.name, [])
                wanted = each if heavy_atoms(molecule) <= small and side_of(molecule) == "train" else 1
                if side_of(molecule) != "test" and heavy_atoms(molecule) <= largest and len(of_it) < wanted:
                    of_it.append(molecule)
    return sorted((m for of_it in found.values() for m in of_it), key=lambda m: (heavy_atoms(m), m.n_atoms))


def merge(labels: Path, gradients: Path, output: Path, quantum: float | None) -> int:
    """Writes `labels` anew with the gradients; returns how many there are now."""
    with LabelStore.open(gradients) as store:
        method, known = store.method, {}
        for record in store.all_records():
            if record.observables.gradient is not None:
                known.setdefault(record.molecule.name, []).append((record.molecule, record.observables.gradient))
    count = 0
    with LabelStore.open(labels) as store:
        store.check(method=method)

        def merged() -> Iterator[Record]:
            nonlocal count
            for row in range(len(store) + store.n_failures):
                record = store.any_record(row)
                for molecule, gradient in known.get(record.molecule.name, []):
                    same = molecule.n_atoms == record.molecule.n_atoms
                    if same and np.abs(molecule.positions - record.molecule.positions).max() < SAME:
                        record = replace(record, observables=replace(record.observables, gradient=gradient))
                        count += 1
                yield record

        attrs = {**store.attrs, "gradient": True}
        step = quantum or store.fock_quantum
        write_store(output, merged(), attrs, fock_encoding=store.fock_encoding, fock_quantum=step)
    return count


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("geometries")
    first.add_argument("labels", type=Path, nargs="+")
    first.add_argument("-o", "--output", type=Path, required=True)
    first.add_argument("--each", type=int, default=3, help="geometries of each small molecule")
    first.add_argument("--small", type=int, default=3, help="heavy atoms of a small molecule")
    first.add_argument("--largest", type=int, default=4, help="heavy atoms of the largest molecules")
    second = commands.add_parser("merge")
    second.add_argument("labels", type=Path)
    second.add_argument("gradients", type=Path)
    second.add_argument("-o", "--output", type=Path, required=True)
    second.add_argument("--quantum", type=float, help="coarser steps of F - F0 [Eh]")
    arguments = parser.parse_args()
    if arguments.command == "geometries":
        found = chosen(arguments.labels, each=arguments.each, small=arguments.small, largest=arguments.largest)
        with written_whole(arguments.output) as beside:
            Path(beside).write_text("".join(m.to_xyz(f'smiles="{m.name}"') for m in found))
        print(f"{len(found)} geometries of {len({m.name for m in found})} molecules: {arguments.output}")
    else:
        count = merge(arguments.labels, arguments.gradients, arguments.output, arguments.quantum)
        print(f"{count} gradients, {arguments.output.stat().st_size / 1e6:.2f} MB: {arguments.output}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
