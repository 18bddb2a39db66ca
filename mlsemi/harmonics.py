"""Real spherical harmonics and the rotations of them, as polynomials: no angles, so no singular directions.

Order of components: m = -l..l with the polar axis z, so l = 1 is (y, z, x). This is PySCF's order for l >= 2 and
e3nn's order once e3nn's axes (x, y, z) are read as our (y, z, x).
"""

from __future__ import annotations

from functools import lru_cache
from math import factorial, pi, sqrt

import numpy as np
import torch
from torch import Tensor


def solid_harmonics(l_max: int, vectors: Tensor) -> list[Tensor]:
    """Real solid harmonics r^l Y_lm, normalized so that Y_lm has norm one on the unit sphere.

    Standard recursion over l for the associated Legendre part and over m for cos and sin of m phi, both as polynomials
    in x, y, z (Helgaker, Joergensen, Olsen, Molecular Electronic-Structure Theory, section 6.4).

    Args:
        l_max: highest l.
        vectors: shape (..., 3).

    Returns:
        For each l = 0..l_max a tensor of shape (..., 2l + 1).
    """
    x, y, z = vectors.unbind(-1)
    r2 = x * x + y * y + z * z
    one = torch.ones_like(x)
    cosine, sine = [one], [torch.zeros_like(x)]
    for m in range(l_max):
        cosine.append(x * cosine[m] - y * sine[m])
        sine.append(x * sine[m] + y * cosine[m])
    # legendre[m][l]: r^(l-m) P_lm / sin^m, a polynomial in z and r2
    legendre: list[dict[int, Tensor]] = []
    for m in range(l_max + 1):
        column = {m: one * float(np.prod(np.arange(2 * m - 1, 0, -2))) if m else one}
        if m < l_max:
            column[m + 1] = (2 * m + 1) * z * column[m]
        for l in range(m + 2, l_max + 1):
            column[l] = ((2 * l - 1) * z * column[l - 1] - (l + m - 1) * r2 * column[l - 2]) / (l - m)
        legendre.append(column)
    harmonics = []
    for l in range(l_max + 1):
        rows = []
        for m in range(-l, l + 1):
            k = abs(m)
            norm = sqrt((2 * l + 1) / (4 * pi) * factorial(l - k) / factorial(l + k)) * (sqrt(2) if k else 1.0)
            rows.append(norm * legendre[k][l] * (sine[k] if m < 0 else cosine[k]))
        harmonics.append(torch.stack(rows, dim=-1))
    return harmonics


@lru_cache(maxsize=8)
def _probe(l_max: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Well spread unit vectors and, for each l, the pseudo-inverse of the harmonics on them."""
    n = 2 * (2 * l_max + 1)
    k = np.arange(n) + 0.5
    theta, phi = np.arccos(1 - 2 * k / n), pi * (1 + sqrt(5)) * k
    points = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=1)
    values = solid_harmonics(l_max, torch.from_numpy(points))
    return points, tuple(np.linalg.pinv(v.numpy()) for v in values)


def wigner_d(l_max: int, rotation: Tensor) -> list[Tensor]:
    """Matrices D^l with Y_l(R v) = D^l(R) Y_l(v), for any orthogonal R.

    The harmonics are evaluated on rotated probe points and expanded in those of the points themselves: a polynomial
    in the elements of R, exact and differentiable everywhere. An improper R gives D^l with the parity (-1)^l of Y_l.

    Args:
        l_max: highest l.
        rotation: orthogonal matrices, shape (..., 3, 3).

    Returns:
        For each l a tensor of shape (..., 2l + 1, 2l + 1).
    """
    points, inverses = _probe(l_max)
    rotated = torch.as_tensor(points, dtype=rotation.dtype, device=rotation.device) @ rotation.transpose(-1, -2)
    values = solid_harmonics(l_max, rotated)
    return [
        (torch.as_tensor(inverse, dtype=rotation.dtype, device=rotation.device) @ value).transpose(-1, -2)
        for inverse, value in zip(inverses, values, strict=True)
    ]


def bond_frames(directions: Tensor) -> Tensor:
    """Rotations that carry the z axis onto each direction, without angles.

    The shortest rotation from the nearer one of +z and -z (the latter after a half turn about x): smooth in each
    half space, never singular. What is built in the frame must not depend on the turn about the bond that the two
    charts differ by.

    Args:
        directions: unit vectors, shape (..., 3).

    Returns:
        Matrices R with R e_z = direction, shape (..., 3, 3).
    """
    x, y, z = directions.unbind(-1)
    sign = torch.where(z < 0, -1.0, 1.0).to(directions.dtype)
    # shortest rotation from e_z onto (x, y', |z|) with the half turn diag(1, -1, -1) applied in the lower chart
    y, z = sign * y, sign * z
    k = 1.0 / (1.0 + z)
    rows = [
        torch.stack([1 - k * x * x, -k * x * y, x], -1),
        torch.stack([-k * x * y, 1 - k * y * y, y], -1) * sign[..., None],
        torch.stack([-x, -y, z], -1) * sign[..., None],
    ]
    return torch.stack(rows, dim=-2)
