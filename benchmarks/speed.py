"""Speed of the shipped networks on one core, against PySCF and against QHNet and SPHNet at their published sizes.

    python benchmarks/speed.py [--model organic-b3lyp-def2svp] [--parts scf stages sizes network frames]

scf: a whole fast prediction of ethanol with orbitals, model already loaded, beside PySCF's SCF at the same level.
stages: time per molecule of S + T + dipole integrals, F0, network and eigenproblem for three molecules.
sizes: the same stages for alkanes of up to 101 atoms, with the pairs that the network sees and the memory it takes.
network: forward and training step per molecule, ethanol in batches of 8, against QHNet and SPHNet scaled by a fixed
    kernel; with the model of --network-model, all networks of it together. Their forward is compared with that of the
    network, and with all from the geometry to F, since theirs learn the whole of H and need no F0.
frames: 1,000 ethanol frames through the command line, the start of the process included.

One process, one thread. Times are medians of wall time, those of the processor (CPU) beside them: on a machine that
others use too the wall times are longer, and ratios of CPU times are the fair ones; those of the peers are CPU times.
Parts that are not asked for keep their figures in the JSON file; each part has its date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mlsemi
from mlsemi.baseline import BaselineTerms
from mlsemi.files import sha256_of, written_whole
from mlsemi.interop.ase import read_molecules
from mlsemi.model import DEFAULT_MODEL, Model, find_model, load
from mlsemi.molecule import Molecule
from mlsemi.units import BOHR_IN_ANGSTROM

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
PARTS = ("scf", "stages", "sizes", "network", "frames")
SINGLE = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
ALKANES = (2, 6, 11, 16, 21, 26, 33)
"""Carbon atoms of the alkanes of `sizes`: 8 to 101 atoms."""
DISPLACEMENT = 0.02
"""Standard deviation of the displacements that make unlike frames [angstrom]."""

FORWARD, STEP = "forward", "forward and backward"
"""What was timed of the peers."""
OURS = {
    "network": FORWARD,
    "geometry to F: integrals, F0, network": FORWARD,
    "training step: losses, backward, clipping, Muon, moving average": STEP,
}
"""What is timed of ours, each with what it is compared with."""
PEERS = {"QHNet": {FORWARD: 206.0, STEP: 681.0}, "SPHNet": {FORWARD: 62.0, STEP: 225.0}}
"""At their published sizes (20.4 and 18 M parameters, random weights), ethanol, batch of 8, one core: CPU time of a
molecule [ms]."""
TARGETS = {"QHNet": {FORWARD: 15, STEP: 10}, "SPHNet": {FORWARD: 5, STEP: 4}}
"""How many times faster ours must be."""
PEERS_KERNEL = 0.32
"""LAPACK's F C = S C eps, 72 orbitals in float64, on the core where those were measured [ms]."""
KERNEL_SIZE = 72


@dataclass(frozen=True)
class Timing:
    """Median times of a call.

    Attributes:
        wall: wall time [ms].
        cpu: time of the processor [ms].
        repeats: how many calls.
    """

    wall: float
    cpu: float
    repeats: int

    def over(self, n: int) -> Timing:
        """Per molecule of n."""
        return Timing(self.wall / n, self.cpu / n, self.repeats)

    def __str__(self) -> str:
        return f"{_short(self.wall)} ({_short(self.cpu)})"


def _short(milliseconds: float) -> str:
    return f"{milliseconds:.3g}" if milliseconds < 1000 else f"{milliseconds:.0f}"


def measure(run: Callable[[], object], repeats: int, *, warm_up: int = 2) -> Timing:
    """Median times of a call."""
    for _ in range(warm_up):
        run()
    return Timing(*_medians([once(run) for _ in range(repeats)]), repeats)


def once(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU time of one call [ms]."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def _medians(times: Sequence[tuple[float, float]]) -> tuple[float, float]:
    wall, cpu = np.median(np.array(times), axis=0)
    return float(wall), float(cpu)


def displaced(molecule: Molecule, count: int, *, seed: int = 0) -> list[Molecule]:
    """Unlike geometries of a molecule."""
    random = np.random.default_rng(seed)
    shape = (count, molecule.n_atoms, 3)
    moves = random.normal(scale=DISPLACEMENT / BOHR_IN_ANGSTROM, size=shape)
    return [Molecule(molecule.numbers, molecule.positions + move, name=f"frame {k}") for k, move in enumerate(moves)]


def scf(model: Model, repeats: int, rounds: int) -> dict[str, Any]:
    """(a) Prediction against SCF, alternating."""
    from pyscf import dft, lib

    from mlsemi.reference.mean_field import to_pyscf_mole

    lib.num_threads(1)
    ethanol = read_molecules(EXAMPLES / "ethanol.xyz")[0]
    method, basis = model.header.method, model.header.basis

    def converge(conv_tol: float | None = None) -> None:
        field = dft.RKS(to_pyscf_mole(ethanol, basis), xc=method)
        if conv_tol is not None:
            field.conv_tol = conv_tol
        field.kernel()
        if not field.converged:
            raise SystemExit("error: PySCF's SCF of ethanol did not converge")

    runs: dict[str, Callable[[], object]] = {
        "PySCF, defaults (conv_tol 1e-9)": converge,
        "PySCF, conv_tol 1e-6": lambda: converge(1e-6),
    }
    names = ("mlsemi, fast", "mlsemi, fast, with the error estimate of the energy", *runs)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(3):
        model.predict(ethanol)
    for _ in range(rounds):
        times[names[0]] += [once(lambda: model.predict(ethanol, estimate=False)) for _ in range(repeats)]
        times[names[1]] += [once(lambda: model.predict(ethanol)) for _ in range(repeats)]
        for name, run in runs.items():
            times[name].append(once(run))
    found = {name: Timing(*_medians(values), len(values)) for name, values in times.items()}
    ours = found["mlsemi, fast"]
    print(f"\n### Ethanol, {method}/{basis.name}, batch of 1: whole prediction with orbitals, against SCF\n")
    print("| | wall (CPU), ms | ratio of wall (CPU) |\n|---|---|---|")
    rows = {}
    for name, timing in found.items():
        rows[name] = vars(timing) | {"ratio_wall": timing.wall / ours.wall, "ratio_cpu": timing.cpu / ours.cpu}
        print(f"| {name} | {timing} | {timing.wall / ours.wall:.0f} ({timing.cpu / ours.cpu:.0f}) |")
    return {"target_ratio": 100, "rows": rows}


def stages(model: Model, repeats: int) -> dict[str, Any]:
    """(b) The parts of a prediction."""
    from mlsemi.reference.sampling import geometry_from_smiles

    molecules = {
        "water": read_molecules(EXAMPLES / "water.xyz")[0],
        "ethanol": read_molecules(EXAMPLES / "ethanol.xyz")[0],
        "diethyl ether": geometry_from_smiles("CCOCC"),
    }
    print("\n### Time per molecule, wall (CPU), ms\n")
    rows: list[dict[str, Any]] = []
    for name, molecule in molecules.items():
        for size in (1, 8):
            batch = displaced(molecule, size)
            found = {key: value.over(size) for key, value in _stage_times(model, batch, repeats).items()}
            if not rows:
                print(f"| molecule | orbitals | batch | {' | '.join(found)} |\n|{'---|' * (len(found) + 3)}")
            n_ao = sum(map(model.engine.basis.n_ao, molecule.numbers.tolist()))
            print(f"| {name} | {n_ao} | {size} | {' | '.join(map(str, found.values()))} |", flush=True)
            rows.append({"molecule": name, "n_ao": n_ao, "batch": size, **{k: vars(t) for k, t in found.items()}})
    return {"rows": rows}


def _stage_times(model: Model, molecules: list[Molecule], repeats: int) -> dict[str, Timing]:
    """Times of a whole batch."""
    from mlsemi.blocks import BlockMap
    from mlsemi.frames import BondFrames
    from mlsemi.integrals import one_electron, plan
    from mlsemi.state import solve_state

    engine = model.engine
    with torch.no_grad():
        batch = engine.batch(molecules)
        exact = engine.integrals(batch, dipole=True)
        fock = engine(batch).state.fock
        tables = plan(batch)
        kinetic = one_electron(batch, tables)[1]

        def geometry() -> tuple[BondFrames, BlockMap]:
            made = engine.batch(molecules)
            return BondFrames.of(made, engine.network.l_max), BlockMap.of(made, engine.baseline.slots)

        def baseline() -> BaselineTerms:
            return engine.baseline(batch, tables, kinetic, exact.blocks, exact.frames)

        jobs: dict[str, Callable[[], object]] = {
            "batch, frames": geometry,
            "S, T, dipole": lambda: one_electron(batch, plan(batch), with_dipole=True),
            "F0": baseline,
            "network": lambda: engine.network(batch, exact.frames).correction(exact.blocks, batch, exact.overlap),
            "eigenproblem, density": lambda: solve_state(fock, exact.overlap, batch),
            "whole prediction": lambda: model.predict(molecules, estimate=False),
        }
        return {name: measure(job, repeats) for name, job in jobs.items()}


def sizes(model: Model, repeats: int) -> dict[str, Any]:
    """Stages, pairs and memory against the size of a molecule, smallest first: the largest so far sets the peak."""
    from mlsemi.reference.sampling import geometry_from_smiles

    print("\n### Alkanes, one molecule at a time: wall (CPU), ms\n")
    before, rows = _peak_bytes(), []
    for carbons in ALKANES:
        molecule = geometry_from_smiles("C" * carbons)
        found = _stage_times(model, [molecule], repeats)
        batch = model.engine.batch([molecule])
        row = {
            "molecule": f"C{carbons}H{2 * carbons + 2}",
            "atoms": molecule.n_atoms,
            "n_ao": int(batch.n_ao[0]),
            "directed_pairs": len(batch.pair[0]),
            "peak_mb": (_peak_bytes() - before) / 1e6,
        }
        if not rows:
            print(f"| {' | '.join([*row, *found])} |\n|{'---|' * (len(row) + len(found))}")
        shown = [f"{v:.0f}" if isinstance(v, float) else str(v) for v in row.values()]
        print(f"| {' | '.join([*shown, *map(str, found.values())])} |", flush=True)
        rows.append(row | {name: vars(timing) for name, timing in found.items()})
    return {"rows": rows}


def _peak_bytes() -> int:
    """Largest memory that this process has had; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def network(model: Model, repeats: int) -> dict[str, Any]:
    """(c) Network and training step against the peers."""
    kernel = _kernel(model, 200)
    size, engine = 8, model.engine
    *whole, step = _network_times(model, size, repeats)
    ours = dict(zip(OURS, whole, strict=True))
    scale = kernel.cpu / PEERS_KERNEL
    parts = [part for part in (engine.network, engine.energy_network) if part is not None]
    parameters = sum(p.numel() for part in parts for p in part.parameters())
    print(f"\n### Ethanol in batches of {size}, per molecule: {model.name}, {parameters / 1e6:.2f} M parameters\n")
    print(f"Kernel (LAPACK F C = S C eps, n = {KERNEL_SIZE}): {kernel} ms here, {PEERS_KERNEL} ms beside the peers.\n")
    print(
        "| | mlsemi, wall (CPU), ms | peer | there, ms | scaled, ms | ratio unscaled (CPU) | scaled (CPU) | target |\n"
        f"|{'---|' * 8}"
    )
    rows: dict[str, Any] = {name: vars(timing) for name, timing in ours.items()}
    for peer, times in PEERS.items():
        for name, compared in OURS.items():
            there = times[compared]
            row = {
                "there_ms": there,
                "scaled_ms": there * scale,
                "ratio_unscaled": there / ours[name].cpu,
                "ratio_scaled": there * scale / ours[name].cpu,
                "target": TARGETS[peer][compared],
            }
            print(
                f"| {name} | {ours[name]} | {peer} | {there:.0f} | {row['scaled_ms']:.0f} "
                f"| {row['ratio_unscaled']:.1f} | {row['ratio_scaled']:.1f} | {row['target']} |"
            )
            rows[name] |= {peer: row}
    print("\nOf the training step:\n\n| part | wall (CPU), ms |\n|---|---|")
    for name, timing in step.items():
        print(f"| {name} | {timing} |")
    about = {"kernel": vars(kernel) | {"there_ms": PEERS_KERNEL}, "parameters": parameters, "batch": size}
    return {**about, "rows": rows, "training_step": {name: vars(timing) for name, timing in step.items()}}


def _kernel(model: Model, repeats: int) -> Timing:
    """LAPACK's generalized eigenproblem of ethanol in def2-SVP, or of a like random one in another basis."""
    import scipy.linalg

    found = model.predict(read_molecules(EXAMPLES / "ethanol.xyz")[0])
    assert found.fock is not None and found.overlap is not None
    fock, overlap = found.fock[0], found.overlap
    if len(fock) != KERNEL_SIZE:
        a, b = np.random.default_rng(0).normal(size=(2, KERNEL_SIZE, KERNEL_SIZE))
        fock, overlap = a + a.T, np.eye(KERNEL_SIZE) + 0.01 * b @ b.T
    return measure(lambda: scipy.linalg.eigh(fock, overlap, check_finite=False), repeats, warm_up=20)


def _network_times(model: Model, size: int, repeats: int) -> tuple[Timing, Timing, Timing, dict[str, Timing]]:
    """What `OURS` says, per molecule, and the parts of the step, which is that of `mlsemi train`."""
    from mlsemi.checkpoint import engine_of
    from mlsemi.eigen import lift_near_dependencies
    from mlsemi.train.config import LossConfig, TrainingConfig
    from mlsemi.train.objective import fock_objective
    from mlsemi.train.optimizer import MuonAdamW
    from mlsemi.train.samples import Sample

    engine = model.engine
    molecules = displaced(read_molecules(EXAMPLES / "ethanol.xyz")[0], size)

    def fock() -> torch.Tensor:
        batch = engine.batch(molecules)
        exact = engine.integrals(batch)
        residual = engine.network(batch, exact.frames).correction(exact.blocks, batch, exact.overlap)
        whole = exact.baseline.fock.unsqueeze(1) + residual.double()
        keep = engine.dependency_filter(batch, exact.overlap)
        overlap, mask = exact.overlap.unsqueeze(1), batch.ao_mask.unsqueeze(1)
        return lift_near_dependencies(whole, overlap, mask, engine.overlap_floor, keep=keep)

    with torch.no_grad():
        batch = engine.batch(molecules)
        exact = engine.integrals(batch)
        networks = [part for part in (engine.network, engine.energy_network) if part is not None]
        forward = measure(lambda: [part(batch, exact.frames) for part in networks], repeats)
        to_fock = measure(fock, repeats)
        state = engine(batch).state
        values, vectors = torch.linalg.eigh(exact.overlap)
        root = (vectors / values.sqrt()[:, None]) @ vectors.mT
        residual = state.fock[:, 0] - exact.baseline.fock
        residual += 1e-4 * (exact.overlap - torch.eye(exact.overlap.shape[-1], dtype=torch.float64))
    occupied = molecules[0].n_electrons // 2
    samples = [
        Sample(
            molecule=m,
            residual=residual[k, None].float(),
            overlap=exact.overlap[k].float(),
            inverse_root=root[k].float(),
            mo_coeff=state.mo_coeff[k].float(),
            energy_gradient=state.density[k].float(),
            n_occupied=(occupied,),
            repulsion=0.0,
        )
        for k, m in enumerate(molecules)
    ]
    # a copy: training must not touch the model that the other parts use
    trained = engine_of(model.header, build=False)
    trained.load_state_dict(engine.state_dict())
    weights: list[torch.Tensor] = list(trained.network.parameters())
    average: list[torch.Tensor] = [w.detach().clone() for w in weights]
    settings = TrainingConfig()
    objective = fock_objective(trained, samples, samples[:1], LossConfig(), "cpu")
    optimizer = MuonAdamW(dict(trained.network.named_parameters()), learning_rate=1e-6, weight_decay=0.05)

    loss = torch.zeros(())

    def losses() -> None:
        nonlocal loss
        optimizer.zero_grad()
        loss = objective.total({name: errors.mean() for name, errors in objective.terms(samples).items()})

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(weights, settings.clip)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1 - settings.ema)

    parts: dict[str, Callable[[], object]] = {
        "batch, network, losses": losses,
        "backward": lambda: loss.backward(),
        "clipping, Muon, moving average": update,
    }
    times = [{name: once(run) for name, run in parts.items()} for _ in range(repeats + 2)][2:]
    step = {name: Timing(*_medians([t[name] for t in times]), repeats).over(size) for name in parts}
    sums = [tuple(np.sum(list(t.values()), axis=0)) for t in times]
    return forward.over(size), to_fock.over(size), Timing(*_medians(sums), repeats).over(size), step


def frames(name: str, count: int) -> dict[str, Any]:
    """(d) Many frames through the command line, once: wall and CPU time of the whole process."""
    sources = read_molecules(EXAMPLES / "ethanol_300K.xyz")
    many = [displaced(m, -(-count // len(sources)), seed=k) for k, m in enumerate(sources)]
    chosen = [m for group in zip(*many, strict=True) for m in group][:count]
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "frames.xyz", Path(folder) / "out.json"
        source.write_text("".join(m.to_xyz(m.name) for m in chosen))
        program = [sys.executable, "-c", "from mlsemi.cli import main; main()"]
        options = ["predict", str(source), "--model", name, "--json", str(out), "--threads", "1"]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run([*program, *options], env={**os.environ, **SINGLE}, capture_output=True, text=True)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise SystemExit(f"error: mlsemi predict ended with {done.returncode}: {done.stderr.strip()}")
        results = len(json.loads(out.read_text()))
        assert results == count, (results, count)
        size = out.stat().st_size
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"\n### {count} ethanol frames through `mlsemi predict FRAMES --json OUT --threads 1`\n")
    print("| wall, s | CPU, s | JSON, MB | target, s |\n|---|---|---|---|")
    print(f"| {wall:.1f} | {cpu:.1f} | {size / 1e6:.1f} | 20 |")
    return {"frames": count, "wall_s": wall, "cpu_s": cpu, "json_bytes": size, "target_s_for_1000": 20}


def environment() -> dict[str, Any]:
    """Versions, processor, and how busy the machine is."""
    from importlib.metadata import PackageNotFoundError, version

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "none"

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "mlsemi": mlsemi.__version__,
        **{name: installed(name) for name in ("torch", "pyscf", "numpy", "scipy")},
        "cpu": names[0] if names else platform.processor(),
        "cpus": os.cpu_count(),
        "load_1_min": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="shipped model or checkpoint")
    parser.add_argument("--network-model", default="ethanol-pbe-def2svp", help="that of the part network")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=21, help="calls of which the median is taken")
    parser.add_argument("--rounds", type=int, default=3, help="SCF calculations, each after --repeats predictions")
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "speed.json")
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in SINGLE.items()):
        # the numerical libraries read these when they are loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **SINGLE})
    torch.set_num_threads(1)
    model = load(arguments.model)
    of_network = load(arguments.network_model) if "network" in arguments.parts else model
    jobs: dict[str, Callable[[], dict[str, Any]]] = {
        "scf": lambda: scf(model, arguments.repeats, arguments.rounds),
        "stages": lambda: stages(model, arguments.repeats),
        "sizes": lambda: sizes(model, arguments.repeats),
        "network": lambda: network(of_network, arguments.repeats),
        "frames": lambda: frames(arguments.model, arguments.frames),
    }
    found = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts:
        around = environment()
        result = jobs[part]()
        of_part = of_network if part == "network" else model
        digest = sha256_of(find_model(arguments.network_model if part == "network" else arguments.model))
        found[part] = {"model": of_part.name, "sha256": digest, "environment": around, **result}
        with written_whole(arguments.out) as path:
            path.write_text(json.dumps(found, indent=1) + "\n")
    around = environment()
    print(
        f"\n{around['cpu']}, one thread of {around['cpus']} CPUs; load at the end {around['load_1_min']:.1f} (above 1: "
        f"others use the machine too, trust the CPU times); Python {around['python']}, torch {around['torch']}, "
        f"PySCF {around['pyscf']}, mlsemi {around['mlsemi']}; {arguments.out}"
    )


if __name__ == "__main__":
    main()
