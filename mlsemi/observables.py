"""Observables: what a calculation gives, each field a value or None. Reference labels and predictions are the same."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Observables:
    """Results for one molecule, in atomic units and in mlsemi's AO order.

    A field that a method does not have is None. Spin axis: one entry for a restricted state, two (alpha, beta) for an
    unrestricted one.

    Attributes:
        energy: total energy [Eh].
        fock: Fock or Kohn-Sham matrix [Eh], shape (spin, ao, ao).
        overlap: overlap matrix, shape (ao, ao).
        density: density matrix of all electrons of a spin (both spins together if restricted), shape (spin, ao, ao).
        mo_energy: orbital energies [Eh], ascending, shape (spin, mo).
        mo_coeff: orbital coefficients, shape (spin, ao, mo).
        mo_occ: occupations, shape (spin, mo).
        dipole: dipole moment about the origin of coordinates [e bohr], shape (3,).
        gradient: derivative of the energy with respect to the nuclei [Eh/bohr], shape (atom, 3).
        charges_mulliken: Mulliken charges [e], shape (atom,).
        charges_loewdin: Loewdin charges [e], shape (atom,).
        spin_square: expectation value <S^2> of the determinant; zero for a restricted state.
        spins_mulliken: unpaired electrons (alpha minus beta) on each atom after Mulliken, shape (atom,).
        spins_loewdin: the same after Loewdin.
        energy_error_estimate: error of the energy against the reference method that is to be expected [Eh]: 68 % of the
            errors are smaller, as found on validation molecules. The variational energy of a model that was not
            calibrated has dE2 of `mlsemi.reference.second_order`, and so has the scf mode.
        energy_error_95: 95 % of the errors are smaller [Eh], as found on validation molecules.
        ionization_energies: lowest vertical ionization energies [Eh], ascending, shape (state,).
        electron_affinities: highest vertical electron affinities [Eh], positive if the anion is bound, descending,
            shape (state,).
        t1_diagnostic: T1 of Lee and Taylor (Int. J. Quantum Chem. Symp. 23, 199 (1989)): beyond 0.02 (closed shells) a
            single reference is doubtful. For open shells the mean over the spins, equal to it if these are the same.
        scf_total_energy: Hartree-Fock energy that a correlated energy is built on [Eh].
        mp2_total_energy: the MP2 energy on the way to `energy` [Eh].
        ccsd_total_energy: the CCSD energy on the way to `energy` [Eh].
        residual: largest element of |F D S - S D F| of the state [Eh].
        seconds: wall time spent.
        warnings: what the user should know about this result.
        notes: what it took, or what it holds besides, in words.
        failure: why there is no result, where one of many molecules was marked instead of stopping all; nothing but
            `warnings` and `seconds` is there then.
    """

    energy: float | None = None
    fock: np.ndarray | None = None
    overlap: np.ndarray | None = None
    density: np.ndarray | None = None
    mo_energy: np.ndarray | None = None
    mo_coeff: np.ndarray | None = None
    mo_occ: np.ndarray | None = None
    dipole: np.ndarray | None = None
    gradient: np.ndarray | None = None
    charges_mulliken: np.ndarray | None = None
    charges_loewdin: np.ndarray | None = None
    spin_square: float | None = None
    spins_mulliken: np.ndarray | None = None
    spins_loewdin: np.ndarray | None = None
    energy_error_estimate: float | None = None
    energy_error_95: float | None = None
    ionization_energies: np.ndarray | None = None
    electron_affinities: np.ndarray | None = None
    t1_diagnostic: float | None = None
    scf_total_energy: float | None = None
    mp2_total_energy: float | None = None
    ccsd_total_energy: float | None = None
    residual: float | None = None
    seconds: float | None = None
    warnings: tuple[str, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())
    failure: str | None = None

    @property
    def homo(self) -> float | None:
        """Energy of the highest occupied orbital [Eh], over both spins."""
        if self.mo_energy is None or self.mo_occ is None or not (self.mo_occ > 0).any():
            return None
        return float(self.mo_energy[self.mo_occ > 0].max())

    @property
    def lumo(self) -> float | None:
        """Energy of the lowest empty orbital [Eh], over both spins; None if all orbitals are occupied."""
        if self.mo_energy is None or self.mo_occ is None or not (self.mo_occ == 0).any():
            return None
        return float(self.mo_energy[self.mo_occ == 0].min())

    @property
    def gap(self) -> float | None:
        """LUMO minus HOMO [Eh]."""
        homo, lumo = self.homo, self.lumo
        return None if homo is None or lumo is None else lumo - homo

    @property
    def spin_gap(self) -> float | None:
        """Smallest distance between the lowest empty and the highest occupied orbital of one spin [Eh].

        Near zero it is a matter of choice which of the two is occupied.
        """
        if self.mo_energy is None or self.mo_occ is None:
            return None
        gaps = [
            float(energy[occ == 0].min() - energy[occ > 0].max())
            for energy, occ in zip(self.mo_energy, self.mo_occ, strict=True)
            if (occ > 0).any() and (occ == 0).any()
        ]
        return min(gaps, default=None)
