"""The operators: overlap, kinetic energy, dipole, and the potential of spherical charges.

The scheme is that of McMurchie and Davidson (J. Comput. Phys. 26, 218 (1978)), as in Helgaker, Joergensen, Olsen,
Molecular Electronic-Structure Theory, chapter 9, vectorized over all primitive pairs of a class (l1, l2). With s_ij the
one-dimensional overlap of x_A^i x_B^j exp(-p x_P^2) divided by (pi / p)^(1/2), the Hermite expansion coefficients are

    E_t^ij = (2 p)^-t sum_k binom(i, k) binom(j, t - k) s_(i-k, j-t+k),

a constant matrix applied to the s_ij, so that one small table of s_ij serves all the integrals.
"""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from mlsemi.batch import Batch
from mlsemi.integrals.charges import Charges
from mlsemi.integrals.hermite import hermite_degrees
from mlsemi.integrals.primitive_pairs import PrimitivePairs, contract, scatter
from mlsemi.integrals.shell_pairs import IntegralPlan, PairClass
from mlsemi.integrals.tables import cartesian_rows, hermite_terms


def one_electron(
    batch: Batch, plan: IntegralPlan, *, with_dipole: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Overlap, kinetic energy and, if asked for, dipole integrals; the work is shared.

    Args:
        batch: the molecules.
        plan: `plan(batch)`.
        with_dipole: whether to compute the dipole integrals.

    Returns:
        Overlap (molecule, ao, ao); kinetic energy [Eh] (molecule, ao, ao); <i|r|j> about the origin [bohr]
        (molecule, 3, ao, ao) or None. Zero in the padding. Memory is proportional to the number of primitive pairs
        that are not negligible: about 1 kB each in def2-SVP with a gradient.
    """
    pairs = PrimitivePairs(batch, plan)
    values = []
    for part, cls in zip(pairs.classes, plan.classes, strict=True):
        values.append(contract(_one_electron_class(pairs, part, cls, with_dipole), pairs.shell_pair[part], cls))
    out = scatter(values, plan)
    return out[0], out[1], out[2:].transpose(0, 1) if with_dipole else None


def _one_electron_class(pairs: PrimitivePairs, part: slice, cls: PairClass, with_dipole: bool) -> Tensor:
    """Cartesian S, T (and x, y, z) of the primitive pairs of a class, shape (2 or 5, cart1 * cart2, n).

    One-dimensional kinetic energy 1/2 <i'|j'> with x^i exp(-a x^2)' = i x^(i-1) - 2 a x^(i+1).
    """
    n_i, n_j = cls.l1 + 2, cls.l2 + 2
    s = pairs.overlaps(part, n_i, n_j)
    a, b = pairs.a[part], pairs.b[part]
    kinetic, position = [], []
    centre = pairs.centre_a[:, part]
    two_ab = 2 * a * b
    for i in range(cls.l1 + 1):
        for j in range(cls.l2 + 1):
            at = i * n_j + j
            k = two_ab * s[at + n_j + 1]
            if i:
                k = torch.addcmul(k, b, s[at - n_j + 1], value=-i)
            if j:
                k = torch.addcmul(k, a, s[at + n_j - 1], value=-j)
            if i and j:
                k = torch.add(k, s[at - n_j - 1], alpha=0.5 * i * j)
            kinetic.append(k)
            if with_dipole:
                position.append(torch.addcmul(s[at + n_j], centre, s[at]))
    rows, small = cartesian_rows(cls.l1, cls.l2, n_j, s.device)
    k = torch.stack(kinetic)
    prefactor = pairs.prefactor[part] * (pi / pairs.p[part]) ** 1.5
    sx, sy, sz = (s[:, i].index_select(0, rows[i]) for i in range(3))
    kx, ky, kz = (k[:, i].index_select(0, small[i]) for i in range(3))
    sx, kx = sx * prefactor, kx * prefactor
    syz = sy * sz
    out = [sx * syz, kx * syz + sx * (ky * sz + sy * kz)]
    if with_dipole:
        d = torch.stack(position)
        dx, dy, dz = (d[:, i].index_select(0, small[i]) for i in range(3))
        out += [dx * prefactor * syz, sx * dy * sz, sx * sy * dz]
    return torch.stack(out)


def overlap(batch: Batch, plan: IntegralPlan) -> Tensor:
    """Overlap matrices, shape (molecule, ao, ao), zero in the padding."""
    return one_electron(batch, plan)[0]


def kinetic(batch: Batch, plan: IntegralPlan) -> Tensor:
    """Kinetic energy matrices [Eh], shape (molecule, ao, ao), zero in the padding."""
    return one_electron(batch, plan)[1]


def dipole(batch: Batch, plan: IntegralPlan) -> Tensor:
    """Matrices of x, y, z about the origin of the coordinates [bohr], shape (molecule, 3, ao, ao)."""
    out = one_electron(batch, plan, with_dipole=True)[2]
    assert out is not None
    return out


def coulomb(
    batch: Batch, plan: IntegralPlan, centers: Tensor, center_molecule: Tensor, omega2: Tensor, weight: Tensor
) -> Tensor:
    """Potential of spherical charges: sum over centres C and k of weight * <i| erf(omega r_C) / r_C |j>.

    Differentiable in the positions of the batch, the centres and the weights. A centre whose weights sum to zero is
    left out where it is out of reach, unless its weights require a gradient.

    Args:
        batch: the molecules.
        plan: `plan(batch)`.
        centers: positions C [bohr], shape (center, 3).
        center_molecule: molecule of each centre, shape (center,), int64.
        omega2: omega^2 [bohr^-2], shape (center, k); inf for 1/r. A Gaussian charge with exponent z has omega^2 = z.
        weight: charges as an electron sees them, -Z for a nucleus, shape (center, k); zero where a centre has fewer.

    Returns:
        Shape (molecule, ao, ao) [Eh], zero in the padding. Memory is proportional to the number of primitive pairs,
        with a gradient to the number of (primitive pair, centre) combinations: about 200 bytes each in def2-SVP (4 MB
        for ethanol, 45 MB for aspirin). Split the batch where that is too much.

    Raises:
        ValueError: for shapes that do not fit.
    """
    n = centers.shape[0]
    if centers.shape != (n, 3) or center_molecule.shape != (n,) or omega2.shape != weight.shape or len(omega2) != n:
        raise ValueError(
            f"centers {tuple(centers.shape)}, center_molecule {tuple(center_molecule.shape)}, omega2 "
            f"{tuple(omega2.shape)} and weight {tuple(weight.shape)} must be (center, 3), (center,), "
            "(center, k), (center, k)"
        )
    if not n:
        return centers.new_zeros(plan.n_molecules, plan.n_ao, plan.n_ao)
    pairs = PrimitivePairs(batch, plan)
    if weight.requires_grad:  # linear in the weights: one term after the other, with weight one
        one = torch.ones_like(weight[:, :1])
        terms = [
            Charges(centers, center_molecule, omega2[:, k : k + 1], one, plan.n_molecules, scale=weight[:, k])
            for k in range(weight.shape[1])
        ]
    else:
        terms = [Charges(centers, center_molecule, omega2, weight, plan.n_molecules)]
    values: list[Tensor] = []
    for degree in sorted({c.l1 + c.l2 for c in plan.classes}):
        members = [(part, c) for part, c in zip(pairs.classes, plan.classes, strict=True) if c.l1 + c.l2 == degree]
        group = slice(members[0][0].start, members[-1][0].stop)
        field = _field(pairs, group, terms, degree)
        for part, cls in members:
            inside = field[:, part.start - group.start : part.stop - group.start]
            values.append(contract(_coulomb_class(pairs, part, cls, inside), pairs.shell_pair[part], cls))
    return scatter(values, plan)


def _field(pairs: PrimitivePairs, group: slice, terms: list[Charges], degree: int) -> Tensor:
    """Sum over centres of the Hermite integrals, times (2 p)^-(t + u + v), shape (component, n)."""
    p, molecule = pairs.p[group], pairs.molecule[group]
    half = 0.5 / p
    position = pairs.centre_a[:, group] - pairs.ab[:, group] * (2 * pairs.b[group] * half)
    total = terms[0].field(position, p, molecule, degree)
    for term in terms[1:]:
        total = total + term.field(position, p, molecule, degree)
    if degree == 0:
        return total
    powers = half ** torch.arange(degree + 1, device=p.device)[:, None]
    return total * powers.index_select(0, hermite_degrees(degree, p.device))


def _coulomb_class(pairs: PrimitivePairs, part: slice, cls: PairClass, field: Tensor) -> Tensor:
    """Sum over t, u, v of E_tuv times the field, for the Cartesian functions of a class, shape (cart1 * cart2, n)."""
    field = field * pairs.prefactor[part]
    if cls.l1 + cls.l2 == 0:
        return field
    terms = hermite_terms(cls.l1, cls.l2, field.device)
    s = pairs.overlaps(part, cls.l1 + 1, cls.l2 + 1)
    e = (terms.expansion @ s.flatten(1)).view(-1, 3, s.shape[2])
    product = field.index_select(0, terms.field)
    for axis in range(3):
        product = product * e[:, axis].index_select(0, terms.rows[axis])
    return product.new_zeros(terms.n_cartesian, product.shape[1]).index_add(0, terms.target, product)
