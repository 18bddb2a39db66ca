"""Free atoms: spherical, neutral, exactly Z electrons; the densities that the baseline superposes.

The density of an element is that of the occupied functions of the minimal basis ANO-RCC-MB (Roos et al. 2004, through
the Basis Set Exchange), with the ground-state configuration averaged over m, projected on the basis set of the
calculation and rescaled to Z electrons.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from math import gamma, pi

import numpy as np
from scipy.special import erf

from mlsemi.basis import Basis, Shell, basis_directory, load_basis

MINIMAL_BASIS = "ano-rcc-mb"
SAP_SET = "sap_helfem_small"
_AUFBAU = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (0, 4), (2, 3), (1, 4))  # (l, n)
_RADII = np.exp(np.linspace(np.log(1e-3), np.log(25.0), 400))


@dataclass(frozen=True, eq=False)
class FreeAtom:
    """One element's spherical density.

    Attributes:
        number: atomic number Z.
        shell_density: density matrix over the shells of each l, for one m: l -> (shell, shell); the density matrix is
            this times the identity in m.
        exponents: exponents a_k of the s-type Gaussian charges fitted to the density [bohr^-2], shape (k,).
        charges: their charges [e], shape (k,), summing to Z.
    """

    number: int
    shell_density: tuple[np.ndarray, ...]
    exponents: np.ndarray
    charges: np.ndarray

    def density(self, basis: Basis) -> np.ndarray:
        """Density matrix over the AOs of the atom, shape (ao, ao), block-diagonal."""
        shells = basis.shells(self.number)
        start = np.cumsum([0] + [2 * s.l + 1 for s in shells])
        out = np.zeros((start[-1], start[-1]))
        for l, block in enumerate(self.shell_density):
            members = [k for k, s in enumerate(shells) if s.l == l]
            for p, a in enumerate(members):
                for q, b in enumerate(members):
                    out[start[a] : start[a + 1], start[b] : start[b + 1]] = block[p, q] * np.eye(2 * l + 1)
        return out

    def radial_density(self, basis: Basis, r: np.ndarray) -> np.ndarray:
        """rho(r) [e/bohr^3] at radii of any shape."""
        shells = basis.shells(self.number)
        rho = np.zeros_like(r)
        for l, block in enumerate(self.shell_density):
            radial = np.array([radial_function(s, r) for s in shells if s.l == l])
            if len(radial):
                rho = rho + (2 * l + 1) / (4 * pi) * np.einsum("p...,pq,q...->...", radial, block, radial)
        return rho


def radial_function(shell: Shell, r: np.ndarray) -> np.ndarray:
    """R_l(r) of a shell, of the shape of r."""
    coefficients = shell.radial_coefficients()
    exponents = np.array(shell.exponents)
    return r**shell.l * np.tensordot(coefficients, np.exp(-np.multiply.outer(exponents, r * r)), axes=1)


def ground_state_occupations(number: int) -> dict[int, list[float]]:
    """Electrons of each shell, filled in the order of Madelung: l -> electrons of its first, second... shell."""
    left, filled = number, {}
    for l, _ in _AUFBAU:
        n = min(left, 2 * (2 * l + 1))
        if n > 0:
            filled.setdefault(l, []).append(float(n))
        left -= n
    return filled


def _overlap(first: list[Shell], second: list[Shell]) -> np.ndarray:
    """Overlap of the radial functions of shells of one l at one centre, shape (first, second)."""
    out = np.zeros((len(first), len(second)))
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            total = np.add.outer(np.array(a.exponents), np.array(b.exponents))
            integral = gamma(a.l + 1.5) / (2 * total ** (a.l + 1.5))
            out[i, j] = a.radial_coefficients() @ integral @ b.radial_coefficients()
    return out


@lru_cache(maxsize=256)
def free_atom(basis: Basis, number: int) -> FreeAtom:
    """The free atom of an element in a basis set.

    Raises:
        ValueError: if the basis or the minimal basis lacks the element, or the basis lacks an occupied l.
    """
    minimal, shells = load_basis(MINIMAL_BASIS).shells(number), basis.shells(number)
    blocks, electrons = [], 0.0
    occupations = ground_state_occupations(number)
    for l in range(max(s.l for s in shells) + 1):
        own = [s for s in shells if s.l == l]
        occupied = [s for s in minimal if s.l == l][: len(occupations.get(l, []))]
        if occupied and not own:
            raise ValueError(
                f"basis {basis.name!r} has no l={l} functions for Z={number}, which are occupied in the atom"
            )
        per_m = np.array(occupations.get(l, [])) / (2 * l + 1)
        metric = _overlap(own, own)
        projection = np.linalg.solve(metric, _overlap(own, occupied)) if occupied else np.zeros((len(own), 0))
        block = projection @ np.diag(per_m) @ projection.T
        blocks.append(block)
        electrons += (2 * l + 1) * float(np.sum(block * metric))
    blocks = tuple(b * (number / electrons) for b in blocks)
    atom = FreeAtom(number, blocks, np.zeros(0), np.zeros(0))
    return FreeAtom(number, blocks, *_fit_charges(atom, basis))


def _fit_charges(atom: FreeAtom, basis: Basis) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian charges whose potential is that of the density: least squares in r^2 V^2 dr with the charge fixed.

    Even-tempered exponents; their range is found by a coarse search, which is deterministic.
    """
    r = _RADII
    rho = atom.radial_density(basis, r)
    weight = np.gradient(r)
    enclosed = np.cumsum(4 * pi * r**2 * rho * weight)
    outer = np.cumsum((4 * pi * r * rho * weight)[::-1])[::-1]
    target = enclosed / r + outer - 4 * pi * r * rho * weight
    scale = atom.number / enclosed[-1]
    target = target * scale
    root_weight = np.sqrt(weight * r)
    count = n_fit_charges(atom.number)
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for low in np.geomspace(0.06, 0.6, 24):
        for high in np.geomspace(2.0, 20.0, 12) * max(1.0, (atom.number / 2) ** 2):
            exponents = np.geomspace(low, high, count)
            potential = erf(np.sqrt(exponents) * r[:, None]) / r[:, None]
            # the last charge carries the constraint that they sum to Z
            design = (potential[:, :-1] - potential[:, -1:]) * root_weight[:, None]
            rhs = (target - atom.number * potential[:, -1]) * root_weight
            solution, *_ = np.linalg.lstsq(design, rhs, rcond=1e-10)
            error = float(np.sum((design @ solution - rhs) ** 2))
            if best is None or error < best[0]:
                best = (error, exponents, np.append(solution, atom.number - solution.sum()))
    assert best is not None
    return best[1], best[2]


def n_fit_charges(number: int) -> int:
    """How many Gaussian charges stand for the density of an element; it grows with the number of its shells."""
    return 4 if number <= 2 else 7 if number <= 10 else 9


def sap_charges(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Exponents and charges of a superposition of atomic potentials, shape (k,) each; the charges sum to Z.

    S. Lehtola, J. Chem. Theory Comput. 15, 1593 (2019); the Gaussian fits of S. Lehtola, L. Visscher, E. Engel,
    J. Chem. Phys. 152, 144105 (2020), set sap_helfem_small of the Basis Set Exchange.

    Raises:
        ValueError: if the set lacks the element.
    """
    data = json.loads((basis_directory() / f"{SAP_SET}.json").read_text())["elements"]
    if str(number) not in data:
        raise ValueError(f"the atomic potentials {SAP_SET!r} lack the element with Z={number}")
    (shell,) = data[str(number)]["electron_shells"]
    return np.array(shell["exponents"], dtype=float), -np.array(shell["coefficients"][0], dtype=float)
