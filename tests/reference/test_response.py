"""Coupled polarizability against finite fields in PySCF's SCF."""

import numpy as np
import pytest
from pyscf import lib

from mlsemi.basis import load_basis
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.reference import response
from mlsemi.reference.mean_field import mean_field, to_pyscf_mole
from mlsemi.reference.response import coupled_polarizability, polarizability_of

BASIS = load_basis("sto-3g")
_RING = [[0.94 * np.cos(a), 0.94 * np.sin(a), 0.38] for a in (0.3, 0.3 + 2 * np.pi / 3, 0.3 + 4 * np.pi / 3)]
AMMONIA = Molecule.from_angstrom([7, 1, 1, 1], [[0, 0, 0], *_RING])
OXYGEN = Molecule.from_angstrom([8, 8], [[0, 0.1, 0], [0.3, 0, 1.18]], spin=2)
HYDROGEN = Molecule.from_angstrom([1], [[0, 0, 0]], spin=1)


def _converged(molecule, method, field=None):
    mf = mean_field(to_pyscf_mole(molecule, BASIS), method, 1)
    mf.conv_tol, mf.conv_tol_grad = 1e-13, 1e-9
    if field is not None:
        core, r = mf.get_hcore(), mf.mol.intor("int1e_r")
        mf.get_hcore = lambda *_: core + np.einsum("x,xij->ij", field, r)
    mf.kernel()
    return mf


@pytest.mark.parametrize(("molecule", "method"), [(AMMONIA, "hf"), (AMMONIA, "pbe"), (OXYGEN, "hf"), (OXYGEN, "b3lyp")])
def test_as_finite_fields(molecule, method):
    found = polarizability_of(_converged(molecule, method))
    step = 1e-3
    direction = np.array([0.6, 0.0, 0.8])
    mu = [_converged(molecule, method, sign * step * direction).dip_moment(unit="AU", verbose=0) for sign in (1, -1)]
    # 1e-4: the third derivative at a step of 1e-3
    np.testing.assert_allclose(found @ direction, (mu[0] - mu[1]) / (2 * step), atol=1e-4)


def test_from_a_density():
    mf = _converged(OXYGEN, "hf")
    density = AOLayout(BASIS, OXYGEN.numbers).from_pyscf(mf.make_rdm1())
    # 1e-5: orbitals converged to 1e-7
    np.testing.assert_allclose(
        coupled_polarizability(OXYGEN, BASIS, method="hf", density=density), polarizability_of(mf), atol=1e-5
    )
    closed = AOLayout(BASIS, AMMONIA.numbers).from_pyscf(_converged(AMMONIA, "hf").make_rdm1())[None]
    found = coupled_polarizability(AMMONIA, BASIS, method="hf", density=closed)
    np.testing.assert_allclose(found, coupled_polarizability(AMMONIA, BASIS, method="hf"), atol=1e-5)
    assert found[0, 0] == pytest.approx(found[1, 1], abs=1e-5)  # a symmetric top about z


def test_one_electron_in_a_minimal_basis_has_no_response():
    np.testing.assert_array_equal(coupled_polarizability(HYDROGEN, BASIS, method="hf"), np.zeros((3, 3)))


def test_what_does_not_converge_is_an_error(monkeypatch):
    mf = _converged(AMMONIA, "hf")
    monkeypatch.setattr(lib, "krylov", lambda aop, b, **_: np.zeros_like(b))
    with pytest.raises(RuntimeError, match="residual"):
        polarizability_of(mf)
    monkeypatch.setattr(response, "mean_field", lambda *a: _stopped(mean_field(*a)))
    with pytest.raises(RuntimeError, match="did not converge"):
        coupled_polarizability(AMMONIA, BASIS, method="hf")


def _stopped(field):
    field.kernel = lambda **_: None
    return field
