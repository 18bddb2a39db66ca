"""Optimization and dynamics: they end where they should, and go on after a kill as if there had been none."""

import json

import numpy as np
import pytest
from ase.io import read
from ase.units import kB

from mlsemi.interop.ase import read_molecules
from mlsemi.interop.ase.calculator import MlsemiCalculator
from mlsemi.interop.ase.dynamics import Dynamics, give_velocities, internal_freedom, run
from mlsemi.interop.ase.optimize import atoms_of, optimize
from mlsemi.model import Model, load
from mlsemi.molecule import Molecule
from mlsemi.units import HARTREE_IN_EV

WATER = Molecule.from_angstrom([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]], name="w")


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def calculator():
    return MlsemiCalculator(load("water-pbe-def2svp", precision="float64"))


def near_minimum():
    return Molecule.from_angstrom([8, 1, 1], [[0, 0, 0], [0.99, 0, 0], [-0.23, 0.955, 0]], name="w")


def files(folder):
    return {"trajectory": folder / "t.xyz", "log": folder / "t.log", "state": folder / "t.restart"}


def killer(step):
    def on_step(now, *_):
        if now == step:
            raise KilledError

    return on_step


@pytest.mark.parametrize("optimizer", ["bfgs", "lbfgs", "fire"])
def test_optimization_goes_on_as_if_it_had_not_been_killed(tmp_path, calculator, optimizer):
    for name in "ab":
        (tmp_path / name).mkdir()
    told = []
    start = near_minimum() if optimizer == "fire" else WATER  # FIRE takes many steps
    found = optimize(start, calculator, **files(tmp_path / "a"), optimizer=optimizer, on_step=lambda *x: told.append(x))
    assert found.converged and found.fmax < 0.01 and [step for step, *_ in told] == list(range(found.steps + 1))
    lengths = np.linalg.norm(found.molecule.positions_angstrom[1:] - found.molecule.positions_angstrom[0], axis=1)
    np.testing.assert_allclose(lengths, 0.97468, atol=1e-3)  # the scf mode's; 0.01 eV/A is 2e-4 A of such a bond
    gradient = found.observables.gradient
    assert np.linalg.norm(gradient, axis=1).max() * HARTREE_IN_EV / 0.529177 == pytest.approx(found.fmax, abs=1e-5)
    for step in (0, 4):  # at its beginning, and on the way
        with pytest.raises(KilledError):
            optimize(
                start, calculator, **files(tmp_path / "b"), optimizer=optimizer, on_step=killer(step), restart=step > 0
            )
        with (tmp_path / "b" / "t.xyz").open("a") as file:
            file.write("3\nhalf a fra")  # killed while writing
    again = optimize(start, calculator, **files(tmp_path / "b"), optimizer=optimizer, restart=True)
    assert again.steps == found.steps and not (tmp_path / "b" / "t.restart").exists()
    for name in ("t.xyz", "t.log"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()
    assert len(read(tmp_path / "b" / "t.xyz", index=":")) == found.steps + 1


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
def test_dynamics_goes_on_as_if_it_had_not_been_killed(tmp_path, calculator, ensemble):
    settings = Dynamics(ensemble=ensemble, every=4, seed=3, temperature=400)
    for name in "ab":
        (tmp_path / name).mkdir()
    whole = run(WATER, calculator, steps=22, **files(tmp_path / "a"), settings=settings)
    assert (whole.steps, whole.frames) == (22, 6)
    for step in (5, 14):
        with pytest.raises(KilledError):
            options = {"settings": settings, "restart": step > 5, "on_step": killer(step)}
            run(WATER, calculator, steps=22, **files(tmp_path / "b"), **options)
    short = run(WATER, calculator, steps=18, **files(tmp_path / "b"), settings=settings, restart=True)
    longer = run(WATER, calculator, steps=22, **files(tmp_path / "b"), settings=settings, restart=True)
    assert short.frames == 5 and longer.total_energy == whole.total_energy
    np.testing.assert_array_equal(longer.molecule.positions, whole.molecule.positions)
    for name in ("t.xyz", "t.log"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()
    frames = read(tmp_path / "b" / "t.xyz", index=":")
    assert [frame.info["step"] for frame in frames] == [0, 4, 8, 12, 16, 20]
    assert [frame.info["time_fs"] for frame in frames] == [0, 2, 4, 6, 8, 10]
    assert frames[3].get_momenta().any() and frames[3].get_forces().any()


def test_dynamics_conserves_energy_and_starts_at_rest(tmp_path, calculator):
    settings = Dynamics(every=1, timestep=0.25, temperature=300, seed=1)
    run(WATER, calculator, steps=40, **files(tmp_path), settings=settings)
    frames = read(tmp_path / "t.xyz", index=":")
    total = [frame.get_potential_energy() + frame.get_kinetic_energy() for frame in frames]
    potential = [frame.get_potential_energy() for frame in frames]
    assert np.ptp(total) < 0.02 * np.ptp(potential)  # second order in the time step: a percent of what is exchanged
    for frame in (frames[0], frames[-1]):
        np.testing.assert_allclose(frame.get_momenta().sum(0), 0, atol=1e-6)  # sqrt(u eV); the file has 10 decimals
        np.testing.assert_allclose(frame.get_angular_momentum(), 0, atol=1e-5)
    rows = np.loadtxt(tmp_path / "t.log", skiprows=1)
    np.testing.assert_allclose(rows[:, 2], np.array(total) / HARTREE_IN_EV, atol=1e-8)
    assert frames[0].info["temperature_K"] == pytest.approx(frames[0].get_temperature() * 9 / 3, abs=1e-5)


@pytest.mark.parametrize("molecule", [WATER, Molecule.from_angstrom([6, 8, 8], [[0, 0, 0], [0, 1, 1], [0, -1, -1]])])
def test_first_velocities_have_their_temperature_and_no_rotation(molecule):
    """Each internal coordinate has a kinetic energy of kT / 2, also in a linear molecule."""
    atoms, rng = atoms_of(molecule), np.random.default_rng(0)
    temperatures = []
    for _ in range(2000):
        give_velocities(atoms, 300, rng)
        temperatures.append(2 * atoms.get_kinetic_energy() / (internal_freedom(molecule) * kB))
    np.testing.assert_allclose(atoms.get_momenta().sum(0), 0, atol=1e-12)  # sqrt(u eV), float64
    np.testing.assert_allclose(atoms.get_angular_momentum(), 0, atol=1e-12)
    assert np.mean(temperatures) == pytest.approx(300, rel=0.06)  # three standard errors of 2000 draws of 3 squares


def test_langevin_has_its_temperature(tmp_path, calculator):
    """On a surface without forces each momentum is a Gaussian of variance m k T."""

    class Flat(MlsemiCalculator):
        def calculate(self, atoms=None, properties=("energy",), system_changes=()):
            self.atoms = atoms.copy()
            self.observables = None
            self.results = {"energy": 0.0, "forces": np.zeros((3, 3))}
            self._state = (0, 0)

    settings = Dynamics("nvt", temperature=200, friction=500, every=1, timestep=1.0)
    far = Molecule.from_angstrom([8, 1, 1], [[0, 0, 0], [40, 0, 0], [0, 40, 0]])
    found = run(far, Flat(calculator.model), steps=300, **files(tmp_path), settings=settings)
    assert found.temperature == pytest.approx(200, rel=0.15)  # 2700 / (1 + 2 / 0.5) independent samples: 6 %


def test_internal_coordinates():
    linear = Molecule.from_angstrom([6, 8, 8], [[0, 0, 0], [0.5, 0.5, 0.9], [-0.5, -0.5, -0.9]])
    assert [internal_freedom(m) for m in (WATER, linear, Molecule([2], [[0, 0, 0]]))] == [3, 4, 3]


def test_diatomics_run(tmp_path, tiny_header, tiny_engine):
    calculator = MlsemiCalculator(Model(tiny_header, tiny_engine))
    hydrogen = Molecule.from_angstrom([1, 1], [[0, 0, 0], [0.3, 0.4, 0.5]])
    found = run(hydrogen, calculator, steps=4, **files(tmp_path), settings=Dynamics(every=2))
    assert found.frames == 3 and np.isfinite(found.total_energy)


def test_what_cannot_be_gone_on_with_is_refused(tmp_path, calculator):
    options = files(tmp_path)
    go = {"steps": 2, "settings": Dynamics(every=1)}
    with pytest.raises(ValueError, match=r"nothing to go on with: no file .*t\.restart"):
        run(WATER, calculator, **options, **go, restart=True)
    run(WATER, calculator, **options, **go)
    before = {name: path.read_bytes() for name, path in options.items()}
    for changed, message in (
        ({}, "go on with it .restart., or remove it"),
        ({"restart": True, "settings": Dynamics(every=1, timestep=1.0)}, "timestep was 0.5 before and is 1.0 now"),
        ({"restart": True, "steps": 1}, "has 2 steps already"),
        ({"restart": True, "log": None}, "the run has a log"),
        ({"restart": True, "trajectory": tmp_path / "other.xyz"}, "other.xyz is missing or shorter"),
    ):
        with pytest.raises(ValueError, match=message):
            run(WATER, calculator, **(options | go | changed))
    moved = Molecule(WATER.numbers, WATER.positions + 0.1)
    with pytest.raises(ValueError, match="geometry to start from was another before"):
        run(moved, calculator, **options, **go, restart=True)
    assert before == {name: path.read_bytes() for name, path in options.items()}
    options["state"].write_text("{")
    with pytest.raises(ValueError, match="is not a state"):
        run(WATER, calculator, **options, **go, restart=True)
    options["state"].unlink()
    with pytest.raises(ValueError, match=r"t\.xyz exists already"):
        run(WATER, calculator, **options, **go)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ensemble": "npt"}, "ensemble='npt' must be one of nve, nvt"),
        ({"timestep": 0}, "timestep=0 must be positive"),
        ({"timestep": float("nan")}, "timestep=nan must be positive"),
        ({"friction": -1}, "friction=-1"),
        ({"temperature": -1}, "temperature=-1"),
        ({"every": 0}, "every=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_wrong_dynamics_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Dynamics(**wrong)


def test_wrong_optimizations_are_refused(tmp_path, calculator):
    for wrong, message in (
        ({"optimizer": "newton"}, "optimizer='newton' must be one of bfgs"),
        ({"fmax": 0}, "fmax=0"),
        ({"steps": -1}, "steps=-1"),
        ({"state": tmp_path / "none" / "x"}, "does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            optimize(WATER, calculator, **({"state": tmp_path / "x"} | wrong))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="does not cover"):
        optimize(Molecule([2], [[0, 0, 0]]), calculator, state=tmp_path / "x")


def test_what_fails_on_the_way_leaves_whole_frames(tmp_path, monkeypatch, calculator):
    calculate = MlsemiCalculator.calculate
    calls = []

    def failing(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 6:
            raise ValueError("atoms 0 (O) and 1 (H) are only 0.1 bohr apart")
        return calculate(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MlsemiCalculator, "calculate", failing)
        with pytest.raises(ValueError, match="bohr apart"):
            run(WATER, calculator, steps=60, **files(tmp_path), settings=Dynamics(every=1))
    frames = read_molecules(tmp_path / "t.xyz")
    assert len(frames) == 5 and json.loads((tmp_path / "t.restart").read_text())["kept"]["step"] == 4
    assert frames[0].name == WATER.name
