"""Harmonic vibrations, infrared intensities and spectra from second derivatives of the energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.constants import physical_constants as _codata
from scipy.constants import pi

_HARTREE, _BOHR, _AMU, _CHARGE, _LIGHT, _AVOGADRO, _VACUUM = (
    _codata[name][0]
    for name in (
        "Hartree energy", "Bohr radius", "atomic mass constant", "elementary charge", "speed of light in vacuum",
        "Avogadro constant", "vacuum electric permittivity",
    )
)  # fmt: skip

WAVENUMBER_OF_ROOT = (_HARTREE / _AMU) ** 0.5 / (_BOHR * 2 * pi * _LIGHT * 100)
"""Wavenumber [cm^-1] of a mode whose eigenvalue is 1 Eh/(bohr^2 u)."""

HARTREE_IN_WAVENUMBERS = _codata["hartree-inverse meter relationship"][0] / 100
"""[cm^-1]"""

KM_PER_MOL = _AVOGADRO * _CHARGE**2 / (12 * _VACUUM * _LIGHT**2 * _AMU) / 1000
"""Integrated molar absorption coefficient [km/mol] of a mode with |dmu/dQ|^2 = 1 e^2/u: N_A / (12 eps0 c^2) |dmu/dQ|^2,
974.88 in these units and 42.2561 for (D/angstrom)^2/u."""

OFF_AXIS = 0.01
"""A molecule none of whose atoms is further from its axis [bohr] counts as linear: an optimization leaves less."""


@dataclass(frozen=True, eq=False)
class Vibrations:
    """Normal modes of a molecule, in the order of their wavenumbers; translations and rotations are not among them.

    Attributes:
        wavenumbers: [cm^-1], shape (mode,); those of imaginary frequencies are negative.
        modes: displacements of the atoms per normal coordinate, dx/dQ [u^-1/2], shape (mode, atom, 3). Times the square
            roots of the masses they are orthonormal.
        reduced_masses: 1 / sum |dx/dQ|^2 [u], shape (mode,).
        force_constants: along the displacement of unit length [Eh/bohr^2], shape (mode,).
        masses: of the atoms [u], shape (atom,).
        positions: of the atoms [bohr], shape (atom, 3).
        linear: the molecule is linear (an atom is not).
    """

    wavenumbers: np.ndarray
    modes: np.ndarray
    reduced_masses: np.ndarray
    force_constants: np.ndarray
    masses: np.ndarray
    positions: np.ndarray
    linear: bool

    @property
    def n_imaginary(self) -> int:
        """Number of imaginary frequencies: none in a minimum, one in a transition state."""
        return int((self.wavenumbers < 0).sum())

    @property
    def displacements(self) -> np.ndarray:
        """The modes as displacements of unit length, shape (mode, atom, 3)."""
        return self.modes * np.sqrt(self.reduced_masses)[:, None, None]

    @property
    def zero_point_energy(self) -> float:
        """Half the sum of the real frequencies [Eh]."""
        return float(0.5 * self.wavenumbers[self.wavenumbers > 0].sum() / HARTREE_IN_WAVENUMBERS)


def is_linear(positions: np.ndarray) -> bool:
    """Whether two or more atoms lie on a line, to within `OFF_AXIS`; positions [bohr], shape (atom, 3)."""
    x = positions - positions.mean(0)
    if len(x) < 2:
        return False
    axis = np.linalg.svd(x, full_matrices=False)[2][0]
    return bool(np.linalg.norm(x - np.outer(x @ axis, axis), axis=1).max() < OFF_AXIS)


def rigid_motions(positions: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Translations and rotations in coordinates times the square root of the mass, orthonormal.

    Args:
        positions: [bohr], shape (atom, 3).
        masses: [u], shape (atom,).

    Returns:
        Shape (6, atom * 3); (5, ...) for a linear molecule, (3, ...) for an atom.
    """
    root = np.sqrt(masses)
    x = positions - masses @ positions / masses.sum()
    translations = np.einsum("a,ij->iaj", root / np.sqrt(masses.sum()), np.eye(3))
    if len(x) == 1:
        return translations.reshape(3, -1)
    moments, axes = np.linalg.eigh(inertia(x, masses))
    about = slice(1, 3) if is_linear(positions) else slice(0, 3)  # ascending moments: the first axis is the molecule's
    rotations = np.cross(axes.T[about, None, :], x) * root[:, None] / np.sqrt(moments[about, None, None])
    motions = np.concatenate([translations, rotations]).reshape(-1, 3 * len(x))
    # rotations about principal axes are orthonormal already, but for rounding and atoms that are a little off the axis
    return np.linalg.qr(motions.T)[0].T


def inertia(positions: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Tensor of inertia about the centre of mass [u bohr^2], shape (3, 3)."""
    x = positions - masses @ positions / masses.sum()
    moments = np.einsum("a,ai,aj->ij", masses, x, x)
    return np.eye(3) * np.trace(moments) - moments


def harmonic_analysis(hessian: np.ndarray, positions: np.ndarray, masses: np.ndarray) -> Vibrations:
    """Normal modes, with translations and rotations projected out.

    Where the gradient is not zero the result depends on the coordinates it is made in, and means little.

    Args:
        hessian: second derivatives of the energy [Eh/bohr^2], shape (atom, 3, atom, 3); its symmetric part counts.
        positions: [bohr], shape (atom, 3).
        masses: of the atoms [u], shape (atom,), see `mlsemi.properties.masses`.

    Raises:
        ValueError: for shapes that do not fit, values that are not finite, or masses that are not positive.
    """
    positions, masses = np.asarray(positions, dtype=np.float64), np.asarray(masses, dtype=np.float64)
    hessian, n = np.asarray(hessian, dtype=np.float64), len(positions)
    if positions.shape != (n, 3) or masses.shape != (n,) or hessian.shape != (n, 3, n, 3):
        raise ValueError(
            "hessian, positions and masses must have the shapes (atom, 3, atom, 3), (atom, 3) and (atom,), got "
            f"{hessian.shape}, {positions.shape} and {masses.shape}"
        )
    if not np.isfinite(hessian).all():
        raise ValueError("hessian holds values that are not finite")
    if not (masses > 0).all():
        raise ValueError(f"masses must be positive [u], got {masses.tolist()}")
    root = np.repeat(np.sqrt(masses), 3)
    weighted = hessian.reshape(3 * n, 3 * n) / np.outer(root, root)
    rigid = rigid_motions(positions, masses)
    # the complement of the rigid motions: the last columns of a complete QR
    basis = np.linalg.qr(rigid.T, mode="complete")[0][:, len(rigid) :]
    values, vectors = np.linalg.eigh(basis.T @ ((weighted + weighted.T) / 2) @ basis)
    modes = ((basis @ vectors) / root[:, None]).T.reshape(-1, n, 3)
    reduced = 1 / (modes**2).sum((1, 2))
    return Vibrations(
        wavenumbers=np.copysign(np.sqrt(np.abs(values)), values) * WAVENUMBER_OF_ROOT,
        modes=modes,
        reduced_masses=reduced,
        force_constants=reduced * values,
        masses=masses,
        positions=positions,
        linear=is_linear(positions),
    )


def infrared_intensities(dipole_derivatives: np.ndarray, vibrations: Vibrations) -> np.ndarray:
    """Integrated molar absorption coefficients of the fundamentals in the double-harmonic approximation.

    Args:
        dipole_derivatives: of the dipole moment by the positions [e], shape (atom, 3, 3), the moment last, see
            `mlsemi.properties.response.dipole_derivatives`.
        vibrations: the modes.

    Returns:
        Intensities [km/mol], shape (mode,).

    Raises:
        ValueError: for another shape.
    """
    n = len(vibrations.masses)
    if np.shape(dipole_derivatives) != (n, 3, 3):
        raise ValueError(f"dipole_derivatives must have shape ({n}, 3, 3), got {np.shape(dipole_derivatives)}")
    return KM_PER_MOL * (np.einsum("kai,aij->kj", vibrations.modes, dipole_derivatives) ** 2).sum(-1)


def broadened(
    wavenumbers: np.ndarray,
    intensities: np.ndarray,
    grid: np.ndarray,
    *,
    width: float = 10.0,
    shape: Literal["lorentzian", "gaussian"] = "lorentzian",
) -> np.ndarray:
    """A spectrum of bands from lines; the integral of a band is its intensity. Imaginary frequencies have no band.

    Args:
        wavenumbers: of the lines [cm^-1], shape (..., mode); nan where there is none, as in a padded batch.
        intensities: of the lines, shape (..., mode).
        grid: where the spectrum is wanted [cm^-1], shape (point,).
        width: full width of a band at half its maximum [cm^-1].
        shape: of the bands.

    Returns:
        Spectra [unit of the intensities times cm], shape (..., point).

    Raises:
        ValueError: for a width that is not positive, or another shape of the bands.
    """
    if not width > 0:
        raise ValueError(f"width={width} must be positive [cm^-1]")
    if shape not in ("lorentzian", "gaussian"):
        raise ValueError(f"shape={shape!r} must be 'lorentzian' or 'gaussian'")
    exists = np.asarray(wavenumbers) > 0
    height = np.where(exists, intensities, 0.0)
    distance = (np.asarray(grid) - np.where(exists, wavenumbers, 0.0)[..., None]) / (width / 2)
    if shape == "lorentzian":
        bands = 1 / (1 + distance**2) / (pi * width / 2)
    else:
        bands = np.exp(-np.log(2) * distance**2) * (np.log(2) / pi) ** 0.5 / (width / 2)
    return (height[..., None] * bands).sum(-2)
