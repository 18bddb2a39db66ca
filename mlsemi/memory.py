"""How many molecules fit into memory at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from mlsemi.basis import Basis
from mlsemi.molecule import Molecule

SHARE = 0.5
"""Of the free memory that a batch may take: estimates are rough, and others want some too."""

CACHE_FRIENDLY = 128 * 2**20
"""On the CPU batches are no larger than this [bytes]: larger ones are slower."""


def available_bytes(device: torch.device | str = "cpu") -> int:
    """Free memory of a device; on the CPU no more than what a control group of the process has left."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [_meminfo(), _control_group()]
    known = [n for n in found if n is not None]
    return min(known) if known else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def estimate_bytes(
    molecules: Iterable[Molecule],
    basis: Basis,
    *,
    pair_width: int,
    n_bonds: int,
    forces: bool = False,
    wide: bool = False,
) -> list[int]:
    """Memory that a prediction takes for each molecule of a batch [bytes].

    Guesses, 1.2 to 2.4 times what was measured for one water molecule and for five.

    Args:
        molecules: the molecules.
        basis: their basis.
        pair_width: numbers that the network holds for a pair at a time: its state and the features of two atoms.
        n_bonds: number of layers of the network that treat pairs.
        forces: the gradient is wanted: then everything on the way is kept.
        wide: the network is in float64.
    """
    n_ao: dict[int, int] = {}
    n_primitives: dict[int, int] = {}
    out = []
    for molecule in molecules:
        numbers = molecule.numbers.tolist()
        for z in set(numbers) - set(n_ao):
            n_ao[z] = basis.n_ao(z)
            n_primitives[z] = sum(len(s.exponents) for s in basis.shells(z))
        matrix = 8 * sum(n_ao[z] for z in numbers) ** 2
        primitives = sum(n_primitives[z] for z in numbers)
        primitive_pairs = primitives * (primitives + 1) // 2
        pairs = len(numbers) ** 2
        network = pairs * pair_width * (8 if wide else 4)
        if forces:
            out.append(30 * matrix + (800 + 200 * len(numbers)) * primitive_pairs + 5 * n_bonds * network)
        else:
            out.append(15 * matrix + 400 * primitive_pairs + 2 * network)
    return out


def split(costs: Sequence[int], budget: int) -> list[list[int]]:
    """Batches of like sizes: indices, smallest molecules first, in the given order among equals.

    A batch is padded to its largest member, so that its cost is that of the largest times its number.

    Args:
        costs: memory of each molecule [bytes].
        budget: memory of a batch [bytes]; a molecule that takes more goes alone.
    """
    batches: list[list[int]] = []
    for k in np.argsort(np.asarray(costs), kind="stable").tolist():
        if batches and (len(batches[-1]) + 1) * costs[k] <= budget:
            batches[-1].append(k)
        else:
            batches.append([k])
    return batches


def _meminfo() -> int | None:
    """MemAvailable of Linux."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _control_group() -> int | None:
    """What is left of the limit of a container (control groups, version 2)."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        cache = next(
            int(line.split()[1])
            for line in (folder / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file ")
        )
        return max(limit - used + cache, 0)
    except (OSError, StopIteration, ValueError, IndexError):  # 'max' is no limit
        return None
