"""Batches of 64 eigenproblems F C = S C eps and their densities, on one core or on a GPU.

    taskset -c 1 python benchmarks/eigen.py [--device cuda] [--sizes 24 72 132 222]

On the CPU the density of `mlsemi.eigen`, forward and backward, stands against a loop of scipy.linalg.eigh with the
density formed in NumPy, and against torch.linalg.eigh in the Cholesky basis differentiated by autograd. On a GPU
torch's batched eigh alone takes the place of the loop, and CuPy's where it can be imported; a copy and a matrix product
of the same matrices are the ceilings. All run in turn, several times; the least time of each counts: on a machine that
others use too it is the one that says most.

The matrices are like those of molecules: occupied levels from -20 to -0.3 Eh, empty ones from 0.05 to 4 Eh, a sixth of
all occupied, S with eigenvalues from 0.02 to 4. A quarter of the members of each batch has exactly degenerate levels;
members whose gradient is not finite are counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402
import scipy  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from mlsemi import eigen  # noqa: E402
from mlsemi.files import written_whole  # noqa: E402

BATCH = 64


def problems(n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """F, S, occupations, and the members with degenerate levels."""
    generator = torch.Generator().manual_seed(n)
    occupied = n // 6
    levels = torch.cat([torch.linspace(-20.0, -0.3, occupied), torch.linspace(0.05, 4.0, n - occupied)]).double()
    levels = levels + 0.05 * torch.rand(BATCH, n, dtype=torch.float64, generator=generator)
    degenerate = torch.arange(BATCH) % 4 == 0
    levels[degenerate, 1], levels[degenerate, occupied + 1] = levels[degenerate, 2], levels[degenerate, occupied + 2]
    turn, _ = torch.linalg.qr(torch.randn(BATCH, n, n, dtype=torch.float64, generator=generator))
    half = (turn * torch.logspace(np.log10(0.02) / 2, np.log10(4.0) / 2, n, dtype=torch.float64)) @ turn.mT
    other, _ = torch.linalg.qr(torch.randn(BATCH, n, n, dtype=torch.float64, generator=generator))
    inner = (other * levels.unsqueeze(-2)) @ other.mT
    fock, overlap = half @ inner @ half, half @ half
    # diagonal F and S = 1: levels that rounding does not split
    inner[degenerate] = torch.diag_embed(levels[degenerate])
    fock[degenerate], overlap[degenerate] = inner[degenerate], torch.eye(n, dtype=torch.float64)
    filled = (2.0 * (torch.arange(n) < occupied).double()).expand(BATCH, n)
    fock, overlap = ((x + x.mT) / 2 for x in (fock, overlap))
    return fock.to(device), overlap.to(device), filled.to(device), degenerate.to(device)


def plain(fock: Tensor, overlap: Tensor, filled: Tensor) -> Tensor:
    """The density by operations that autograd differentiates."""
    factor = torch.linalg.cholesky(overlap)
    half = torch.linalg.solve_triangular(factor, fock, upper=False)
    _, vectors = torch.linalg.eigh(torch.linalg.solve_triangular(factor, half.mT, upper=False))
    coeff = torch.linalg.solve_triangular(factor.mT, vectors, upper=True)
    return (coeff * filled.unsqueeze(-2)) @ coeff.mT


def scipy_loop(fock: np.ndarray, overlap: np.ndarray, occupied: int) -> np.ndarray:
    """The density as everybody computes it."""
    out = np.empty_like(fock)
    for k in range(len(fock)):
        _, c = scipy.linalg.eigh(fock[k], overlap[k])
        c = c[:, :occupied]
        out[k] = 2 * c @ c.T
    return out


def interleaved(
    jobs: dict[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Least wall and processor time of each job [ms], all in turn."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for _ in range(repeats + 1):
        for name, job in jobs.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            wall, cpu = time.perf_counter(), time.process_time()
            job()
            if device.type == "cuda":
                torch.cuda.synchronize()
            found[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: {"wall": 1e3 * min(t[0] for t in times[1:]), "cpu": 1e3 * min(t[1] for t in times[1:])}
        for name, times in found.items()
    }


def whole_gradient(
    function: Callable[..., Tensor], fock: Tensor, overlap: Tensor, weight: Tensor
) -> tuple[Tensor, ...]:
    """The gradient of Tr[D W] in F and S."""
    f, s = fock.clone().requires_grad_(), overlap.clone().requires_grad_()
    return torch.autograd.grad((function(f, s) * weight).sum(), (f, s))


def measure(n: int, device: torch.device, repeats: int) -> dict[str, Any]:
    """Times and gradients of one size."""
    fock, overlap, filled, degenerate = problems(n, device)
    weight = torch.randn(BATCH, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(device)
    f, s = fock.clone().requires_grad_(), overlap.clone().requires_grad_()
    graphs = {"mlsemi": eigen.density(f, s, filled), "autograd": plain(f, s, filled)}
    seeds = (weight + weight.mT) / 2

    def backward(name: str) -> Callable[[], object]:
        return lambda: torch.autograd.grad(graphs[name], (f, s), seeds, retain_graph=True)

    jobs: dict[str, Callable[[], object]] = {
        "mlsemi forward": lambda: eigen.density(fock, overlap, filled),
        "mlsemi backward": backward("mlsemi"),
        "mlsemi forward + backward": lambda: whole_gradient(
            lambda a, b: eigen.density(a, b, filled), fock, overlap, weight
        ),
        "torch forward": lambda: plain(fock, overlap, filled),
        "torch backward": backward("autograd"),
        "torch forward + backward": lambda: whole_gradient(lambda a, b: plain(a, b, filled), fock, overlap, weight),
    }
    if device.type == "cpu":
        arrays = fock.numpy(), overlap.numpy()
        jobs["scipy loop forward"] = lambda: scipy_loop(*arrays, n // 6)
    else:
        jobs["torch eigh alone"] = lambda: torch.linalg.eigh(fock)
        copy = torch.empty_like(fock)
        jobs["copy of F"] = lambda: copy.copy_(fock)
        jobs["product F S"] = lambda: torch.matmul(fock, overlap)
        try:
            import cupy  # pyright: ignore[reportMissingImports]

            given = cupy.from_dlpack(fock)
            jobs["CuPy eigh alone"] = lambda: cupy.linalg.eigh(given)
        except ImportError:
            pass
    times = interleaved(jobs, repeats, device)
    ours, theirs = (
        whole_gradient(function, fock, overlap, weight)
        for function in (lambda a, b: eigen.density(a, b, filled), lambda a, b: plain(a, b, filled))
    )
    regular = ~degenerate
    reference = scipy_loop(fock.cpu().numpy(), overlap.cpu().numpy(), n // 6)
    return {
        "n": n,
        "times_ms": times,
        "not_finite": {"mlsemi": _not_finite(ours), "torch": _not_finite(theirs)},
        "degenerate_members": int(degenerate.sum()),
        # relative to the largest element
        "difference_of_gradients": max(
            float((a - b)[regular].abs().max() / b[regular].abs().max()) for a, b in zip(ours, theirs, strict=True)
        ),
        "difference_of_densities": float(
            (graphs["mlsemi"].detach().cpu() - torch.from_numpy(reference)).abs().max() / np.abs(reference).max()
        ),
    }


def _not_finite(gradients: tuple[Tensor, ...]) -> int:
    return int(torch.stack([(~x.isfinite()).flatten(1).any(1) for x in gradients]).any(0).sum())


def table(rows: list[dict[str, Any]], clock: str) -> str:
    """The times of all sizes side by side, Markdown."""
    names = list(rows[0]["times_ms"])
    lines = ["| [ms] | " + " | ".join(f"n = {r['n']}" for r in rows) + " |", "|---|" + "---|" * len(rows)]
    for name in names:
        lines.append(f"| {name} | " + " | ".join(f"{r['times_ms'][name][clock]:.2f}" for r in rows) + " |")

    def ratios(above: str, below: str) -> str:
        return " | ".join(f"{r['times_ms'][above][clock] / r['times_ms'][below][clock]:.2f}" for r in rows)

    if "scipy loop forward" in names:
        lines.append(f"| mlsemi / scipy loop, forward | {ratios('mlsemi forward', 'scipy loop forward')} |")
    lines.append(f"| mlsemi / torch, forward + backward | {_both(ratios)} |")
    lines.append(f"| mlsemi backward / forward | {ratios('mlsemi backward', 'mlsemi forward')} |")
    for who in ("mlsemi", "torch"):
        counts = " | ".join(f"{r['not_finite'][who]} of {BATCH}" for r in rows)
        lines.append(f"| members with NaN in the gradient, {who} | {counts} |")
    return "\n".join(lines)


def _both(ratios: Callable[[str, str], str]) -> str:
    return ratios("mlsemi forward + backward", "torch forward + backward")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", nargs="+", type=int, default=[24, 72, 132, 222])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file; benchmarks/results/eigen_DEVICE.json by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    device = torch.device(arguments.device)
    rows = [measure(n, device, arguments.repeats) for n in arguments.sizes]
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
    print(f"{BATCH} matrices, {name}, torch {torch.__version__}, SciPy {scipy.__version__}, one thread\n")
    for clock, title in (("wall", "Wall time"), ("cpu", "Processor time")):
        print(f"{title}, least of {arguments.repeats}:\n\n{table(rows, clock)}\n")
    for row in rows:
        print(
            f"n = {row['n']}: largest difference of densities from SciPy {row['difference_of_densities']:.1e}, of "
            f"gradients from autograd where it has them {row['difference_of_gradients']:.1e} (relative)"
        )
    default = Path(__file__).parent / "results" / f"eigen_{device.type}.json"
    with written_whole(arguments.output or default) as path:
        contents = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "device": name, "load": os.getloadavg()[0]}
        contents |= {"batch": BATCH, "torch": torch.__version__, "scipy": scipy.__version__, "rows": rows}
        path.write_text(json.dumps(contents, indent=1) + "\n")


if __name__ == "__main__":
    main()
