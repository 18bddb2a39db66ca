"""Bond lengths and angles of ethanol's minimum in the fast mode against those of PySCF at the same level.

    OMP_NUM_THREADS=1 python benchmarks/geometry.py [--models ethanol-pbe-def2svp organic-b3lyp-def2svp]

Both are relaxed by ASE's BFGS until no force is above 2e-3 eV/angstrom: first in the fast mode, from the geometry of
the examples; from there on PySCF's surface (mode `scf`). Writes benchmarks/results/geometry.json.
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list
from ase.optimize import BFGS

from mlsemi.files import written_whole
from mlsemi.interop.ase import read_molecules
from mlsemi.interop.ase.calculator import MlsemiCalculator
from mlsemi.model import Mode

ROOT = Path(__file__).resolve().parents[1]
LARGEST_FORCE = 2e-3


def minimum(atoms: Atoms, model: str, mode: Mode) -> Atoms:
    """The relaxed molecule."""
    out = atoms.copy()
    out.calc = MlsemiCalculator(model, mode=mode)
    if not BFGS(out, logfile="-").run(fmax=LARGEST_FORCE, steps=100):
        raise RuntimeError(f"{model}, {mode}: not relaxed after 100 steps")
    return out


def internal(atoms: Atoms, bonds: list[tuple[int, int]]) -> dict[str, float]:
    """Lengths [angstrom] and angles [degree] by the numbers of their atoms."""
    found = {f"{i}-{j}": float(atoms.get_distance(i, j)) for i, j in bonds}
    for centre in range(len(atoms)):
        ends = sorted({i + j - centre for i, j in bonds if centre in (i, j)})
        found |= {f"{i}-{centre}-{j}": float(atoms.get_angle(i, centre, j)) for i, j in combinations(ends, 2)}
    return found


def main() -> None:
    """Relaxes, compares, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["ethanol-pbe-def2svp", "organic-b3lyp-def2svp"])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "geometry.json")
    arguments = parser.parse_args()
    molecule = read_molecules(ROOT / "examples" / "ethanol.xyz")[0]
    start = Atoms(numbers=molecule.numbers, positions=molecule.positions_angstrom)
    first, second = neighbor_list("ij", start, [1.2 * radius for radius in natural_cutoffs(start)])
    bonds = [(int(i), int(j)) for i, j in zip(first, second, strict=True) if i < j]
    rows = []
    for model in arguments.models:
        fast = minimum(start, model, "fast")
        exact = minimum(fast, model, "scf")
        found, wanted = (internal(atoms, bonds) for atoms in (fast, exact))
        error = {name: found[name] - wanted[name] for name in found}
        lengths, angles = ([abs(v) for k, v in error.items() if k.count("-") == n] for n in (1, 2))
        rows.append({"model": model, "fast": found, "pyscf": wanted})
        print(
            f"{model}: bonds within {max(lengths):.4f} angstrom (mean {np.mean(lengths):.4f}), angles within "
            f"{max(angles):.2f} degrees (mean {np.mean(angles):.2f})"
        )
    with written_whole(arguments.out) as beside:
        Path(beside).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
