"""Problems to solve: random ones, padded batches, and converged Fock matrices of small molecules."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from pyscf import gto, scf
from torch import Tensor

PLACES = {
    "H2O": "O 0 0 0.1173; H 0 0.7572 -0.4692; H 0 -0.7572 -0.4692",
    "NH3": "N 0 0 0; H 0.9377 0 0.3816; H -0.46885 0.812072 0.3816; H -0.46885 -0.812072 0.3816",
    "CH4": "C 0 0 0; H 0.629 0.629 0.629; H -0.629 -0.629 0.629; H -0.629 0.629 -0.629; H 0.629 -0.629 -0.629",
    "C6H6": "; ".join(
        f"C {1.397 * np.cos(a)} {1.397 * np.sin(a)} 0; H {2.481 * np.cos(a)} {2.481 * np.sin(a)} 0"
        for a in np.arange(6) * np.pi / 3
    ),
    "O2": "O 0 0 0.604; O 0 0 -0.604",
    "H8": "; ".join(f"H 0 0 {0.9 * k}" for k in range(8)),
}


@cache
def _converged(name: str) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    mol = gto.M(atom=PLACES[name], basis="sto-3g", spin=2 if name == "O2" else 0, verbose=0)
    field = (scf.UHF if mol.spin else scf.RHF)(mol).run(conv_tol=1e-13)
    fock = field.get_fock()
    return fock if mol.spin else fock[None], field.get_ovlp(), mol.nelec


@pytest.fixture(scope="session")
def hartree_fock() -> Callable[[str], tuple[Tensor, Tensor, Tensor]]:
    """F (spin, ao, ao), S likewise and occupations (spin, mo) of a molecule in STO-3G; both spins of an open shell."""

    def of(name: str) -> tuple[Tensor, Tensor, Tensor]:
        fock, overlap, electrons = _converged(name)
        full = 2.0 if len(fock) == 1 else 1.0
        filled = torch.arange(fock.shape[-1]) < torch.tensor(electrons[: len(fock)]).unsqueeze(1)
        return torch.tensor(fock), torch.tensor(overlap).repeat(len(fock), 1, 1), full * filled.double()

    return of


@pytest.fixture(scope="session")
def random_problem() -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """F and a well-conditioned S of some size, from a seed."""

    def of(n: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        a, b = torch.randn(2, n, n, dtype=torch.float64, generator=generator)
        return a + a.T, b @ b.T / n + torch.eye(n)

    return of


@pytest.fixture(scope="session")
def padded() -> Callable[[list[tuple[Tensor, Tensor]]], tuple[Tensor, Tensor, Tensor]]:
    """Problems of unlike size as a batch: F, S, AO mask."""

    def of(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        n = max(len(f) for f, _ in pairs)
        fock, overlap = torch.zeros(2, len(pairs), n, n, dtype=torch.float64)
        mask = torch.zeros(len(pairs), n, dtype=torch.bool)
        for k, (f, s) in enumerate(pairs):
            fock[k, : len(f), : len(f)], overlap[k, : len(f), : len(f)], mask[k, : len(f)] = f, s, True
        return fock, overlap, mask

    return of


@pytest.fixture(scope="session")
def near_dependent() -> Callable[..., tuple[Tensor, Tensor]]:
    """F and S with some tiny eigenvalues, the others from 0.1 to 2, shape (1, n, n)."""

    def of(seed: int, *smallest: float, n: int = 8) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        vectors, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
        values = torch.cat([torch.tensor(smallest).double(), torch.linspace(0.1, 2.0, n - len(smallest)).double()])
        half = vectors * values.abs().sqrt()
        fock = torch.randn(n, n, dtype=torch.float64, generator=generator)
        return (half @ (fock + fock.T) @ half.T)[None], ((vectors * values) @ vectors.T)[None]

    return of


def occupied(n_occupied: list[int], n_mo: int) -> Tensor:
    """Two electrons in each of the lowest orbitals."""
    return 2.0 * (torch.arange(n_mo) < torch.tensor(n_occupied).unsqueeze(1)).double()


@pytest.fixture(scope="session")
def occupation() -> Callable[[list[int], int], Tensor]:
    """Closed-shell occupations from the numbers of occupied and of all orbitals."""
    return occupied
