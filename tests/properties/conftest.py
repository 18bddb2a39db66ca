"""States by PySCF of closed and open shells, with degenerate orbitals and without, as padded batches and one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from pyscf import scf
from torch import Tensor

from mlsemi.basis import Basis, load_basis
from mlsemi.batch import Batch
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables
from mlsemi.reference.mean_field import to_pyscf_mole

_TURN = 2 * np.pi / 3
# fmt: off
CASES = {
    # e levels, and a geometry without accidental zeros
    "NH3": ([7, 1, 1, 1], [[0.1, 0.2, 0.3], *([0.94 * np.cos(k * _TURN) + 0.1, 0.94 * np.sin(k * _TURN) + 0.2, 0.68]
                                              for k in range(3))], 0, 0),
    "N2": ([7, 7], [[0, 0, 0.1], [0.3, 0.5, 1.03]], 0, 0),  # pi levels
    "formaldehyde": ([6, 8, 1, 1], [[0, 0, 0], [0, 0, 1.2], [0, 0.94, -0.59], [0.1, -0.94, -0.59]], 0, 0),
    "OH-": ([8, 1], [[0, 0, 0], [0.2, 0.1, 0.94]], -1, 0),
    "CH3": ([6, 1, 1, 1], [[0, 0, 0], *([1.08 * np.cos(k * _TURN), 1.08 * np.sin(k * _TURN), 0.0] for k in range(3))],
            0, 1),
    "O2": ([8, 8], [[0, 0, 0], [0.4, 0.3, 1.1]], 0, 2),
    "benzene": ([6] * 6 + [1] * 6, [[r * np.cos(k * np.pi / 3), r * np.sin(k * np.pi / 3), 0.0]
                                    for r in (1.39, 2.48) for k in range(6)], 0, 0),
}
# fmt: on


@dataclass(frozen=True, eq=False)
class Case:
    """A molecule, PySCF's mean field of it, and the same in mlsemi's AO order."""

    molecule: Molecule
    basis: Basis
    field: Any
    observables: Observables


def observables_of(field: Any, layout: AOLayout) -> Observables:
    """A converged mean field in mlsemi's AO order."""
    spins = 1 if np.ndim(field.mo_energy) == 1 else 2

    def of_spins(array: np.ndarray, n_axes: int) -> np.ndarray:
        return np.asarray(array).reshape(spins, *np.shape(array)[-n_axes:])

    return Observables(
        energy=float(field.e_tot),
        fock=layout.from_pyscf(of_spins(field.get_fock(), 2)),
        overlap=layout.from_pyscf(field.get_ovlp()),
        density=layout.from_pyscf(of_spins(field.make_rdm1(), 2)),
        mo_energy=of_spins(field.mo_energy, 1),
        mo_coeff=layout.from_pyscf(of_spins(field.mo_coeff, 2), axes=(-2,)),
        mo_occ=of_spins(field.mo_occ, 1),
    )


@pytest.fixture(scope="session")
def solved() -> Callable[[str, str], Case]:
    """Hartree-Fock of a named molecule in a basis, solved once."""
    found: dict[tuple[str, str], Case] = {}

    def solve(name: str, basis_name: str) -> Case:
        if (name, basis_name) not in found:
            numbers, positions, charge, spin = CASES[name]
            molecule = Molecule.from_angstrom(np.array(numbers), np.array(positions), charge=charge, spin=spin)
            basis = load_basis(basis_name)
            mole = to_pyscf_mole(molecule, basis)
            # converged tightly, since degenerate levels are to be equal to 1e-8 or better
            field = (scf.UHF if spin else scf.RHF)(mole).run(conv_tol=1e-13, conv_tol_grad=1e-9)
            found[name, basis_name] = Case(
                molecule, basis, field, observables_of(field, AOLayout(basis, molecule.numbers))
            )
        return found[name, basis_name]

    return solve


@dataclass(frozen=True, eq=False)
class Together:
    """Cases as one padded batch with two spins."""

    cases: list[Case]
    batch: Batch
    overlap: Tensor
    density: Tensor
    mo_energy: Tensor
    mo_coeff: Tensor
    mo_occ: Tensor

    def atoms(self, k: int) -> slice:
        """Atoms of a molecule among all."""
        first = sum(c.molecule.n_atoms for c in self.cases[:k])
        return slice(first, first + self.cases[k].molecule.n_atoms)


def padded(cases: list[Case]) -> Together:
    """Both spins of each molecule, padded."""
    batch = Batch.of([c.molecule for c in cases], cases[0].basis)
    m, n = batch.ao_mask.shape
    overlap = torch.zeros(m, n, n, dtype=torch.float64)
    density, mo_coeff = torch.zeros(2, m, 2, n, n, dtype=torch.float64)
    mo_energy, mo_occ = torch.zeros(2, m, 2, n, dtype=torch.float64)
    for k, case in enumerate(cases):
        o, i = case.observables, slice(int(batch.n_ao[k]))
        share = len(o.density) / 2  # half of a closed shell for each spin
        overlap[k, i, i] = torch.from_numpy(o.overlap)
        density[k, :, i, i] = torch.from_numpy(o.density) * share
        mo_coeff[k, :, i, i] = torch.from_numpy(o.mo_coeff)
        mo_energy[k, :, i] = torch.from_numpy(o.mo_energy)
        mo_occ[k, :, i] = torch.from_numpy(o.mo_occ) * share
    return Together(cases, batch, overlap, density, mo_energy, mo_coeff, mo_occ)


@pytest.fixture(scope="session")
def together(solved: Callable[[str, str], Case]) -> Together:
    """Closed and open shells of def2-SVP in one batch."""
    return padded([solved(name, "def2-svp") for name in ("NH3", "CH3", "N2", "O2", "OH-", "formaldehyde")])
