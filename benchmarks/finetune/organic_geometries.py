"""Geometries of the organic fine-tuning: molecules of the organic labels with up to four heavy atoms.

    python benchmarks/finetune/organic_geometries.py reference_data/organic/organic_b3lyp_def2svp.h5 ... -o FOLDER

writes, by the same split as that of the organic model: `train.xyz`, training and validation molecules with up to three
heavy atoms, at the GFN2-xTB minimum that their SMILES leads to; `larger.xyz` and `validation.xyz`, the same of 60
training molecules and of the validation molecules with four; `test.xyz`, test molecules with up to four heavy atoms at
such minima: those with up to three first, then those with the most isomers among them, so that the first so many make
many isomerizations. Within each, a hash of the SMILES gives the order.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from pathlib import Path

from mlsemi.data.smiles import side_of
from mlsemi.data.store import LabelStore
from mlsemi.files import written_whole
from mlsemi.molecule import Molecule
from mlsemi.reference.sampling import NotIntactError, geometry_from_smiles, relaxed

SMALL, LARGEST = 3, 4
LARGER = 60


def first_geometries(paths: list[Path]) -> dict[str, Molecule]:
    """The first geometry of each molecule of some label files, by SMILES."""
    found: dict[str, Molecule] = {}
    for path in paths:
        with LabelStore.open(path) as store:
            for i in range(len(store)):
                molecule = store.molecule(i)
                if molecule.n_heavy_atoms <= LARGEST:
                    found.setdefault(molecule.name, molecule)
    return found


def minima(names: list[str]) -> list[Molecule]:
    """GFN2-xTB minima by SMILES; a line names those left out because they do not keep their bonds."""
    found = []
    for smiles in names:
        try:
            found.append(relaxed(geometry_from_smiles(smiles)))
        except NotIntactError as error:
            print(f"left out: {error}", flush=True)
    return found


def main() -> None:
    """Reads the command line and writes the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    molecules = first_geometries(arguments.labels)
    order = sorted(molecules, key=lambda s: (molecules[s].n_heavy_atoms, hashlib.sha256(s.encode()).hexdigest()))
    small = [s for s in order if molecules[s].n_heavy_atoms <= SMALL]
    seen = [s for s in order if side_of(molecules[s]) != "test"]
    unseen = [s for s in order if side_of(molecules[s]) == "test"]
    isomers = Counter(molecules[s].formula for s in unseen if s not in small)
    larger = sorted(
        (s for s in unseen if s not in small), key=lambda s: (-isomers[molecules[s].formula], molecules[s].formula)
    )
    sets = {
        "train": minima([s for s in seen if s in small]),
        "larger": minima([s for s in seen if s not in small and side_of(molecules[s]) == "train"][:LARGER]),
        "validation": minima([s for s in seen if s not in small and side_of(molecules[s]) == "validation"]),
        "test": minima([s for s in small if s in unseen] + larger),
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, geometries in sets.items():
        with written_whole(arguments.output / f"{name}.xyz") as beside:
            Path(beside).write_text("".join(m.to_xyz(f'smiles="{m.name}"') for m in geometries))
        print(f"{name}: {len(geometries)} geometries")


if __name__ == "__main__":
    main()
