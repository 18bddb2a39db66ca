"""Labels against rMD17's own energies and forces: a check of the whole label chain by another program.

    python benchmarks/md17/check_labels.py NPZ LABELS.h5 [-o OUT.json]

rMD17 holds energies [kcal/mol] and forces [kcal/mol/angstrom] of the same level, PBE/def2-SVP, by ORCA. Its total
energies differ by a constant: the mean difference is given, and errors are those after it is taken off. Each label is
compared with the frame that has its geometry, wherever that stands in the file. Forces are compared where labels have
gradients (`mlsemi label --gradient`).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from mlsemi.data.store import LabelStore
from mlsemi.files import written_whole
from mlsemi.units import BOHR_IN_ANGSTROM, HARTREE_IN_EV, HARTREE_IN_KCAL_PER_MOL

SAME = 1e-5
"""Geometries are the same if no coordinate differs by more [angstrom]; frames of rMD17 differ by 0.01 and more."""

MEV_PER_KCAL = 1e3 * HARTREE_IN_EV / HARTREE_IN_KCAL_PER_MOL


def read_frames(path: Path) -> dict[str, np.ndarray]:
    """Numbers, coordinates [angstrom], energies [kcal/mol] and forces [kcal/mol/angstrom] of an rMD17 file.

    Raises:
        ValueError: if it lacks one of them, or their shapes do not fit.
    """
    names = ("nuclear_charges", "coords", "energies", "forces")
    try:
        opened = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not an npz file") from error
    with opened as file:
        missing = [name for name in names if name not in file.files]
        if missing:
            raise ValueError(f"{path} has no {', '.join(missing)}; it has {', '.join(file.files)}")
        found = {name: file[name] for name in names}
    n_frames, n_atoms = len(found["coords"]), len(found["nuclear_charges"])
    wanted = {"coords": (n_frames, n_atoms, 3), "energies": (n_frames,), "forces": (n_frames, n_atoms, 3)}
    for name, shape in wanted.items():
        if found[name].shape != shape:
            raise ValueError(f"{path}: {name} must have shape {shape}, got {found[name].shape}")
    return found


def frames_of(store: LabelStore, frames: dict[str, np.ndarray]) -> np.ndarray:
    """The frame that has the geometry of each label, shape (label,).

    Raises:
        ValueError: for labels of other molecules, or of geometries that are not among the frames.
    """
    coords, numbers = frames["coords"], frames["nuclear_charges"]
    molecules = [store.molecule(i) for i in range(len(store))]
    others = [m for m in molecules if not np.array_equal(m.numbers, numbers)]
    if others:
        raise ValueError(
            f"{len(others)} of {len(molecules)} labels in {store.path} are of other atoms, or of another order of "
            f"them, than the frames, the first: {others[0].name or others[0].formula}"
        )
    tree = cKDTree(coords.reshape(len(coords), -1))
    wanted = np.array([m.positions_angstrom.ravel() for m in molecules])
    distance, frame = tree.query(wanted, p=np.inf)
    if (distance > SAME).any():
        first = molecules[int(np.argmax(distance > SAME))]
        raise ValueError(
            f"{(distance > SAME).sum()} of {len(molecules)} labels in {store.path} have a geometry that is not among "
            f"the frames (within {SAME:g} angstrom), the first: {first.name}; is it the file that was labelled?"
        )
    if len(set(frame.tolist())) < len(frame):
        raise ValueError(f"two labels in {store.path} have the geometry of one frame: the frames hold it once only")
    return frame


def spread(values: np.ndarray) -> dict[str, float]:
    """MAE, rms and maximum."""
    size = np.abs(values)
    return {"mae": float(size.mean()), "rms": float(np.sqrt((size**2).mean())), "max": float(size.max())}


def compare(store: LabelStore, frames: dict[str, np.ndarray]) -> dict[str, Any]:
    """Labels minus rMD17: energies [kcal/mol], force components [meV/angstrom]."""
    place = frames_of(store, frames)
    observables = [store.observables(i) for i in range(len(store))]
    energies = np.array([o.energy for o in observables], dtype=float) * HARTREE_IN_KCAL_PER_MOL
    difference = energies - frames["energies"][place]
    offset = float(difference.mean())
    found: dict[str, Any] = {
        "labels": len(store),
        "failed": store.n_failures,
        "in_order": bool((np.diff(place) > 0).all()),
        "offset_kcal_per_mol": offset,
        "energy_kcal_per_mol": spread(difference - offset),
    }
    with_gradient = [k for k, o in enumerate(observables) if o.gradient is not None]
    if with_gradient:
        to_kcal = HARTREE_IN_KCAL_PER_MOL / BOHR_IN_ANGSTROM
        forces = np.array([-np.asarray(observables[k].gradient) * to_kcal for k in with_gradient])
        errors = (forces - frames["forces"][place[with_gradient]]) * MEV_PER_KCAL
        found["gradients"] = len(with_gradient)
        found["force_meV_per_angstrom"] = spread(errors)
    return found


def show(found: dict[str, Any]) -> None:
    """The table."""
    to_milli = 1e3 / HARTREE_IN_KCAL_PER_MOL
    energy, offset = found["energy_kcal_per_mol"], found["offset_kcal_per_mol"]
    where = "in their order" if found["in_order"] else "in another order"
    print(f"{found['labels']} labels, each with its frame, {where}; {found['failed']} failed")
    print(f"mean offset {offset:.4f} kcal/mol ({offset * to_milli:.4f} mEh)\n")
    print("| labels minus rMD17 | MAE | rms | maximum |\n|---|---|---|---|")
    for unit, factor in (("kcal/mol", 1.0), ("mEh", to_milli)):
        print(f"| energy after the offset, {unit} | {' | '.join(f'{v * factor:.4f}' for v in energy.values())} |")
    if "gradients" in found:
        force = found["force_meV_per_angstrom"]
        for unit, factor in (("meV/angstrom", 1.0), ("kcal/mol/angstrom", 1 / MEV_PER_KCAL)):
            print(f"| force components, {unit} | {' | '.join(f'{v * factor:.4f}' for v in force.values())} |")
        print(f"\nforces: {found['gradients']} labels with gradients")
    else:
        print("\nno label has a gradient: forces were not compared")


def main() -> None:
    """Compares, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames", type=Path, metavar="NPZ", help="rMD17 file with coords, energies, forces")
    parser.add_argument("labels", type=Path, metavar="LABELS.h5", help="label file that was made of it")
    parser.add_argument("-o", "--out", type=Path, help="JSON file")
    arguments = parser.parse_args()
    try:
        with LabelStore.open(arguments.labels) as store:
            found = {"frames": arguments.frames.name, "labels_file": arguments.labels.name, "level": store.level}
            found |= compare(store, read_frames(arguments.frames))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    show(found)
    if arguments.out:
        with written_whole(arguments.out) as path:
            path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
