"""ElectronicState: occupied orbitals and their densities, restricted or of two spins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mlsemi.batch import Batch
from mlsemi.eigen import solve_density


@dataclass(frozen=True, eq=False)
class ElectronicState:
    """States of a batch; AO matrices are padded, see `Batch.ao_mask`.

    The spin axis has one entry if every molecule is a closed shell (orbitals hold 2 electrons, the density is that of
    all electrons), or two, alpha and beta, with one electron in an orbital; a closed-shell member of such a batch has
    the same twice.

    There are as many orbitals as AOs; those of the padding have occupation zero and coefficients zero, and they come
    last: the orbitals of molecule k are the first `batch.n_ao[k]`.

    Attributes:
        fock: Fock matrices [Eh], shape (molecule, spin, ao, ao).
        overlap: overlap matrix, shape (molecule, ao, ao).
        density: density matrices, shape (molecule, spin, ao, ao); differentiable in fock and overlap.
        mo_energy: orbital energies [Eh], ascending, shape (molecule, spin, mo); differentiable likewise.
        mo_coeff: orbital coefficients, shape (molecule, spin, ao, mo); constants, no gradient passes through them.
        mo_occ: occupations, shape (molecule, spin, mo).
        gap: least distance of an occupied and an empty orbital [Eh], infinite if one of them is missing, shape
            (molecule, spin); no gradient.
        ao_mask: True where an AO exists, shape (molecule, ao).
        n_dropped: combinations of AOs that were dropped because S is nearly singular, shape (molecule,); so many
            orbitals less there are. None if nobody looked.
    """

    fock: Tensor
    overlap: Tensor
    density: Tensor
    mo_energy: Tensor
    mo_coeff: Tensor
    mo_occ: Tensor
    gap: Tensor
    ao_mask: Tensor
    n_dropped: Tensor | None = None

    @property
    def n_spins(self) -> int:
        """Length of the spin axis, 1 or 2."""
        return self.density.shape[1]

    @property
    def total_density(self) -> Tensor:
        """Density of all electrons, shape (molecule, ao, ao)."""
        return self.density.sum(1) if self.n_spins == 2 else self.density[:, 0]

    @property
    def spin_density(self) -> Tensor:
        """Density of the alpha minus that of the beta electrons, shape (molecule, ao, ao)."""
        if self.n_spins == 1:
            return torch.zeros_like(self.density[:, 0])
        return self.density[:, 0] - self.density[:, 1]

    def shifted(self, shift: float) -> ElectronicState:
        """The state with its orbital energies counted from another zero: F + shift S [Eh]."""
        if not shift:
            return self
        fock = self.fock + shift * self.overlap.unsqueeze(1)
        return replace(self, fock=fock, mo_energy=self.mo_energy + shift)


def n_spin_channels(batch: Batch) -> int:
    """Length of the spin axis that a batch needs: 1 if all its molecules are closed shells, else 2."""
    return 2 if any(m.spin for m in batch.molecules) else 1


def aufbau_occupations(
    n_electrons: Tensor,
    spin: Tensor,
    n_mo: Tensor,
    *,
    n_spins: int,
    size: int | None = None,
    names: Sequence[str] | None = None,
) -> Tensor:
    """Occupations: the lowest orbitals hold two electrons each, or one of each spin.

    Args:
        n_electrons: number of electrons, shape (molecule,).
        spin: number of unpaired electrons, which are alpha, shape (molecule,).
        n_mo: number of orbitals, shape (molecule,).
        n_spins: 1 for closed shells, or 2.
        size: number of columns of the result; the largest `n_mo` by default.
        names: names of the molecules in messages; "molecule k of the batch" by default.

    Returns:
        Occupations, shape (molecule, spin, mo), float64.

    Raises:
        ValueError: for a spin that the number of electrons does not allow, an open shell with `n_spins` 1, or more
            electrons than the orbitals can hold.
    """

    def name(k: int) -> str:
        return f"molecule {k} of the batch" if names is None else names[k]

    alpha, beta = (n_electrons + spin) // 2, (n_electrons - spin) // 2
    impossible = ((n_electrons + spin) % 2 != 0) | (spin < 0) | (beta < 0)
    for k in torch.nonzero(impossible).flatten().tolist():
        raise ValueError(
            f"{name(k)} has {int(n_electrons[k])} electrons and spin={int(spin[k])}: so many cannot be "
            "unpaired (are charge and spin, 2S, right?)"
        )
    for k in torch.nonzero((spin != 0) & (n_spins == 1)).flatten().tolist():
        raise ValueError(
            f"{name(k)} has {int(n_electrons[k])} electrons and spin={int(spin[k])}: an open shell "
            "needs two Fock matrices, and there is only one"
        )
    for k in torch.nonzero(alpha > n_mo).flatten().tolist():
        raise ValueError(
            f"{name(k)} has {int(alpha[k])} electrons of alpha spin, but its basis has only "
            f"{int(n_mo[k])} orbitals: take a larger basis or check charge and spin"
        )
    filled = torch.stack([alpha, beta][:n_spins], dim=1)
    columns = torch.arange(int(n_mo.max()) if size is None else size, device=n_electrons.device)
    return (2.0 / n_spins) * (columns < filled.unsqueeze(-1)).double()


def solve_state(fock: Tensor, overlap: Tensor, batch: Batch) -> ElectronicState:
    """The state of each molecule of a batch: one generalized eigenproblem for each Fock matrix.

    Args:
        fock: Fock matrices [Eh], shape (molecule, spin, ao, ao).
        overlap: overlap matrices, shape (molecule, ao, ao).
        batch: the molecules.

    Returns:
        States in float64.

    Raises:
        ValueError: for electrons that do not fit (see `aufbau_occupations`), matrices that do not fit or are not
            finite, or a singular overlap; with the name of the molecule.
    """
    n_molecules, n_spins, n_ao = fock.shape[:3]
    names = names_of(batch)
    occupation = aufbau_occupations(batch.n_electrons, batch.spin, batch.n_ao, n_spins=n_spins, size=n_ao, names=names)

    def each_spin(x: Tensor) -> Tensor:
        """Repeats (molecule, ...) to (molecule * spin, ...)."""
        return x if n_spins == 1 else x.repeat_interleave(n_spins, 0)

    spins = ("",) if n_spins == 1 else (" (alpha)", " (beta)")
    orbitals, density = solve_density(
        fock.flatten(0, 1),
        each_spin(overlap),
        occupation.flatten(0, 1),
        each_spin(batch.ao_mask),
        names=[name + spin for name in names for spin in spins],
    )
    shape = (n_molecules, n_spins)
    return ElectronicState(
        fock=fock,
        overlap=overlap,
        density=density.unflatten(0, shape),
        mo_energy=orbitals.mo_energy.unflatten(0, shape),
        mo_coeff=orbitals.mo_coeff.unflatten(0, shape),
        mo_occ=occupation,
        gap=orbitals.gap.unflatten(0, shape),
        ao_mask=batch.ao_mask,
        n_dropped=orbitals.n_dropped.unflatten(0, shape)[:, 0],
    )


def names_of(batch: Batch) -> list[str]:
    """What messages call the molecules of a batch: by name or formula and, where that is not unique, by number."""
    plain = [m.name or m.formula for m in batch.molecules]
    times = Counter(plain)
    return [x if times[x] == 1 else f"{x} (molecule {k} of the batch)" for k, x in enumerate(plain)]
