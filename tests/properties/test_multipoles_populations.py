"""Dipole moments and charges against PySCF's, on PySCF's own densities, in one batch of unlike molecules."""

import numpy as np
import pytest
import torch
from pyscf import gto, lo, scf
from torch.autograd import gradcheck

from mlsemi.basis import load_basis
from mlsemi.batch import Batch
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.properties.multipoles import dipole
from mlsemi.properties.populations import loewdin_charges, mulliken_charges

BASIS = "def2-svp"
MOLECULES = [
    Molecule.from_angstrom([8, 1, 1], [[0.1, 0, 0.1173], [0, 0.7572, -0.4692], [0, -0.7572, -0.4692]]),
    Molecule.from_angstrom([1, 9], [[0.3, 0.2, 0.1], [0.5, 1.0, 0.4]]),
    Molecule.from_angstrom([6, 8, 1, 1], [[0, 0, 0], [0, 0, 1.2], [0, 0.94, -0.59], [0.1, -0.94, -0.59]]),
    Molecule.from_angstrom([8, 1], [[0, 0, 0], [0.2, 0.1, 0.94]], charge=-1),
]


@pytest.fixture(scope="module")
def case():
    """A batch, its density, overlap and dipole integrals, and PySCF's answers."""
    batch = Batch.of(MOLECULES, load_basis(BASIS))
    n = batch.ao_mask.shape[1]
    density, overlap = torch.zeros(2, len(MOLECULES), n, n, dtype=torch.float64)
    moment = torch.zeros(len(MOLECULES), 3, n, n, dtype=torch.float64)
    dipoles, mulliken, loewdin = [], [], []
    for k, m in enumerate(MOLECULES):
        shells = {
            gto.mole._symbol(z): [[s.l, *zip(s.exponents, s.coefficients, strict=True)] for s in batch.basis.shells(z)]
            for z in set(m.numbers.tolist())
        }
        atoms = list(zip(m.numbers.tolist(), m.positions.tolist(), strict=True))
        mol = gto.M(atom=atoms, unit="B", basis=shells, charge=m.charge, verbose=0)
        field = scf.RHF(mol).run()
        layout = AOLayout(batch.basis, m.numbers)
        i = slice(layout.n_ao)
        d, s = field.make_rdm1(), field.get_ovlp()
        density[k, i, i] = torch.from_numpy(layout.from_pyscf(d))
        overlap[k, i, i] = torch.from_numpy(layout.from_pyscf(s))
        moment[k, :, i, i] = torch.from_numpy(layout.from_pyscf(mol.intor("int1e_r")))
        dipoles.append(scf.hf.dip_moment(mol, d, unit="AU", origin=np.zeros(3), verbose=0))
        mulliken.append(field.mulliken_pop(verbose=0)[1])
        c = lo.orth.lowdin(s)
        loewdin.append(
            scf.hf.mulliken_pop(mol, np.linalg.inv(c) @ d @ np.linalg.inv(c).T, np.eye(len(s)), verbose=0)[1]
        )
    return batch, density, overlap, moment, np.array(dipoles), np.concatenate(mulliken), np.concatenate(loewdin)


def test_as_pyscf(case):
    batch, density, overlap, moment, dipoles, mulliken, loewdin = case
    # 1e-10: the same integrals and density, summed in another order
    np.testing.assert_allclose(dipole(density, moment, batch), dipoles, atol=1e-10)
    np.testing.assert_allclose(mulliken_charges(density, overlap, batch), mulliken, atol=1e-10)
    np.testing.assert_allclose(loewdin_charges(density, overlap, batch), loewdin, atol=1e-10)


def test_charges_sum_to_the_charge(case):
    batch, density, overlap, *_ = case
    for charges in (mulliken_charges(density, overlap, batch), loewdin_charges(density, overlap, batch)):
        total = torch.zeros(len(MOLECULES), dtype=torch.float64).index_add(0, batch.molecule, charges)
        np.testing.assert_allclose(total, [0, 0, 0, -1], atol=1e-10)


def test_derivatives(case):
    batch, density, overlap, moment, *_ = case
    moved = batch.positions.clone().requires_grad_()
    inputs = [x.clone().requires_grad_() for x in (density, overlap, moment)]
    assert gradcheck(
        lambda d, s, r, x: (
            dipole(d, r, batch.with_positions(x)),
            mulliken_charges(d, s, batch),
            loewdin_charges(d, (s + s.mT) / 2, batch),
        ),
        (*inputs, moved),
        fast_mode=True,
    )
