"""Orbitals and densities in momentum space, and momentum profiles as electron momentum spectroscopy measures them.

Convention: phi(p) = (2 pi)^-3/2 int phi(r) exp(-i p.r) dr, so that a normalized orbital stays normalized. The Fourier
transform of a solid harmonic Gaussian is one again: that of r^l Y_lm exp(-a r^2) at R is

    exp(-i p.R) (-i)^l p^l Y_lm(p) (2 a)^-(l + 3/2) exp(-p^2 / 4 a).

The spherical average rho(p) = (1 / 4 pi) int |phi(p)|^2 dOmega has a closed form too: with the plane wave expansion
exp(-i p.R) = 4 pi sum_LM (-i)^L j_L(p R) Y_LM(p) Y_LM(R), R the vector between two atoms, the angular integral of each
pair of AOs is a finite sum over L = |l1 - l2| .. l1 + l2 of spherical Bessel functions. There is no angular grid.

A profile has the norm 4 pi int p^2 rho(p) dp = 1, and 1/2 4 pi int p^4 rho(p) dp is the kinetic energy of the orbital.
The cross section of (e,2e) spectroscopy in the plane wave impulse approximation is proportional to rho of the Dyson
orbital, for which the Kohn-Sham orbital stands (McCarthy and Weigold, Rep. Prog. Phys. 54, 789 (1991); Duffy, Chong,
Casida, Salahub, Phys. Rev. A 50, 4707 (1994)). Momenta are in units of hbar / bohr.
"""

from __future__ import annotations

from functools import lru_cache
from math import log, pi, sqrt

import numpy as np
import torch
from torch import Tensor

from mlsemi.basis import Shell
from mlsemi.batch import Batch
from mlsemi.harmonics import solid_harmonics
from mlsemi.properties.grids import assemble, check_points, element_shells

CHUNK = 1 << 21
"""Elements of the spherically averaged AO matrices that are held at once (16 MB, a few times over)."""

DEGENERATE = 1e-4
"""Orbitals nearer in energy than this [Eh] count as one degenerate set by default."""

_SERIES_BELOW = 25.0
"""x^2 below which the Bessel functions come from their power series: forward recursion is stable above x of about L."""


def ao_momentum(batch: Batch, momenta: Tensor) -> Tensor:
    """The atomic orbitals in momentum space.

    Differentiable in momenta and positions.

    Args:
        batch: the molecules.
        momenta: momenta for each molecule [hbar/bohr], shape (molecule, point, 3).

    Returns:
        Values [bohr^3/2] in mlsemi's AO order, complex, zero in the padding, shape (molecule, point, ao).
    """
    check_points(batch, momenta, "momenta")
    rows = []
    for atoms, shells in element_shells(batch):
        vectors = momenta.index_select(0, batch.molecule.index_select(0, atoms))
        p2 = (vectors * vectors).sum(-1)
        harmonics = solid_harmonics(max(s.l for s in shells), vectors)
        phase = (vectors * batch.positions[atoms].unsqueeze(1)).sum(-1)
        wave = torch.complex(torch.cos(phase), -torch.sin(phase)).unsqueeze(-1)
        parts = [(-1j) ** s.l * _radial(s, p2).unsqueeze(-1) * harmonics[s.l] for s in shells]
        rows.append((torch.cat(parts, -1) * wave).transpose(1, 2).flatten(0, 1))
    return assemble(batch, rows).transpose(1, 2)


def orbitals_at_momenta(batch: Batch, coefficients: Tensor, momenta: Tensor) -> Tensor:
    """Molecular orbitals in momentum space.

    Args:
        batch: the molecules.
        coefficients: orbital coefficients, shape (molecule, spin, ao, mo); any subset of columns.
        momenta: momenta for each molecule [hbar/bohr], shape (molecule, point, 3).

    Returns:
        Values [bohr^3/2], complex, shape (molecule, spin, mo, point).
    """
    values = ao_momentum(batch, momenta)
    return coefficients.mT.to(values.dtype) @ values.mT.unsqueeze(1)


def averaged_matrices(batch: Batch, p: Tensor) -> Tensor:
    """Matrices A(p) of the spherical average: rho(p) = c^T A(p) c of an orbital, Tr[D A(p)] of a density.

    A_mn(p) = (1 / 4 pi) int chi_m(p)* chi_n(p) dOmega, in closed form; real and symmetric. Differentiable in p and the
    positions.

    Args:
        batch: the molecules.
        p: absolute values of the momentum [hbar/bohr], shape (p,).

    Returns:
        Shape (molecule, p, ao, ao), zero in the padding. `profiles` and `density_profile` need less memory.
    """
    return _Averages(batch).matrices(p)


def profiles(batch: Batch, coefficients: Tensor, p: Tensor, *, fwhm: float = 0.0) -> Tensor:
    """Spherically averaged momentum densities of orbitals: their momentum profiles.

    Args:
        batch: the molecules.
        coefficients: orbital coefficients, shape (molecule, spin, ao, mo); any subset of columns.
        p: absolute values of the momentum [hbar/bohr], shape (p,).
        fwhm: full width at half maximum of the momentum resolution [hbar/bohr]; the momentum density is averaged over a
            Gaussian of this width in all three directions, which keeps its norm. 0 for none.

    Returns:
        rho(p) [bohr^3], 4 pi int p^2 rho dp = 1, shape (molecule, spin, mo, p). For the cross section of a set of
        orbitals multiply with the number of electrons in it.

    Raises:
        ValueError: for negative momenta or a negative width.
    """
    nodes, spread = _resolution(p, fwhm)
    parts = []
    averages = _Averages(batch)
    for part in torch.split(nodes, averages.chunk):
        matrices = averages.matrices(part).unsqueeze(1)
        c = coefficients.unsqueeze(2)
        parts.append((c * (matrices @ c)).sum(-2).mT)
    rho = torch.cat(parts, -1)
    return rho if spread is None else rho @ spread


def density_profile(batch: Batch, density: Tensor, p: Tensor, *, fwhm: float = 0.0) -> Tensor:
    """Spherically averaged momentum density of all electrons (or of the unpaired ones, from a spin density).

    Args:
        batch: the molecules.
        density: density matrix, shape (molecule, ao, ao).
        p: absolute values of the momentum [hbar/bohr], shape (p,).
        fwhm: as in `profiles`.

    Returns:
        rho(p) [bohr^3], 4 pi int p^2 rho dp is the number of electrons, shape (molecule, p).
    """
    nodes, spread = _resolution(p, fwhm)
    averages = _Averages(batch)
    parts = [
        (averages.matrices(part) * density.unsqueeze(1)).sum((-2, -1)) for part in torch.split(nodes, averages.chunk)
    ]
    rho = torch.cat(parts, -1)
    return rho if spread is None else rho @ spread


def degenerate_average(values: Tensor, energies: Tensor, *, tolerance: float = DEGENERATE) -> Tensor:
    """Replaces what belongs to each orbital of a degenerate set by the mean over the set.

    Orbitals of a set are a matter of choice, their mean profile is not. A set is a run of orbitals, each within the
    tolerance of the next; orbitals must be sorted by energy, and occupied and empty ones should not be mixed.

    Args:
        values: shape (..., mo, p), such as `profiles`.
        energies: orbital energies [Eh], ascending, shape (..., mo).
        tolerance: largest distance of neighbours in a set [Eh].

    Returns:
        Shape (..., mo, p).
    """
    new = torch.diff(energies.detach(), dim=-1) > tolerance
    member = torch.nn.functional.pad(new.to(torch.int64).cumsum(-1), (1, 0))
    same = (member.unsqueeze(-1) == member.unsqueeze(-2)).to(values.dtype)
    return (same / same.sum(-1, keepdim=True)) @ values


def _resolution(p: Tensor, fwhm: float) -> tuple[Tensor, Tensor | None]:
    """Momenta at which rho is needed, and the matrix that takes it from there to the blurred rho at p.

    For a spherical rho the Gaussian of standard deviation s leaves, with q over the whole positive axis,
    rho'(p) = (2 pi)^-1/2 (s p)^-1 int q rho(q) [exp(-(p - q)^2 / 2 s^2) - exp(-(p + q)^2 / 2 s^2)] dq. The integrand is
    even and smooth: the trapezoidal rule with three nodes in s is exact to rounding for the Gaussian.
    """
    if p.ndim != 1 or bool((p < 0).any()):
        raise ValueError(f"p must hold absolute values of the momentum, shape (p,), none negative; got {p}")
    if fwhm < 0:
        raise ValueError(f"fwhm={fwhm:g} must be positive, or 0 for no resolution function")
    if fwhm == 0:
        return p, None
    s = fwhm / sqrt(8 * log(2))
    step = min(s / 3, 0.05)
    top = float(p.detach().max()) + 9 * s
    q = torch.arange(1, int(top / step) + 2, dtype=p.dtype, device=p.device).unsqueeze(1) * step
    x = p * q / s**2
    # the difference of the two Gaussians divided by p, which has a limit at p = 0
    slope = torch.where(x < 1e-4, 1 + x * x / 6, torch.sinh(x.clamp(1e-4, 1.0)) / x.clamp(1e-4, 1.0))
    near = 2 * slope * q / s**2 * torch.exp(-(p * p + q * q) / (2 * s * s))
    safe = p.clamp(min=1e-30)
    far = (torch.exp(-((p - q) ** 2) / (2 * s * s)) - torch.exp(-((p + q) ** 2) / (2 * s * s))) / safe
    return q.squeeze(1), torch.where(x < 1.0, near, far) * q * step / (s * sqrt(2 * pi))


class _Averages:
    """What the spherical averages of a batch need besides p."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.l_max = batch.basis.l_max(torch.unique(batch.numbers).tolist())
        n_molecules, n_ao = batch.ao_mask.shape
        self.chunk = max(1, CHUNK // (n_molecules * n_ao * n_ao))
        sizes = torch.bincount(batch.molecule, minlength=n_molecules)
        local = (
            torch.arange(len(batch.numbers), device=batch.numbers.device) - (sizes.cumsum(0) - sizes)[batch.molecule]
        )
        self.positions = batch.positions.new_zeros(n_molecules, int(sizes.max()), 3)
        self.positions = self.positions.index_put((batch.molecule, local), batch.positions)
        self.atom = self._of_aos(lambda atoms, shells: local[atoms].unsqueeze(1).expand(-1, _size(shells)))
        self.row = self._of_aos(lambda atoms, shells: _rows(shells, atoms.device).expand(atoms.shape[0], -1))
        self.l = self.row.double().sqrt().floor().long()
        self.angular = self._angular()

    def _of_aos(self, rule) -> Tensor:  # noqa: ANN001
        """An integer for each AO, shape (molecule, ao), zero in the padding."""
        return assemble(self.batch, [rule(atoms, shells).flatten() for atoms, shells in element_shells(self.batch)])

    def _angular(self) -> list[Tensor]:
        """For each L the factor of p^L g_L(p^2 R^2), with g_L(x^2) = j_L(x) / x^L; shape (molecule, ao, ao)."""
        vectors = self.positions.unsqueeze(2) - self.positions.unsqueeze(1)
        harmonics = solid_harmonics(2 * self.l_max, vectors)
        coupling = gaunt(self.l_max, self.positions.device)
        i, j = self.row.unsqueeze(2), self.row.unsqueeze(1)
        power = self.l.unsqueeze(2) - self.l.unsqueeze(1)
        mask = self.batch.ao_mask.unsqueeze(2) & self.batch.ao_mask.unsqueeze(1)
        out = []
        for order, harmonic in enumerate(harmonics):
            # A has chi_m* chi_n, hence i^(l_m - l_n) and exp(+i p.(R_m - R_n)); the product with i^L is real
            sign = torch.where((power + order) % 4 == 0, 1.0, -1.0)
            columns = slice(order * order, (order + 1) ** 2)
            pairs = self._pairs(harmonic)
            out.append((coupling[i, j, columns] * pairs).sum(-1) * sign * mask)
        return out

    def _pairs(self, values: Tensor) -> Tensor:
        """From pairs of atoms (molecule, atom, atom, ...) to pairs of AOs (molecule, ao, ao, ...)."""
        k = torch.arange(values.shape[0], device=values.device)[:, None, None]
        return values[k, self.atom.unsqueeze(2), self.atom.unsqueeze(1)]

    def matrices(self, p: Tensor) -> Tensor:
        """A(p), shape (molecule, p, ao, ao)."""
        p2 = p * p
        radial = []
        for atoms, shells in element_shells(self.batch):
            f = torch.stack([_radial(s, p2) * p**s.l for s in shells for _ in range(2 * s.l + 1)])
            radial.append(f.repeat(atoms.shape[0], 1))
        f = assemble(self.batch, radial).mT
        vectors = self.positions.unsqueeze(2) - self.positions.unsqueeze(1)
        x2 = (vectors * vectors).sum(-1).unsqueeze(-1) * p2
        total = torch.zeros((), dtype=p.dtype, device=p.device)
        for order, (g, angular) in enumerate(zip(reduced_bessel(2 * self.l_max, x2), self.angular, strict=True)):
            waves = self._pairs(g * p**order).permute(0, 3, 1, 2)
            total = total + waves * angular.unsqueeze(1)
        return total * f.unsqueeze(-1) * f.unsqueeze(-2)


def reduced_bessel(order: int, x2: Tensor) -> list[Tensor]:
    """g_L(x^2) = j_L(x) / x^L for L = 0 .. order: smooth functions of x^2, also at zero; differentiable.

    Power series for small x, upward recursion g_(L+1) = ((2 L + 1) g_L - g_(L-1)) / x^2 for large.
    """
    small = x2 < _SERIES_BELOW
    t = torch.where(small, x2, torch.zeros_like(x2))
    series = []
    for l in range(order + 1):
        total = torch.zeros_like(t)
        for k in range(28, 0, -1):
            total = (total + 1) * (-t / (2 * k * (2 * l + 2 * k + 1)))
        series.append((total + 1) / float(np.prod(np.arange(2 * l + 1, 0, -2, dtype=float))))
    y2 = torch.where(small, torch.full_like(x2, _SERIES_BELOW), x2)
    y = y2.sqrt()
    g = [torch.sin(y) / y]
    g.append((g[0] - torch.cos(y)) / y2)
    for l in range(1, order):
        g.append(((2 * l + 1) * g[l] - g[l - 1]) / y2)
    return [torch.where(small, a, b) for a, b in zip(series, g[: order + 1], strict=True)]


@lru_cache(maxsize=8)
def gaunt(l_max: int, device: torch.device) -> Tensor:
    """int Y_lm Y_l'm' Y_LM dOmega of real harmonics, shape (row, row, row of L up to 2 l_max), row = l^2 + l + m.

    By the product of Gauss-Legendre and trapezoidal rule that is exact for polynomials of degree 4 l_max.
    """
    z, weight = np.polynomial.legendre.leggauss(2 * l_max + 1)
    n = 4 * l_max + 1
    phi = 2 * pi * np.arange(n) / n
    sine = np.sqrt(1 - z * z)
    points = np.stack([np.outer(sine, np.cos(phi)), np.outer(sine, np.sin(phi)), np.outer(z, np.ones(n))], -1)
    high = torch.cat(solid_harmonics(2 * l_max, torch.from_numpy(points.reshape(-1, 3))), -1)
    low = high[:, : (l_max + 1) ** 2]
    weights = torch.from_numpy(np.repeat(weight * 2 * pi / n, n))
    out = torch.einsum("q,qi,qj,qk->ijk", weights, low, low, high)
    return torch.where(out.abs() < 1e-14, 0.0, out).to(device)


def _radial(shell: Shell, p2: Tensor) -> Tensor:
    """sum_k c_k N_k (2 a_k)^-(l + 3/2) exp(-p^2 / 4 a_k) of a shell."""
    total = torch.zeros_like(p2)
    for a, c in zip(shell.exponents, shell.radial_coefficients().tolist(), strict=True):
        total = total + c * (2 * a) ** -(shell.l + 1.5) * torch.exp(-p2 / (4 * a))
    return total


def _size(shells: tuple[Shell, ...]) -> int:
    return sum(2 * s.l + 1 for s in shells)


def _rows(shells: tuple[Shell, ...], device: torch.device) -> Tensor:
    """l^2 + l + m of each AO of an element, shape (ao,)."""
    return torch.tensor([k for s in shells for k in range(s.l**2, (s.l + 1) ** 2)], device=device)
