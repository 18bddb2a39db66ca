"""The calculator in ASE's hands: units, forces as derivatives, caches, dynamics and optimization."""

from dataclasses import replace

import ase.units
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.test import calculate_numerical_forces
from ase.io import read, write
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from mlsemi.interop.ase.calculator import MlsemiCalculator
from mlsemi.interop.ase.dynamics import give_velocities
from mlsemi.model import Model, load
from mlsemi.units import BOHR_IN_ANGSTROM, HARTREE_IN_EV

POSITIONS = [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]]
HYDROXYL = [[0.0, 0.1, 0.0], [0.5, 0.6, 0.6]]


@pytest.fixture(scope="module")
def model(tiny_header, tiny_engine):
    return Model(tiny_header, tiny_engine)


@pytest.fixture(scope="module")
def open_model(open_header, open_engine):
    return Model(open_header, open_engine)


@pytest.fixture(scope="module")
def water_model():
    return load("water-pbe-def2svp", precision="float64")


def water(calculator=None, **options):
    atoms = Atoms("OHH", POSITIONS, **options)
    atoms.calc = calculator
    return atoms


def test_results_are_those_of_the_model_in_units_of_ase(model):
    calculator = MlsemiCalculator(model)
    atoms = water(calculator)
    found = model.predict(calculator.molecule(atoms), forces=True)
    assert atoms.get_potential_energy() == pytest.approx(found.energy * HARTREE_IN_EV, abs=1e-9)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_forces(), -found.gradient * HARTREE_IN_EV / BOHR_IN_ANGSTROM, atol=1e-9)
    np.testing.assert_allclose(atoms.get_dipole_moment(), found.dipole * BOHR_IN_ANGSTROM, atol=1e-9)
    np.testing.assert_allclose(atoms.get_charges(), found.charges_mulliken, atol=1e-9)
    assert atoms.get_magnetic_moment() == 0 and not atoms.get_magnetic_moments().any()
    assert calculator.observables.homo == pytest.approx(found.homo, abs=1e-9)
    other = MlsemiCalculator(model, populations="loewdin")
    np.testing.assert_allclose(water(other).get_charges(), found.charges_loewdin, atol=1e-9)


def test_error_estimate_is_in_the_results(water_model):
    organic = load("organic-b3lyp-def2svp")
    calculator = MlsemiCalculator(organic)
    water(calculator).get_potential_energy()
    found = organic.predict(calculator.molecule(water()))
    assert calculator.results["energy_error_estimate"] == pytest.approx(found.energy_error_estimate * HARTREE_IN_EV)
    assert calculator.results["energy_error_95"] > calculator.results["energy_error_estimate"] > 0
    without = MlsemiCalculator(organic, estimate=False)
    water(without).get_potential_energy()
    assert "energy_error_estimate" not in without.results


@pytest.mark.parametrize("mode", ["fast", "variational", "scf"])
def test_forces_are_derivatives_in_every_mode(model, mode):
    atoms = water(MlsemiCalculator(model, mode=mode))
    # central differences of 1e-3 A: 1e-5 of curvature; the energy of the scf mode is converged to 1e-9 Eh
    numerical = calculate_numerical_forces(atoms, eps=1e-3, iatoms=[1])
    np.testing.assert_allclose(atoms.get_forces()[1:2], numerical, atol=2e-4)


def test_modes_are_those_of_the_model(model):
    fast, scf = (water(MlsemiCalculator(model, mode=mode)).get_potential_energy() for mode in ("fast", "scf"))
    assert abs(fast - scf) > 1e-3
    calculator = MlsemiCalculator(model, mode="variational")
    water(calculator).get_potential_energy()
    assert calculator.results["energy_error_estimate"] > 0
    with pytest.raises(ValueError, match="has no correction"):
        water(MlsemiCalculator(model, mode="corrected")).get_potential_energy()


def test_charge_and_spin_of_the_atoms_or_of_the_calculator(open_model):
    atoms = Atoms("OH", HYDROXYL, info={"spin": 1})
    atoms.calc = calculator = MlsemiCalculator(open_model)
    radical = atoms.get_potential_energy()
    assert atoms.get_magnetic_moment() == 1 and atoms.get_magnetic_moments().sum() == pytest.approx(1)
    atoms.info = {"charge": -1}  # another state of the same geometry is calculated anew
    anion = atoms.get_potential_energy()
    assert anion != radical and calculator.observables.spin_square == 0
    atoms.info = {}
    with pytest.raises(ValueError, match="9 electrons .*spin must be odd"):
        atoms.get_potential_energy()
    atoms.calc = MlsemiCalculator(open_model, charge=-1, spin=0)
    atoms.info = {"charge": 1, "spin": 1}
    assert atoms.get_potential_energy() == pytest.approx(anion, abs=1e-9)
    atoms.calc = MlsemiCalculator(open_model, charge=-1)
    atoms.info = {"spin": 0.5}
    with pytest.raises(ValueError, match=r"spin=0.5 must be an integer"):
        atoms.get_potential_energy()


def test_initial_charges_and_magnetic_moments_count(open_model):
    atoms = Atoms("OH", HYDROXYL, charges=[-0.7, 1.7], magmoms=[2, 0])
    calculator = MlsemiCalculator(open_model)
    assert (calculator.molecule(atoms).charge, calculator.molecule(atoms).spin) == (1, 2)
    atoms.info = {"charge": -1, "spin": 0}  # goes before
    assert (calculator.molecule(atoms).charge, calculator.molecule(atoms).spin) == (-1, 0)
    atoms.info = {}
    atoms.set_initial_charges([0.2, 0.3])
    with pytest.raises(ValueError, match=r"initial_charges add up to 0.5, which is no whole number; give charge"):
        calculator.molecule(atoms)


def test_what_is_asked_for_is_computed_once(model, monkeypatch):
    asked = []
    predict = Model.predict

    def counted(self, molecules, **options):
        asked.append(options["forces"])
        return predict(self, molecules, **options)

    monkeypatch.setattr(Model, "predict", counted)
    atoms = water(MlsemiCalculator(model))
    atoms.get_potential_energy()
    atoms.get_dipole_moment()
    atoms.get_forces()
    atoms.get_potential_energy()
    assert asked == [False, True]
    atoms.rattle(0.01)
    atoms.get_forces()
    assert asked == [False, True, True]


@pytest.mark.parametrize("pbc", [True, [False, False, True]])
def test_periodic_cells_are_refused(model, pbc):
    atoms = water(MlsemiCalculator(model), cell=[9, 9, 9], pbc=pbc)
    with pytest.raises(ValueError, match="atoms are periodic"):
        atoms.get_potential_energy()
    atoms.pbc = False  # a cell alone does no harm: files often have one
    assert np.isfinite(atoms.get_potential_energy())


def test_wrong_calls_are_refused(model, tiny_header):
    for options, message in (
        ({"mode": "slow"}, "mode='slow' must be one of"),
        ({"populations": "bader"}, "populations='bader'"),
        ({"model": "none-such"}, "no model 'none-such'"),
    ):
        with pytest.raises(ValueError, match=message):
            MlsemiCalculator(**({"model": model} | options))
    with pytest.raises(ValueError, match="does not cover"):
        Atoms("NH3", np.eye(4, 3) * 2, calculator=MlsemiCalculator(model)).get_potential_energy()
    with pytest.raises(ValueError, match="only 0.000 bohr apart"):
        Atoms("HH", np.zeros((2, 3)), calculator=MlsemiCalculator(model)).get_potential_energy()
    with pytest.raises(ValueError, match="at least one atom"):
        Atoms(calculator=MlsemiCalculator(model)).get_potential_energy()


def test_molecules_without_a_gap_have_no_forces(model, monkeypatch):
    predict = Model.predict
    monkeypatch.setattr(
        Model, "predict", lambda *a, **k: replace(predict(*a, **k), gradient=None, warnings=("there is no gap",))
    )
    atoms = water(MlsemiCalculator(model))
    with pytest.raises(ValueError, match="no forces: there is no gap"):
        atoms.get_forces()


def test_files_of_ase_take_the_results(model, tmp_path):
    atoms = water(MlsemiCalculator(model))
    forces = atoms.get_forces()
    for name in ("w.xyz", "w.traj"):
        write(tmp_path / name, atoms)
        np.testing.assert_allclose(read(tmp_path / name).get_forces(), forces, atol=1e-7)


def test_optimization_and_dynamics_on_one_surface(water_model):
    """BFGS ends in the minimum of PBE/def2-SVP, and Verlet conserves the energy about it."""
    atoms = water(MlsemiCalculator(water_model, estimate=False))
    assert BFGS(atoms, logfile=None).run(fmax=0.005, steps=40)
    # the scf mode, whose gradient is PySCF's, ends at 0.97468 A and 102.041 degrees (fmax 0.002); 0.005 eV/A is 1e-4 A
    for hydrogen in (1, 2):
        assert atoms.get_distance(0, hydrogen) == pytest.approx(0.97468, abs=3e-4)
    assert atoms.get_angle(1, 0, 2) == pytest.approx(102.041, abs=0.1)
    give_velocities(atoms, 300, np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, timestep=0.25 * ase.units.fs)
    energies = [atoms.get_total_energy()]
    dynamics.attach(lambda: energies.append(atoms.get_total_energy()))
    dynamics.run(80)  # two periods of the stretching vibrations
    kinetic = atoms.get_kinetic_energy()
    assert np.ptp(energies) < 0.02 * (kinetic + 0.05)  # second order in the time step: a percent of what is exchanged
