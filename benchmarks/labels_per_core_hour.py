"""Labels per core-hour of `mlsemi label`'s SCF against plain PySCF, one thread, same geometries, alternating.

Run: OMP_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483648 python benchmarks/labels_per_core_hour.py
(the environment that the label farm gives its workers; here both sides have it). CPU time, smallest of the repetitions.
"""

import argparse
import time

import numpy as np
from pyscf import dft, lib

from mlsemi.basis import load_basis
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.reference.mean_field import solve, to_pyscf_mole
from mlsemi.reference.two_grid import commutator

MOLECULES = {
    "water": ([8, 1, 1], [[0.0, 0.0, 0.12], [0.0, 0.78, -0.46], [0.05, -0.75, -0.5]]),
    "ethanol": (
        [6, 6, 8, 1, 1, 1, 1, 1, 1],
        [
            [1.17, -0.40, 0.02], [-0.03, 0.55, 0.01], [-1.20, -0.25, -0.02], [2.10, 0.18, 0.03], [1.15, -1.04, 0.91],
            [1.17, -1.06, -0.87], [0.02, 1.20, 0.90], [-0.01, 1.20, -0.88], [-1.99, 0.31, 0.03],
        ],
    ),
}  # fmt: skip


def plain(molecule, basis, method):
    """PySCF's SCF with its defaults, and what a label holds."""
    field = dft.RKS(to_pyscf_mole(molecule, basis), xc=method)
    energy = field.kernel()
    fock, density = field.get_fock(), field.make_rdm1()
    residual = np.abs(commutator(fock, density, field.get_ovlp())).max()
    return energy, AOLayout(basis, molecule.numbers).from_pyscf(fock), residual


def measured(run, repetitions):
    """Result, and smallest CPU time [s] and wall time [s]."""
    cpu, wall, results = [], [], []
    for _ in range(repetitions):
        c, w = time.process_time(), time.perf_counter()
        results.append(run())
        cpu.append(time.process_time() - c)
        wall.append(time.perf_counter() - w)
    return results[-1], min(cpu), min(wall)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=4)
    repetitions = parser.parse_args().repetitions
    lib.num_threads(1)
    basis = load_basis("def2-svp")
    print(
        "| molecule | method | PySCF: CPU s, residual | mlsemi: CPU s, residual | per core-hour | ratio | max dF, dE |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, (numbers, positions) in MOLECULES.items():
        molecule = Molecule.from_angstrom(np.array(numbers), np.array(positions))
        for method in ("pbe", "b3lyp"):
            result, ours, _ = measured(lambda m=molecule, x=method: solve(m, basis, method=x), repetitions)
            (energy, fock, residual), theirs, _ = measured(lambda m=molecule, x=method: plain(m, basis, x), repetitions)
            obs = result.observables
            print(
                f"| {name} | {method} | {theirs:.2f}, {residual:.0e} | {ours:.2f}, {obs.residual:.0e} "
                f"| {3600 / theirs:.0f} -> {3600 / ours:.0f} | {theirs / ours:.1f} "
                f"| {np.abs(obs.fock[0] - fock).max():.0e}, {abs(obs.energy - energy):.0e} Eh |",
                flush=True,
            )


if __name__ == "__main__":
    main()
