"""The JSON contract, and that it is a QCSchema AtomicResult."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mlsemi.interop.qcschema import atomic_result, write_json
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables

HYDROXIDE = Molecule([8, 1], [[1.0, 2.0, 3.0], [1.0, 2.0, 4.83]], charge=-1, name="oh.xyz")
ENERGY = Observables(energy=-75.25, dipole=np.array([0.1, 0.2, 0.3]), seconds=0.01, warnings=("far from home",))
FULL = Observables(
    energy=-75.25,
    gradient=np.array([[0.0, 0.0, 0.25], [0.0, 0.0, -0.25]]),
    dipole=np.array([0.1, 0.2, 0.3]),
    mo_energy=np.array([[-1.0, -0.5, 0.25]]),
    mo_occ=np.array([[2.0, 2.0, 0.0]]),
    mo_coeff=np.eye(3)[None],
    charges_mulliken=np.array([-1.25, 0.25]),
    charges_loewdin=np.array([-1.125, 0.125]),
    energy_error_estimate=1e-4,
    seconds=0.5,
)


def _result(observables, molecule=HYDROXIDE, **kwargs):
    names = {"model_name": "m", "mode": "fast", "method": "pbe", "basis_name": "def2-svp"}
    return atomic_result(molecule, observables, **(names | kwargs))


def test_the_level_of_the_energy_may_be_another_than_that_of_the_orbitals():
    result = _result(FULL, mode="composite", level="CCSD(T)/cc-pvtz")
    assert result["model"] == {"method": "pbe", "basis": "def2-svp"}
    assert result["extras"]["mlsemi"]["level"] == "CCSD(T)/cc-pvtz"


def test_contract_with_everything():
    result = json.loads(json.dumps(_result(FULL, mode="variational"), allow_nan=False))
    assert result["schema_name"] == "qcschema_output" and result["success"] is True
    assert result["driver"] == "gradient"
    assert result["return_result"] == [0, 0, 0.25, 0, 0, -0.25]
    assert result["properties"]["return_energy"] == -75.25
    assert result["properties"]["scf_dipole_moment"] == [0.1, 0.2, 0.3]
    assert result["properties"]["nuclear_repulsion_energy"] == pytest.approx(8 / 1.83)
    assert result["properties"]["calcinfo_nalpha"] == result["properties"]["calcinfo_nbeta"] == 5
    assert result["model"] == {"method": "pbe", "basis": "def2-svp"}
    assert result["extras"]["mlsemi"] == {
        "model": "m",
        "mode": "variational",
        "level": "pbe/def2-svp",
        "homo": -0.5,
        "lumo": 0.25,
        "gap": 0.75,
        "energy_error_estimate": 1e-4,
        "energy_error_95": None,
        "charges_mulliken": [-1.25, 0.25],
        "charges_loewdin": [-1.125, 0.125],
        "spin_square": None,
        "spins_mulliken": None,
        "spins_loewdin": None,
        "seconds": 0.5,
        "warnings": [],
        "notes": [],
    }


def test_what_is_missing_is_null():
    result = _result(ENERGY)
    assert result["driver"] == "energy" and result["return_result"] == -75.25
    assert result["properties"]["return_gradient"] is None
    extras = result["extras"]["mlsemi"]
    missing = ("homo", "lumo", "gap", "energy_error_estimate", "charges_mulliken", "charges_loewdin")
    assert all(name in extras and extras[name] is None for name in missing)
    assert extras["warnings"] == ["far from home"]
    without = _result(Observables(dipole=np.zeros(3)))
    assert without["driver"] == "properties" and without["properties"]["return_energy"] is None


@pytest.mark.parametrize("observables", [ENERGY, FULL, Observables(dipole=np.zeros(3))], ids=["energy", "full", "none"])
@pytest.mark.parametrize(
    "molecule",
    [HYDROXIDE, Molecule([8, 1], [[0, 0, 0], [0, 0, 1.83]], spin=1), Molecule([2], [[3.0, 0, 0]])],
    ids=["anion", "radical", "atom"],
)
def test_qcelemental_reads_it(observables, molecule):
    models = pytest.importorskip("qcelemental.models.v1", exc_type=ImportError)
    if observables.gradient is not None:
        observables = replace(observables, gradient=observables.gradient[: molecule.n_atoms])
    result = json.loads(json.dumps(_result(observables, molecule)))
    read = models.AtomicResult(**result)
    assert read.success and read.extras["mlsemi"] == result["extras"]["mlsemi"]
    # qcelemental rounds coordinates to 8 decimals; the frame is neither shifted nor turned
    np.testing.assert_allclose(read.molecule.geometry, molecule.positions, atol=1e-8)
    assert (read.molecule.molecular_charge, read.molecule.molecular_multiplicity) == (
        molecule.charge,
        molecule.spin + 1,
    )
    assert read.properties.return_energy == observables.energy
    np.testing.assert_array_equal(read.properties.scf_dipole_moment, observables.dipole)
    if observables.gradient is not None:
        np.testing.assert_array_equal(read.return_result, observables.gradient)


def test_files_hold_one_object_or_a_list_and_are_whole(tmp_path):
    path = tmp_path / "out.json"
    one = _result(ENERGY)
    write_json(path, [one])
    assert json.loads(path.read_text()) == one
    write_json(path, [one, one])
    assert json.loads(path.read_text()) == [one, one]
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_json(path, [{"a": object()}])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="does not exist"):
        write_json(tmp_path / "nowhere" / "out.json", [one])


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="driver='gradient' needs energy and gradient, but the result has no gradient"):
        _result(ENERGY, driver="gradient")
    with pytest.raises(ValueError, match="dipole holds values that are not finite"):
        _result(Observables(energy=1.0, dipole=np.array([0, np.nan, 0])))
