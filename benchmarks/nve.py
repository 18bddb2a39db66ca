"""Dynamics at constant energy on the surface of the fast mode: the drift of the total energy.

    OMP_NUM_THREADS=1 python benchmarks/nve.py [--molecules water ethanol] [--picoseconds 10]

Velocity Verlet (ASE), 0.5 fs, from the minimum of the fast mode with velocities of 500 K, half of which goes into the
potential. The drift is the slope of the total energy against time by least squares, for each atom; its scatter is the
standard deviation about that line. Writes benchmarks/results/nve.json; rows of other molecules stay.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import ase.units
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from mlsemi.files import written_whole
from mlsemi.interop.ase import read_molecules
from mlsemi.model import Model, load
from mlsemi.molecule import Molecule
from mlsemi.units import BOHR_IN_ANGSTROM, HARTREE_IN_EV

ROOT = Path(__file__).resolve().parents[1]
MODELS = {"water": "water-pbe-def2svp", "ethanol": "organic-b3lyp-def2svp"}
STEP_FS = 0.5
TEMPERATURE = 500.0


class Fast(Calculator):
    """Energy and forces of the fast mode."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012  # as in ASE

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:  # noqa: ANN001
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        molecule = Molecule.from_angstrom(self.atoms.numbers, self.atoms.positions)
        found = self.model.predict(molecule, forces=True, estimate=False)
        assert found.energy is not None and found.gradient is not None
        self.results["energy"] = found.energy * HARTREE_IN_EV
        self.results["forces"] = -found.gradient * HARTREE_IN_EV / BOHR_IN_ANGSTROM


def run(name: str, picoseconds: float, *, precision: str) -> dict[str, float | str]:
    """One trajectory, and what its energy did."""
    molecule = read_molecules(ROOT / "examples" / f"{name}.xyz")[0]
    atoms = Atoms(numbers=molecule.numbers, positions=molecule.positions_angstrom)
    atoms.calc = Fast(load(MODELS[name], precision=precision))
    BFGS(atoms, logfile=None).run(fmax=0.01, steps=200)
    MaxwellBoltzmannDistribution(atoms, temperature_K=TEMPERATURE, rng=np.random.default_rng(0))
    Stationary(atoms)
    ZeroRotation(atoms)
    steps = round(1000 * picoseconds / STEP_FS)
    energies, temperatures = [], []

    def note() -> None:
        energies.append(atoms.get_total_energy() / HARTREE_IN_EV)
        temperatures.append(atoms.get_temperature())
        if len(energies) % 500 == 0:
            print(f"\r{name}: {len(energies)}/{steps} steps", end="", flush=True)

    dynamics = VelocityVerlet(atoms, timestep=STEP_FS * ase.units.fs)
    dynamics.attach(note)
    start = time.perf_counter()
    dynamics.run(steps)
    seconds = time.perf_counter() - start
    times = np.arange(len(energies)) * STEP_FS / 1000
    energy = np.array(energies) / len(atoms)
    slope, offset = np.polyfit(times, energy, 1)
    print()
    return {
        "molecule": name,
        "model": MODELS[name],
        "precision": precision,
        "picoseconds": picoseconds,
        "step_fs": STEP_FS,
        "mean_temperature_K": float(np.mean(temperatures)),
        "drift_Eh_per_atom_per_ps": float(slope),
        "scatter_Eh_per_atom": float(np.std(energy - slope * times - offset)),
        "end_minus_start_Eh_per_atom": float(energy[-100:].mean() - energy[:100].mean()),
        "ms_per_step": 1000 * seconds / steps,
    }


def main() -> None:
    """Runs, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", nargs="+", choices=sorted(MODELS), default=sorted(MODELS, reverse=True))
    parser.add_argument("--picoseconds", type=float, default=10.0)
    parser.add_argument("--precision", choices=("float32", "float64"), default="float32")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "nve.json")
    arguments = parser.parse_args()
    rows = [run(name, arguments.picoseconds, precision=arguments.precision) for name in arguments.molecules]
    for row in rows:
        print(
            f"{row['molecule']:8} {row['precision']}: drift {row['drift_Eh_per_atom_per_ps']:.2e} Eh/atom/ps, "
            f"scatter {row['scatter_Eh_per_atom']:.1e} Eh/atom, {row['mean_temperature_K']:.0f} K, "
            f"{row['ms_per_step']:.1f} ms/step"
        )
    earlier = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    kept = [row for row in earlier if row["molecule"] not in arguments.molecules]
    with written_whole(arguments.out) as beside:
        Path(beside).write_text(json.dumps(kept + rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
