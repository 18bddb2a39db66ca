"""Reactivity from frontier orbitals: HOMO, LUMO, the quantities of conceptual DFT, condensed Fukui functions.

Ionization energy and electron affinity are those of frozen orbitals, I = -E_HOMO and A = -E_LUMO (Koopmans 1934; Janak
1978 for Kohn-Sham orbitals, whose values are not the same as differences of total energies).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mlsemi.batch import Batch
from mlsemi.eigen import density
from mlsemi.properties.populations import PopulationKind, populations

DEGENERATE = 1e-4
"""Orbitals this close to the HOMO or LUMO [Eh] belong to the same degenerate set: a network in float32 and an SCF leave
1e-5 between them, and what symmetry does not make equal is hardly ever so close."""


@dataclass(frozen=True, eq=False)
class Frontier:
    """Frontier orbital energies and what is made of them, each of shape (molecule,); differentiable.

    Attributes:
        homo: energy of the highest occupied orbital of either spin [Eh]; nan without any.
        lumo: energy of the lowest empty orbital of either spin [Eh]; nan without any.
    """

    homo: Tensor
    lumo: Tensor

    @property
    def gap(self) -> Tensor:
        """LUMO minus HOMO [Eh]: I - A."""
        return self.lumo - self.homo

    @property
    def hardness(self) -> Tensor:
        """eta = (I - A) / 2 [Eh] (Parr and Pearson, J. Am. Chem. Soc. 105, 7512 (1983))."""
        return self.gap / 2

    @property
    def electronegativity(self) -> Tensor:
        """chi = (I + A) / 2 [Eh], minus the chemical potential (Mulliken, J. Chem. Phys. 2, 782 (1934))."""
        return -(self.homo + self.lumo) / 2

    @property
    def electrophilicity(self) -> Tensor:
        """omega = chi^2 / (2 (I - A)) [Eh]: the energy gained by taking up electrons until saturation.

        nan where the gap is not above `DEGENERATE`: there is no hardness then, and nothing saturates.

        Parr, von Szentpaly and Liu, J. Am. Chem. Soc. 121, 1922 (1999), who write mu^2 / (2 eta) with a hardness of
        I - A, twice that of `hardness`.
        """
        gap = torch.where(self.gap > DEGENERATE, self.gap, torch.nan)
        return self.electronegativity.square() / (2 * gap)


class FrontierDensities(NamedTuple):
    """Densities of one electron in the frontier orbitals, each of shape (molecule, ao, ao).

    Where levels are degenerate, or equal for both spins, the electron is shared equally among all of the set. Zero
    where there is no such orbital.

    Attributes:
        homo: of the highest occupied orbitals.
        lumo: of the lowest empty ones.
    """

    homo: Tensor
    lumo: Tensor


class Fukui(NamedTuple):
    """Condensed Fukui functions of the atoms, each of shape (atom,); each adds up to one in a molecule.

    Attributes:
        minus: f-, for attack by electrophiles: population of the HOMO.
        plus: f+, for attack by nucleophiles: population of the LUMO.
        zero: f0, for attack by radicals: the mean of both.
    """

    minus: Tensor
    plus: Tensor
    zero: Tensor


def frontier(mo_energy: Tensor, mo_occ: Tensor, batch: Batch) -> Frontier:
    """HOMO and LUMO over both spins, with hardness, electronegativity and electrophilicity.

    Args:
        mo_energy: orbital energies [Eh], shape (molecule, spin, mo).
        mo_occ: occupations, same shape.
        batch: the molecules.
    """
    exists = _exists(mo_energy, batch)
    occupied, empty = exists & (mo_occ > 0), exists & (mo_occ == 0)
    homo = torch.where(occupied, mo_energy, -torch.inf).amax((1, 2))
    lumo = torch.where(empty, mo_energy, torch.inf).amin((1, 2))
    return Frontier(*(torch.where(e.isfinite(), e, torch.nan) for e in (homo, lumo)))


def frontier_occupations(
    mo_energy: Tensor, mo_occ: Tensor, batch: Batch, *, degenerate: float = DEGENERATE
) -> tuple[Tensor, Tensor]:
    """How one electron is shared among the orbitals of the HOMO's set, and among those of the LUMO's.

    Args:
        mo_energy: orbital energies [Eh], shape (molecule, spin, mo).
        mo_occ: occupations, same shape.
        batch: the molecules.
        degenerate: orbitals this close to the HOMO or LUMO belong to its set [Eh].

    Returns:
        Two tensors of the same shape, no gradient.
    """
    energy = mo_energy.detach()
    edges = frontier(energy, mo_occ, batch)
    exists = _exists(energy, batch)
    homo, lumo = edges.homo[:, None, None], edges.lumo[:, None, None]
    sets = (
        exists & (mo_occ > 0) & (energy >= homo - degenerate),
        exists & (mo_occ == 0) & (energy <= lumo + degenerate),
    )
    minus, plus = (s.double() / s.sum((1, 2), keepdim=True).clamp(min=1) for s in sets)
    return minus, plus


def frontier_densities(
    mo_energy: Tensor, mo_coeff: Tensor, mo_occ: Tensor, batch: Batch, *, degenerate: float = DEGENERATE
) -> FrontierDensities:
    """Densities of the frontier orbitals from their coefficients, without a gradient of a state's coefficients.

    Args:
        mo_energy: orbital energies [Eh], shape (molecule, spin, mo).
        mo_coeff: orbital coefficients, shape (molecule, spin, ao, mo).
        mo_occ: occupations, shape (molecule, spin, mo).
        batch: the molecules.
        degenerate: orbitals this close to the HOMO or LUMO belong to its set [Eh].
    """
    shares = frontier_occupations(mo_energy, mo_occ, batch, degenerate=degenerate)
    return FrontierDensities(*(((mo_coeff * f.unsqueeze(-2)) @ mo_coeff.mT).sum(1) for f in shares))


def differentiable_frontier_densities(
    fock: Tensor, overlap: Tensor, mo_energy: Tensor, mo_occ: Tensor, batch: Batch, *, degenerate: float = DEGENERATE
) -> FrontierDensities:
    """As `frontier_densities`, differentiable twice in Fock matrix and overlap, at the cost of two diagonalizations.

    Args:
        fock: Fock matrices [Eh], shape (molecule, spin, ao, ao).
        overlap: overlap matrices, shape (molecule, ao, ao).
        mo_energy: their orbital energies [Eh], shape (molecule, spin, mo).
        mo_occ: occupations, shape (molecule, spin, mo).
        batch: the molecules.
        degenerate: orbitals this close to the HOMO or LUMO belong to its set [Eh].

    Raises:
        ValueError: by the backward pass, where an orbital outside of the set has the same energy as one of it.
    """
    n_spins = fock.shape[1]
    shares = frontier_occupations(mo_energy, mo_occ, batch, degenerate=degenerate)
    s, mask = (x.repeat_interleave(n_spins, 0) for x in (overlap, batch.ao_mask))
    found = (density(fock.flatten(0, 1), s, f.flatten(0, 1), mask) for f in shares)
    return FrontierDensities(*(d.unflatten(0, fock.shape[:2]).sum(1) for d in found))


def fukui(densities: FrontierDensities, overlap: Tensor, batch: Batch, *, kind: PopulationKind) -> Fukui:
    """Condensed Fukui functions in the approximation of frontier orbitals (Yang and Mortier 1986; Fukui 1952).

    Frozen orbitals: how they relax when an electron comes or goes is left out. Averaged over degenerate sets, so that
    they have the symmetry of the molecule.

    Args:
        densities: from `frontier_densities` or `differentiable_frontier_densities`.
        overlap: overlap matrices, shape (molecule, ao, ao).
        batch: the molecules.
        kind: which populations: 'mulliken' (may be negative) or 'loewdin'.
    """
    minus, plus = (populations(d, overlap, batch, kind=kind) for d in densities)
    return Fukui(minus, plus, (minus + plus) / 2)


def _exists(mo_energy: Tensor, batch: Batch) -> Tensor:
    """True where there is an orbital, broadcasts against (molecule, spin, mo)."""
    columns = torch.arange(mo_energy.shape[-1], device=mo_energy.device)
    return (columns < batch.n_ao.unsqueeze(-1)).unsqueeze(1)
