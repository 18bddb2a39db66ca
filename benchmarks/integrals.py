"""Time of the Gaussian integrals per molecule: overlap and kinetic energy, with dipole, neutral-atom Coulomb.

    OMP_NUM_THREADS=1 python benchmarks/integrals.py --geometries FOLDER

FOLDER holds water/water_500K_train.npz and rmd17/rmd17_{ethanol,aspirin}_train01.npz (coords [angstrom],
nuclear_charges). Times are those of the processor, of one thread, the least of several runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mlsemi.basis import load_basis
from mlsemi.batch import Batch
from mlsemi.integrals import IntegralPlan, coulomb, one_electron, plan
from mlsemi.molecule import Molecule

FILES = {
    "water": "water/water_500K_train.npz",
    "ethanol": "rmd17/rmd17_ethanol_train01.npz",
    "aspirin": "rmd17/rmd17_aspirin_train01.npz",
}
FITTED = (0.3, 0.8, 2.5, 8.0, 25.0, 90.0)
"""Exponents of the electrons of a neutral atom with Z = 6; three of them for hydrogen. Typical, no fit."""


def neutral_atoms(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """omega^2 and weights of a nucleus and the Gaussians that neutralize it, shape (atom, 7) each."""
    z = numbers.double()[:, None]
    omega2 = torch.cat([torch.full_like(z, torch.inf), torch.tensor(FITTED, dtype=torch.float64) * z / 6], 1)
    weight = torch.cat([-z, (z / 6).expand(-1, 6)], 1)
    hydrogen = numbers == 1
    weight[hydrogen, 1:4], weight[hydrogen, 4:] = 1 / 3, 0.0
    return omega2, weight


def milliseconds(run: Callable[[], object], repeat: int) -> float:
    """Least processor time of a call [ms]."""
    times = []
    for _ in range(repeat):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def measure(batch: Batch, tables: IntegralPlan, repeat: int) -> list[float]:
    """Forward, and forward and backward, per molecule [ms], of the three jobs in turn."""
    omega2, weight = neutral_atoms(batch.numbers)

    def local(b: Batch) -> Tensor:
        overlaps, kinetics, _ = one_electron(b, tables)
        return overlaps.sum() + kinetics.sum()

    def with_dipole(b: Batch) -> Tensor:
        overlaps, kinetics, dipoles = one_electron(b, tables, with_dipole=True)
        assert dipoles is not None
        return overlaps.sum() + kinetics.sum() + dipoles.sum()

    def potential(b: Batch) -> Tensor:
        return coulomb(b, tables, b.positions, b.molecule, omega2, weight).sum()

    out = []
    leaf = batch.with_positions(batch.positions.clone().requires_grad_())
    for job in (local, with_dipole, potential):
        out.append(milliseconds(lambda job=job: job(batch), repeat))
        out.append(milliseconds(lambda job=job: job(leaf).backward(), repeat))
    return [x / batch.n_molecules for x in out]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometries", type=Path, required=True)
    parser.add_argument("--basis", default="def2-svp")
    parser.add_argument("--molecules", nargs="+", default=list(FILES), choices=list(FILES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 50])
    parser.add_argument("--repeat", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    basis = load_basis(arguments.basis)
    print(f"{arguments.basis}, one thread, processor time per molecule [ms]: forward, forward + backward")
    print(f"{'':8s} {'batch':>5s} {'S, T':>14s} {'S, T, dipole':>14s} {'Coulomb':>14s}")
    for name in arguments.molecules:
        data = np.load(arguments.geometries / FILES[name])
        for size in arguments.batches:
            frames = [Molecule.from_angstrom(data["nuclear_charges"], x) for x in data["coords"][:size]]
            batch = Batch.of(frames, basis)
            times = measure(batch, plan(batch), arguments.repeat)
            columns = " ".join(f"{a:6.2f} {b:7.2f}" for a, b in zip(times[::2], times[1::2], strict=True))
            print(f"{name:8s} {size:5d} {columns}", flush=True)


if __name__ == "__main__":
    main()
