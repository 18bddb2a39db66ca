"""ElectronicState: occupied orbitals and their density."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlsemi.batch import Batch
from mlsemi.eigen import solve_density


@dataclass(frozen=True, eq=False)
class ElectronicState:
    """Restricted closed-shell states of a batch; AO matrices are padded, see `Batch.ao_mask`.

    There are as many orbitals as AOs; those of the padding have occupation zero and coefficients zero, and they come
    last: the orbitals of molecule k are the first `batch.n_ao[k]`.

    Attributes:
        fock: Fock matrix [Eh], shape (molecule, ao, ao).
        overlap: overlap matrix, shape (molecule, ao, ao).
        density: density matrix of all electrons, shape (molecule, ao, ao); differentiable in fock and overlap.
        mo_energy: orbital energies [Eh], ascending, shape (molecule, mo); differentiable likewise.
        mo_coeff: orbital coefficients, shape (molecule, ao, mo); constants, no gradient passes through them.
        mo_occ: occupations, 2 or 0, shape (molecule, mo).
        ao_mask: True where an AO exists, shape (molecule, ao).
    """

    fock: Tensor
    overlap: Tensor
    density: Tensor
    mo_energy: Tensor
    mo_coeff: Tensor
    mo_occ: Tensor
    ao_mask: Tensor


def aufbau_occupations(n_electrons: Tensor, spin: Tensor, n_mo: Tensor, *, size: int | None = None) -> Tensor:
    """Occupations of closed shells: the lowest orbitals hold two electrons each.

    Args:
        n_electrons: number of electrons, shape (molecule,).
        spin: number of unpaired electrons, shape (molecule,); all must be zero.
        n_mo: number of orbitals, shape (molecule,).
        size: number of columns of the result; the largest `n_mo` by default.

    Returns:
        Occupations, shape (molecule, mo), float64.

    Raises:
        ValueError: for an open shell, or more electrons than the orbitals can hold.
    """
    odd = torch.nonzero((spin != 0) | (n_electrons % 2 != 0)).flatten().tolist()
    if odd:
        k = odd[0]
        raise ValueError(
            f"molecule {k} of the batch has {int(n_electrons[k])} electrons and spin={int(spin[k])}: open shells are "
            "not covered by the fast mode yet; it needs an even number of electrons and spin=0 (is the charge right?)"
        )
    pairs = torch.div(n_electrons, 2, rounding_mode="floor")
    over = torch.nonzero(pairs > n_mo).flatten().tolist()
    if over:
        k = over[0]
        raise ValueError(
            f"molecule {k} of the batch has {int(n_electrons[k])} electrons, but its basis has only {int(n_mo[k])} "
            f"orbitals, room for {2 * int(n_mo[k])}: take a larger basis or check the charge"
        )
    columns = torch.arange(int(n_mo.max()) if size is None else size, device=n_electrons.device)
    return 2.0 * (columns < pairs.unsqueeze(1)).double()


def solve_state(fock: Tensor, overlap: Tensor, batch: Batch) -> ElectronicState:
    """The closed-shell state of each molecule of a batch: one generalized eigenproblem.

    Args:
        fock: Fock matrices [Eh], shape (molecule, ao, ao).
        overlap: overlap matrices, shape (molecule, ao, ao).
        batch: the molecules.

    Returns:
        States in float64.

    Raises:
        ValueError: for open shells, matrices that do not fit or are not finite, or a singular overlap.
    """
    occupation = aufbau_occupations(batch.n_electrons, batch.spin, batch.n_ao, size=batch.ao_mask.shape[1])
    orbitals, density = solve_density(fock, overlap, occupation, batch.ao_mask)
    return ElectronicState(
        fock=fock,
        overlap=overlap,
        density=density,
        mo_energy=orbitals.mo_energy,
        mo_coeff=orbitals.mo_coeff,
        mo_occ=occupation,
        ao_mask=batch.ao_mask,
    )
