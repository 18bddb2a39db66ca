"""Uncoupled polarizability against the sum over states and finite fields; dipole derivatives against differences."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pyscf import gto, scf
from torch.autograd import gradcheck

from mlsemi.basis import load_basis
from mlsemi.batch import Batch
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.properties.multipoles import dipole
from mlsemi.properties.response import anisotropy, dipole_derivatives, mean_polarizability, polarizability
from mlsemi.state import n_spin_channels, solve_state

_RING = [[0.94 * np.cos(a), 0.94 * np.sin(a), 0.38] for a in (0.3, 0.3 + 2 * np.pi / 3, 0.3 + 4 * np.pi / 3)]
WATER = Molecule.from_angstrom([8, 1, 1], [[0, 0.1, 0.1173], [0.1, 0.7572, -0.4692], [0, -0.7572, -0.4692]])
AMMONIA = Molecule.from_angstrom([7, 1, 1, 1], [[0, 0, 0], *_RING])
NITROGEN = Molecule.from_angstrom([7, 7], [[0, 0, 0], [0.3, 0.2, 1.05]])
METHYL = Molecule.from_angstrom([6, 1, 1, 1], [[0, 0, 0], *([1.15 * x, 1.15 * y, 0] for x, y, _ in _RING)], spin=1)
OXYGEN = Molecule.from_angstrom([8, 8], [[0, 0.1, 0], [0.3, 0, 1.18]], spin=2)
SETS = {"closed": [WATER, AMMONIA, NITROGEN], "open": [WATER, METHYL, OXYGEN]}


def _integrals(molecules):
    """Batch, and PySCF's F, S and r in mlsemi's order, padded."""
    batch = Batch.of(molecules, load_basis("sto-3g"))
    n, spins = batch.ao_mask.shape[1], n_spin_channels(batch)
    fock = torch.zeros(len(molecules), spins, n, n, dtype=torch.float64)
    overlap = torch.zeros(len(molecules), n, n, dtype=torch.float64)
    moments = torch.zeros(len(molecules), 3, n, n, dtype=torch.float64)
    for k, molecule in enumerate(molecules):
        atoms = list(zip(molecule.numbers.tolist(), molecule.positions.tolist(), strict=True))
        mol = gto.M(atom=atoms, unit="B", basis="sto-3g", spin=molecule.spin, verbose=0)
        field = (scf.UHF if molecule.spin else scf.RHF)(mol).run(conv_tol=1e-11)
        layout = AOLayout(batch.basis, molecule.numbers)
        i = slice(layout.n_ao)
        fock[k, :, i, i] = torch.from_numpy(layout.from_pyscf(field.get_fock()))
        overlap[k, i, i] = torch.from_numpy(layout.from_pyscf(field.get_ovlp()))
        moments[k, :, i, i] = torch.from_numpy(layout.from_pyscf(mol.intor("int1e_r")))
    return batch, fock, overlap, moments


@pytest.fixture(scope="module", params=SETS)
def case(request):
    return _integrals(SETS[request.param])


def test_polarizability_is_the_sum_over_states(case):
    batch, fock, overlap, moments = case
    found = polarizability(fock, overlap, moments, batch)
    state = solve_state(fock, overlap, batch)
    for k in range(batch.n_molecules):
        expected = np.zeros((3, 3))
        n = int(batch.n_ao[k])
        for s in range(state.n_spins):
            e, c, f = state.mo_energy[k, s, :n], state.mo_coeff[k, s, :, :n], state.mo_occ[k, s, :n]
            r = (c.mT @ moments[k] @ c).numpy()
            o, v = np.flatnonzero(f), np.flatnonzero(f == 0)
            gaps = (e[v][None] - e[o][:, None]).numpy()
            expected += 2 * float(f[0]) * np.einsum("xia,yia,ia->xy", r[:, o][:, :, v], r[:, o][:, :, v], 1 / gaps)
        # 1e-10: the same sums in another order
        np.testing.assert_allclose(found[k], expected, atol=1e-10)
    assert not found.requires_grad


def test_polarizability_is_the_derivative_of_the_dipole_by_a_field(case):
    batch, fock, overlap, moments = case
    found = polarizability(fock, overlap, moments, batch)
    step = 1e-3
    for a in range(3):
        values = [
            dipole(solve_state(fock + x * moments[:, None, a], overlap, batch).total_density, moments, batch)
            for x in (step, -step, 2 * step, -2 * step)
        ]
        slope = (8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * step)
        # 1e-8: the fifth derivative at a step of 1e-3
        np.testing.assert_allclose(found[:, :, a], slope, atol=1e-8)


def test_polarizability_turns_with_the_molecule_and_ignores_the_origin(random_rotation):
    r = torch.from_numpy(random_rotation())
    turned = Molecule(AMMONIA.numbers, AMMONIA.positions @ r.numpy().T + 3.0)
    batch, fock, overlap, moments = _integrals([AMMONIA, turned])
    one, other = polarizability(fock, overlap, moments, batch)
    # 1e-5: two SCF with energies converged to 1e-11
    np.testing.assert_allclose(r @ one @ r.T, other, atol=1e-5)
    assert float(anisotropy(one)) == pytest.approx(float(anisotropy(other)), abs=1e-5)
    assert float(mean_polarizability(one)) == pytest.approx(float(mean_polarizability(other)), abs=1e-5)
    # ammonia is a symmetric top
    assert abs(float(anisotropy(one)) - abs(float(one[2, 2] - one[0, 0]))) < 1e-5


def test_molecules_without_a_gap_have_no_polarizability(case):
    batch, fock, overlap, moments = case
    flat = fock.clone()
    flat[1] = -overlap[1]
    found = polarizability(flat, overlap, moments, batch)
    assert torch.isnan(found[1]).all()
    np.testing.assert_allclose(found[[0, 2]], polarizability(fock, overlap, moments, batch)[[0, 2]], atol=1e-12)


def test_polarizability_is_differentiable_once():
    batch, fock, overlap, moments = _integrals([NITROGEN])
    inputs = [x.clone().requires_grad_() for x in (fock, overlap, moments)]

    def found(f, s, r):
        symmetric = [(x + x.mT) / 2 for x in (f, s, r)]
        return polarizability(*symmetric, batch, create_graph=True)

    assert gradcheck(found, inputs, fast_mode=True, atol=1e-6)


def test_dipole_derivatives_of_an_engine(tiny_engine, open_engine, molecules):
    water = molecules["water"]
    cation = replace(water, charge=1, spin=1)
    for engine, several in ((tiny_engine, [water, water]), (open_engine, [cation, water])):
        batch = engine.batch(several)

        def moments(positions, engine=engine, batch=batch):
            out = engine(batch.with_positions(positions), dipole=True)
            assert out.integrals.dipole is not None
            return dipole(out.state.total_density, out.integrals.dipole, batch.with_positions(positions))

        x = batch.positions.clone().requires_grad_()
        found = dipole_derivatives(moments(x), x)
        step = 1e-3
        for atom in range(len(x)):
            for i in range(3):
                move = torch.zeros_like(x)
                move[atom, i] = step
                with torch.no_grad():
                    slope = (moments(batch.positions + move) - moments(batch.positions - move)) / (2 * step)
                # 1e-5: the third derivative at a step of 1e-3
                np.testing.assert_allclose(found[atom, i], slope[batch.molecule[atom]], atol=1e-5)
        # moving a molecule moves its charge
        total = torch.zeros(2, 3, 3, dtype=torch.float64).index_add(0, batch.molecule, found)
        np.testing.assert_allclose(total, batch.charge.numpy()[:, None, None] * np.eye(3), atol=1e-10)
