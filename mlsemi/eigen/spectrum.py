"""Functions of the orbital energies and their divided differences: all that a derivative of the density needs.

With A the Fock matrix in an orthonormal basis, D = phi(A) has (Daleckii and Krein 1965)

    dD_pq   = phi[p,q] A1_pq
    d2D_pq  = sum_r phi[p,r,q] (A1_pr A2_rq + A2_pr A1_rq)

in the basis of the orbitals, phi[p,q] and phi[p,r,q] being divided differences at the orbital energies. Occupations
that are given by index have phi[p,q] = (f_p - f_q) / (eps_p - eps_q), and zero where f_p = f_q, whatever the energies.
For Fermi's function all are closed expressions in hyperbolic functions, exact for (nearly) degenerate levels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from mlsemi.eigen.occupations import fermi, fermi_difference, fermi_second_difference, level_weights

CLOSED_GAP = 1e-8
"""Levels closer than this [Eh] are degenerate: rounding alone moves them by 1e-13 or so, and a derivative that needs
their difference is not to be trusted."""

_CHUNK = 1 << 21
"""Elements of the table of second divided differences that are held at a time."""


class Spectrum(Protocol):
    """Orbital energies with occupations as a function of them.

    Attributes:
        energy: orbital energies [Eh], shape (batch, mo).
        occupation: occupations, same shape.
        columns: orbitals from this one on are empty in all members.
    """

    energy: Tensor
    occupation: Tensor
    columns: int

    def difference(self, columns: int) -> Tensor:
        """phi[p,q], shape (batch, mo, columns)."""
        ...

    def second(self, a: Tensor, b: Tensor) -> Tensor:
        """d2D along the symmetric directions a and b, shape (batch, mo, mo)."""
        ...

    def project(self, matrix: Tensor) -> Tensor:
        """Takes out the part of dA that only shifts the chemical potential; acts on the diagonal."""
        ...

    def project_adjoint(self, matrix: Tensor) -> Tensor:
        """The adjoint of `project`."""
        ...

    def refuse_closed(self, concerned: Tensor) -> None:
        """Raises for members (True in `concerned`) without a derivative."""
        ...


class GivenOccupations:
    """Occupations by index.

    Args:
        energy: orbital energies [Eh], shape (batch, mo).
        occupation: shape (batch, mo).
        exists: True where there is an orbital, shape (batch, mo).
        name: calls a member in messages.
        closed: distance of levels of unlike occupation below which there is no derivative [Eh].
    """

    def __init__(
        self, energy: Tensor, occupation: Tensor, exists: Tensor, name: Callable[[int], str], closed: float = CLOSED_GAP
    ) -> None:
        self.energy = energy
        self.occupation = occupation
        self.exists = exists
        self.name = name
        self.closed = closed
        filled = (occupation != 0).any(0).nonzero()
        self.columns = int(filled[-1]) + 1 if len(filled) else 1

    def gap(self) -> Tensor:
        """Least distance of levels of unlike occupation [Eh], infinite where there are none, shape (batch,)."""
        f, energy = self.occupation, self.energy
        if f.shape[-1] < 2:
            return torch.full_like(f[:, 0], torch.inf)
        # the energies ascend, so that the least distance is one of neighbours
        none = (f[:, 1:] == f[:, :-1]) | ~self.exists[:, 1:]
        return (energy[:, 1:] - energy[:, :-1]).masked_fill(none, torch.inf).amin(1)

    def difference(self, columns: int) -> Tensor:
        f, e = self.occupation, self.energy
        df = f.unsqueeze(-1) - f[:, None, :columns]
        de = e.unsqueeze(-1) - e[:, None, :columns]
        # pairs that are too close have been refused, or are left out on request
        return torch.where((df == 0) | (de.abs() < self.closed), 0.0, df / de)

    def second(self, a: Tensor, b: Tensor) -> Tensor:
        f = self.occupation
        top = f.abs().amax(-1)
        k = self.difference(f.shape[-1])
        at, bt = k * a, k * b
        if bool(((f == 0) | (f == top.unsqueeze(-1))).all()):
            # two kinds of orbitals: every phi[p,r,q] is a product of two first differences
            sign = torch.where(f == 0, 1.0, -1.0).to(f).unsqueeze(-1) / top.clamp_min(1e-300)[:, None, None]
            like = (f.unsqueeze(-1) == f.unsqueeze(-2)) * sign
            product = at @ bt
            mixed = (like * a) @ bt + (like * b) @ at
            return like * (product + product.mT) + k * (mixed + mixed.mT)
        return _contract(a, b, self._table)

    def _table(self, r: slice) -> Tensor:
        """phi[p,r,q] of a few r, shape (batch, p, r, q)."""
        f, k = self.occupation, self.difference(self.occupation.shape[-1])
        fp, fr, fq = f[:, :, None, None], f[:, None, r, None], f[:, None, None, :]
        kpr, krq, kpq = k[:, :, r, None], k[:, None, r, :], k[:, :, None, :]
        e = self.energy
        apart = e[:, :, None, None] - e[:, None, None, :]
        unlike = (kpr - krq) / torch.where(fp == fq, 1.0, apart)
        unlike = torch.where(fp == fr, -kpq * krq / torch.where(fp == fq, 1.0, fp - fq), unlike)
        unlike = torch.where(fr == fq, -kpr * kpq / torch.where(fr == fp, 1.0, fr - fp), unlike)
        alike = torch.where(fp == fr, 0.0, -kpr * krq / torch.where(fp == fr, 1.0, fp - fr))
        return torch.where(fp == fq, alike, unlike)

    def project(self, matrix: Tensor) -> Tensor:
        return matrix

    def project_adjoint(self, matrix: Tensor) -> Tensor:
        return matrix

    def refuse_closed(self, concerned: Tensor) -> None:
        closed = (self.gap() < self.closed) & concerned
        if bool(closed.any()):
            k = int(closed.nonzero()[0])
            raise ValueError(
                f"the density of {self.name(k)} has no derivative: orbitals of unlike occupation lie "
                f"{float(self.gap()[k]):.1e} Eh apart, less than {self.closed:.0e}; another electron count or spin "
                "would fill the degenerate set evenly, smearing (solve_smeared) makes it smooth, errors='mark' leaves "
                "the member out"
            )


class FermiOccupations:
    """Occupations by Fermi's function, the chemical potential holding the number of electrons.

    Args:
        energy: orbital energies [Eh], shape (batch, mo).
        mu: chemical potential [Eh], shape (batch,).
        kt: temperature [Eh].
        capacity: electrons of a full orbital.
        exists: True where there is an orbital, shape (batch, mo).
    """

    def __init__(self, energy: Tensor, mu: Tensor, kt: float, capacity: float, exists: Tensor) -> None:
        self.energy = energy
        self.mu = mu
        self.kt = kt
        self.capacity = capacity
        self.exists = exists
        self.x = (energy - mu.unsqueeze(-1)) / (2 * kt)
        self.occupation = capacity * fermi(2 * self.x) * exists
        self.columns = energy.shape[-1]
        self.weights, self.slope = level_weights(self.x, exists)
        self.slope = self.slope * (-capacity / (4 * kt))  # sum of the derivatives of the occupations [1/Eh]

    def free_energy(self) -> Tensor:
        """sum_p f_p eps_p - T S [Eh], shape (batch,)."""
        entropy = torch.special.entr(fermi(2 * self.x)) + torch.special.entr(fermi(-2 * self.x))
        terms = self.occupation * self.energy - self.capacity * self.kt * entropy
        return terms.masked_fill(~self.exists, 0.0).sum(-1)

    def difference(self, columns: int) -> Tensor:
        return fermi_difference(self.x.unsqueeze(-1), self.x[:, None, :columns]) * (self.capacity / (2 * self.kt))

    def second(self, a: Tensor, b: Tensor) -> Tensor:
        x, first = self.x, fermi_difference(self.x.unsqueeze(-1), self.x.unsqueeze(-2))
        factor = self.capacity / (2 * self.kt) ** 2

        def table(r: slice) -> Tensor:
            return factor * fermi_second_difference(
                x[:, :, None, None],
                x[:, None, r, None],
                x[:, None, None, :],
                first[:, :, r, None],
                first[:, None, r, :],
                first[:, :, None, :],
            )

        return _contract(a, b, table)

    def project(self, matrix: Tensor) -> Tensor:
        shift = (self.weights * matrix.diagonal(dim1=-2, dim2=-1)).sum(-1, keepdim=True)
        return matrix - torch.diag_embed(shift.expand_as(self.energy))

    def project_adjoint(self, matrix: Tensor) -> Tensor:
        trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
        return matrix - torch.diag_embed(self.weights * trace)

    def refuse_closed(self, concerned: Tensor) -> None:
        """Fermi's function is smooth: nothing to refuse."""


def _contract(a: Tensor, b: Tensor, table: Callable[[slice], Tensor]) -> Tensor:
    """sum_r phi[p,r,q] (a_pr b_rq + b_pr a_rq) for symmetric a and b, a few r at a time."""
    n = a.shape[-1]
    step = max(1, _CHUNK // a.numel())
    half = torch.zeros_like(a)
    for start in range(0, n, step):
        r = slice(start, min(start + step, n))
        half += torch.einsum("bprq,bpr,brq->bpq", table(r), a[:, :, r], b[:, r, :])
    return half + half.mT
