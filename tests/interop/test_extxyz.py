import io

import numpy as np
import pytest
from ase.io import read

from mlsemi.interop.ase import read_molecules
from mlsemi.interop.extxyz import frame_text
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables
from mlsemi.units import BOHR_IN_ANGSTROM, HARTREE_IN_EV

HYDROXYL = Molecule([8, 1], [[1.0, 2.0, 3.0], [1.0, 2.0, 4.83]], spin=1, name='[OH] "radical" \\')
RESULT = Observables(
    energy=-75.25,
    gradient=np.array([[0.0, 0.0, 0.25], [0.0, 0.0, -0.25]]),
    dipole=np.array([0.1, 0.2, 0.3]),
    charges_mulliken=np.array([-0.25, 0.25]),
    spins_mulliken=np.array([1.05, -0.05]),
    spin_square=0.76,
    energy_error_estimate=1e-4,
)


def test_ase_reads_what_is_written(tmp_path):
    momenta = np.array([[0.0, 0.5, 0.0], [0.0, -0.5, 0.25]])
    text = frame_text(HYDROXYL, RESULT, momenta=momenta, info={"step": 3, "converged": True})
    atoms = read(io.StringIO(text), format="extxyz")
    assert atoms.get_potential_energy() == pytest.approx(-75.25 * HARTREE_IN_EV, abs=1e-9)
    np.testing.assert_allclose(atoms.get_forces()[:, 2], np.array([-0.25, 0.25]) * HARTREE_IN_EV / BOHR_IN_ANGSTROM)
    np.testing.assert_allclose(atoms.get_dipole_moment(), RESULT.dipole * BOHR_IN_ANGSTROM, atol=1e-9)
    np.testing.assert_allclose(atoms.get_charges(), RESULT.charges_mulliken)
    np.testing.assert_allclose(atoms.get_magnetic_moments(), RESULT.spins_mulliken)
    np.testing.assert_allclose(atoms.get_momenta(), momenta)
    assert atoms.info["energy_error_estimate"] == pytest.approx(1e-4 * HARTREE_IN_EV, rel=1e-6)
    assert atoms.info["step"] == 3 and bool(atoms.info["converged"])
    assert not atoms.pbc.any() and atoms.info["spin_square"] == 0.76
    (tmp_path / "m.xyz").write_text(text * 2)
    for molecule in read_molecules(tmp_path / "m.xyz"):
        assert (molecule.name, molecule.charge, molecule.spin) == (HYDROXYL.name, 0, 1)
        np.testing.assert_allclose(molecule.positions, HYDROXYL.positions, atol=1e-9)


def test_a_geometry_alone_and_what_is_refused():
    plain = Molecule([2], [[0.0, 0.0, 0.0]], charge=1, spin=1)
    assert read(io.StringIO(frame_text(plain)), format="extxyz").info["charge"] == 1
    for wrong, message in (
        ({"momenta": np.zeros((2, 3))}, "momenta must be 1 rows"),
        ({"observables": Observables(energy=np.nan)}, "energy holds values that are not finite"),
        ({"observables": Observables(charges_mulliken=np.array([np.inf]))}, "charges must be 1 rows of finite"),
    ):
        with pytest.raises(ValueError, match=message):
            frame_text(plain, **wrong)
