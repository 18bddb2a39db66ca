"""Model: what a prediction holds, batches, what is refused and what is warned of."""

import builtins
import re
import subprocess
import sys
from dataclasses import replace

import ase.data
import numpy as np
import pytest
import torch

from mlsemi import model as model_module
from mlsemi.calibration import Interval
from mlsemi.checkpoint import engine_of
from mlsemi.domain import COVALENT_RADII_ANGSTROM, n_fragments
from mlsemi.engine import Engine
from mlsemi.memory import available_bytes, estimate_bytes, split
from mlsemi.model import DEFAULT_MODEL, Model, load, shipped_models
from mlsemi.molecule import Molecule
from mlsemi.reference.mean_field import solve
from mlsemi.reference.variational import variational

WATER = Molecule.from_angstrom([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]], name="w")
HYDROGEN = Molecule.from_angstrom([1, 1], [[0, 0, 0.1], [0, 0, 0.86]], name="h")
METHANE = Molecule.from_angstrom(
    [6, 1, 1, 1, 1], 0.63 * np.array([[0, 0, 0], [1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]])
)
WATERS = Molecule(np.tile(WATER.numbers, 3), np.concatenate([WATER.positions + [0, 6.0 * k, 0] for k in range(3)]))


@pytest.fixture(scope="module")
def model(tiny_header, tiny_engine) -> Model:
    return Model(tiny_header, tiny_engine)


def test_what_a_prediction_holds(model):
    o = model.predict(WATER)
    n = 7
    assert o.fock.shape == o.density.shape == o.mo_coeff.shape == (1, n, n)
    assert o.overlap.shape == (n, n)
    assert o.mo_energy.shape == o.mo_occ.shape == (1, n)
    f, s, c, d = o.fock[0], o.overlap, o.mo_coeff[0], o.density[0]
    np.testing.assert_allclose(f @ c, s @ c * o.mo_energy[0], atol=1e-10)
    np.testing.assert_allclose((c * o.mo_occ[0]) @ c.T, d, atol=1e-12)
    assert np.sum(d * s) == pytest.approx(10, abs=1e-11)
    assert o.charges_mulliken.sum() == pytest.approx(0, abs=1e-11)
    assert o.charges_loewdin.sum() == pytest.approx(0, abs=1e-11)
    assert o.dipole.shape == (3,)
    assert (o.homo, o.lumo) == (o.mo_energy[0, 4], o.mo_energy[0, 5])
    assert o.seconds > 0
    assert (o.gradient, o.energy_error_estimate, o.residual, o.warnings) == (None, None, None, ())


def test_a_list_keeps_its_order_and_equals_its_members(model):
    molecules = [WATER, HYDROGEN, WATERS, HYDROGEN, WATER]
    results = model.predict(molecules, forces=True)
    for molecule, o in zip(molecules, results, strict=True):
        alone = model.predict(molecule, forces=True)
        assert o.gradient.shape == (molecule.n_atoms, 3)
        for name in ("energy", "fock", "dipole", "mo_energy", "charges_mulliken", "charges_loewdin", "gradient"):
            np.testing.assert_allclose(getattr(o, name), getattr(alone, name), atol=1e-9, err_msg=name)
    assert model.predict([]) == []


def test_the_gradient_does_not_change_the_rest(model):
    assert model.predict(WATER, forces=True).energy == pytest.approx(model.predict(WATER).energy, abs=1e-11)


def test_small_memory_gives_small_batches(model, monkeypatch):
    sizes = []
    inside = Model._predict_batch
    monkeypatch.setattr(Model, "_predict_batch", lambda self, m, *o: sizes.append(len(m)) or inside(self, m, *o))
    whole = model.predict([WATER] * 4)
    monkeypatch.setattr(model_module, "available_bytes", lambda device: 1)
    alone = model.predict([WATER] * 4)
    assert sizes == [4, 1, 1, 1, 1]
    assert [o.energy for o in alone] == pytest.approx([o.energy for o in whole], abs=1e-11)


def test_a_batch_that_fails_is_halved(model, monkeypatch):
    inside = Model._predict_batch

    def small_only(self, molecules, *options):
        if len(molecules) > 2:
            raise RuntimeError("out of memory")
        return inside(self, molecules, *options)

    monkeypatch.setattr(Model, "_predict_batch", small_only)
    assert len(model.predict([WATER] * 5)) == 5

    def one_is_bad(self, molecules, *options):
        if HYDROGEN in molecules:
            raise ValueError("singular")
        return inside(self, molecules, *options)

    monkeypatch.setattr(Model, "_predict_batch", one_is_bad)
    with pytest.raises(ValueError, match="^h: singular"):
        model.predict([WATER, WATER, HYDROGEN, WATER])

    class ArrayMemoryError(MemoryError):  # as numpy's, which is not made of a message
        def __init__(self, shape, dtype):
            super().__init__(f"no room for {shape}")

    def no_room(self, molecules, *options):
        raise ArrayMemoryError((3,), float)

    monkeypatch.setattr(Model, "_predict_batch", no_room)
    with pytest.raises(MemoryError, match=r"^w: no room for \(3,\)"):
        model.predict(WATER)


def _spoiled(monkeypatch, where):
    """Makes the network give NaN for hydrogen, or the integrals an overlap that is none."""
    inside = Engine.integrals

    def integrals(self, batch, **options):
        exact = inside(self, batch, **options)
        bad = [k for k, m in enumerate(batch.molecules) if m.name == "h"]
        if where == "overlap":
            overlap = exact.overlap.clone()
            overlap[bad, 0, 1] = overlap[bad, 1, 0] = 1.5
            return replace(exact, overlap=overlap)
        if where == "nearly singular":
            overlap = exact.overlap.clone()
            overlap[bad, 0, 1] = overlap[bad, 1, 0] = 1.0 - 1e-9
            return replace(exact, overlap=overlap)
        fock, energy = exact.baseline.fock.clone(), exact.baseline.energy.clone()
        if where == "fock":
            fock[bad, 0, 0] = torch.nan
        else:
            energy[bad] = torch.nan
        return replace(exact, baseline=replace(exact.baseline, fock=fock, energy=energy))

    monkeypatch.setattr(Engine, "integrals", integrals)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("fock", "^h: fock of h holds values that are not finite"),
        ("overlap", "^h: overlap of h is not positive definite"),
        ("energy", "^h: the predicted energy of h is not finite"),
    ],
)
def test_one_bad_molecule_spoils_no_other(model, monkeypatch, where, message):
    molecules = [WATER, HYDROGEN, WATERS, WATER]
    expected = model.predict([WATER, WATERS], forces=True)
    _spoiled(monkeypatch, where)
    with pytest.raises((ValueError, RuntimeError), match=message):
        model.predict(molecules)
    results = model.predict(molecules, forces=True, errors="mark")
    bad = results[1]
    assert bad.energy is None and bad.gradient is None and re.search(message, bad.failure)
    assert bad.warnings == (bad.failure,)
    for o, reference in zip((results[0], results[2], results[3]), (*expected, expected[0]), strict=True):
        assert o.failure is None
        assert o.energy == pytest.approx(reference.energy, abs=1e-9)
        np.testing.assert_allclose(o.gradient, reference.gradient, atol=1e-9)
    assert model.predict(HYDROGEN, errors="mark").failure == bad.failure


def test_what_is_not_covered_can_be_marked_too(model):
    molecules = [WATER, METHANE, replace(WATER, charge=2)]
    good, foreign, charged = model.predict(molecules, errors="mark")
    assert good.energy == pytest.approx(model.predict(WATER).energy, abs=1e-11)
    assert "CH4 holds C, which the model tiny does not cover" in foreign.failure
    assert "w has charge 2" in charged.failure
    with pytest.raises(ValueError, match="the model tiny has no correction"):  # what concerns all is an error
        model.predict(molecules, mode="corrected", errors="mark")
    with pytest.raises(ValueError, match="errors='ignore' must be 'raise' or 'mark'"):
        model.predict(molecules, errors="ignore")


def test_an_scf_that_fails_is_marked(model, monkeypatch):
    from mlsemi.reference import modes

    def in_mode(fast, molecule, **options):
        if molecule is HYDROGEN:
            raise RuntimeError("SCF not converged")
        return replace(fast, energy=-1.0)

    monkeypatch.setattr(modes, "in_mode", in_mode)
    bad, good = model.predict([HYDROGEN, WATER], mode="scf", errors="mark")
    assert (bad.energy, bad.failure, good.energy, good.failure) == (None, "h: SCF not converged", -1.0, None)
    with pytest.raises(RuntimeError, match="^h: SCF not converged"):
        model.predict([HYDROGEN, WATER], mode="scf")


def test_dropped_functions_are_a_warning_of_their_molecule(model, monkeypatch):
    _spoiled(monkeypatch, "nearly singular")
    water, hydrogen = model.predict([WATER, HYDROGEN])
    assert water.warnings == ()
    assert any("1 combination(s) of AOs" in w for w in hydrogen.warnings)
    assert hydrogen.mo_coeff.shape == (1, 2, 1) and hydrogen.mo_energy.shape == hydrogen.mo_occ.shape == (1, 1)


def test_split_by_memory():
    assert split([5, 1, 1, 9, 1], 10) == [[1, 2, 4], [0], [3]]
    assert split([], 10) == []
    assert split([100, 100], 10) == [[0], [1]]
    assert available_bytes() > 2**20


def test_estimates_grow(tiny_header):
    options = {"pair_width": 100, "n_bonds": 3}
    small, large = estimate_bytes([WATER, WATERS], tiny_header.basis, **options)
    assert 0 < small < large / 5
    assert estimate_bytes([WATER], tiny_header.basis, **options, forces=True)[0] > 2 * small


def test_variational_energy(model):
    o = model.predict(WATER, mode="variational")
    expected = variational(WATER, model.header.basis, model.predict(WATER).density, method="hf")
    assert o.energy == pytest.approx(expected.energy, abs=1e-9)
    assert o.energy_error_estimate == expected.error_estimate
    assert o.energy > solve(WATER, model.header.basis, method="hf").observables.energy
    assert o.homo == pytest.approx(model.predict(WATER).homo, abs=1e-12)
    assert o.residual > 0


def test_variational_says_that_a_name_changed_its_meaning(tiny_header, tiny_engine):
    changed = Model(replace(tiny_header, resolved_functional="something else"), tiny_engine)
    warnings = changed.predict(HYDROGEN, mode="variational").warnings
    assert any("hf means HF in this PySCF, but the labels of the model have something else" in w for w in warnings)


def test_variational_without_pyscf(model, monkeypatch):
    for name in list(sys.modules):
        if name.split(".")[0] == "pyscf" or name.startswith("mlsemi.reference"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyscf", None)
    with pytest.raises(ImportError, match=r"needs PySCF .*install mlsemi\[reference\]"):
        model.predict(WATER, mode="variational")
    assert model.predict(WATER).energy < 0


@pytest.mark.parametrize(
    ("molecule", "options", "message"),
    [
        (METHANE, {}, "CH4 holds C, which the model tiny does not cover; it covers H, O"),
        (replace(WATER, charge=2), {}, "w has charge 2, which the model tiny does not cover; it covers charge 0"),
        (
            replace(WATER, spin=2),
            {},
            r"w has spin \(2S\) 2, which the model tiny does not cover; it covers spin \(2S\) 0",
        ),
        (WATER, {"mode": "exact"}, "mode='exact' must be one of fast, variational, corrected, composite, scf"),
        (WATER, {"mode": "corrected"}, "mode='corrected': the model tiny has no correction"),
    ],
)
def test_what_is_not_covered_is_refused(model, monkeypatch, molecule, options, message):
    monkeypatch.setattr(Model, "_predict_batch", lambda *_: pytest.fail("something was computed"))
    with pytest.raises(ValueError, match=message):
        model.predict([WATER, molecule], **options)


def test_doubtful_molecules_get_warnings(tiny_header, tiny_engine):
    domain = {**tiny_header.domain, "formulas": ["H2O", "H2O2"], "max_atoms": 4}
    model = Model(replace(tiny_header, domain=domain), tiny_engine)
    assert model.predict(WATER).warnings == ()
    three = " ".join(model.predict(WATERS).warnings)
    assert "trained on H2O, H2O2 only, this is H6O3" in three
    assert "9 atoms, far more than the 4 of the largest molecule" in three
    assert "3 fragments without a bond" in three


def test_fragments():
    assert n_fragments(WATER) == 1
    assert n_fragments(METHANE) == 1
    assert n_fragments(WATERS) == 3
    assert n_fragments(Molecule.from_angstrom([2], [[0, 0, 0]])) == 1
    # the shortest hydrogen bonds of water clusters are no covalent bonds
    oh = [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]
    acceptor = [[0.96 + 1.7, 0, 0], [3.1, 0.8, 0], [3.1, -0.8, 0]]
    assert n_fragments(Molecule.from_angstrom([8, 1, 1] * 2, oh + acceptor)) == 2
    np.testing.assert_array_equal(COVALENT_RADII_ANGSTROM[1:], ase.data.covalent_radii[1:55])


def test_load(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(model_module, "weights_directory", lambda: tmp_path)
    with pytest.raises(ValueError, match=f"no model '{DEFAULT_MODEL}'.* shipped models .none in this installation"):
        load()
    (tmp_path / "tiny.safetensors").write_bytes(tiny_checkpoint.read_bytes())
    assert list(shipped_models()) == ["tiny"]
    assert load("tiny").name == load(tiny_checkpoint).name == "tiny"
    with pytest.raises(ValueError, match=r"no model 'x': it is neither a file nor one of the shipped models \(tiny\)"):
        load("x")


def test_precision(tiny_checkpoint):
    single, double = (load(tiny_checkpoint, precision=p) for p in ("float32", "float64"))
    assert double.engine.network.dtype == torch.float64
    a, b = single.predict(WATER), double.predict(WATER)
    assert a.fock.dtype == np.float64
    np.testing.assert_allclose(a.fock, b.fock, atol=1e-5)  # float32 has 7 digits of numbers around 1 Eh
    assert not np.array_equal(a.fock, b.fock)


def test_load_refuses(tiny_checkpoint):
    with pytest.raises(ValueError, match="precision='half' must be one of float32, float64"):
        load(tiny_checkpoint, precision="half")
    for device in ("abacus", "meta"):
        with pytest.raises(ValueError, match=f"device='{device}' must be 'cpu' or 'cuda'"):
            load(tiny_checkpoint, device=device)
    with pytest.raises(ValueError, match="device='cuda:99': this machine has"):
        load(tiny_checkpoint, device="cuda:99")


def test_the_package_offers_load_without_importing_torch():
    code = (
        "import sys, mlsemi; assert 'torch' not in sys.modules; assert mlsemi.load.__name__ == 'load'; mlsemi.Molecule"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    import mlsemi

    assert builtins.all(hasattr(mlsemi, name) for name in mlsemi.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mlsemi.nothing  # noqa: B018


def test_the_spread_of_the_members_is_the_estimate_of_the_fast_mode(tiny_header, tiny_engine):
    """Calibrated members give an estimate; the energy does not feel them; who disagrees too much is named."""
    header = replace(
        tiny_header,
        members=(tiny_header.network, tiny_header.network),
        calibration={"fast": Interval(scale_68=0.5, scale_95=2.0, count=30, largest=1e6).to_json()},
    )
    torch.manual_seed(5)
    engine = engine_of(header, dtype=torch.float64, build=False)
    own = tiny_engine.state_dict()
    engine.load_state_dict({**engine.state_dict(), **own})
    engine.baseline.prepare()
    model = Model(header, engine)
    batch = engine.batch([WATER])
    with torch.no_grad():
        found = engine(batch, with_members=True)
    expected = float(((found.member_energy - found.energy) ** 2).mean().sqrt())
    assert expected > 1e-6
    result = model.predict(WATER)
    assert result.energy == pytest.approx(Model(tiny_header, tiny_engine).predict(WATER).energy, abs=1e-12)
    assert result.energy_error_estimate == pytest.approx(0.5 * expected)
    assert result.energy_error_95 == pytest.approx(2.0 * expected)
    assert result.warnings == ()
    assert model.predict(WATER, estimate=False).energy_error_estimate is None
    narrow = replace(header, calibration={"fast": Interval(0.5, 2.0, 30, expected / 2).to_json()})
    assert "members of the model disagree by more than" in Model(narrow, engine).predict(WATER).warnings[0]


def test_hessian_vector_product_is_the_change_of_the_gradient(model, rng):
    vector = rng.normal(size=(3, 3))
    step = 1e-4

    def gradient(scale):
        moved = Molecule(WATER.numbers, WATER.positions + scale * vector)
        return model.predict(moved, forces=True).gradient

    product = model.hessian_vector_product(WATER, vector)
    # central differences: h^2 times fourth derivatives of order ten
    np.testing.assert_allclose(product, (gradient(step) - gradient(-step)) / (2 * step), atol=1e-6)
    other = rng.normal(size=(3, 3))
    # the Hessian is symmetric, and a translation changes no gradient
    there, back = (other * product).sum(), (vector * model.hessian_vector_product(WATER, other)).sum()
    assert there == pytest.approx(back, abs=1e-10)
    np.testing.assert_allclose(model.hessian_vector_product(WATER, np.ones((3, 3))), 0, atol=1e-10)
    with pytest.raises(ValueError, match=r"vector must have shape \(3, 3\), got \(2, 3\)"):
        model.hessian_vector_product(WATER, vector[:2])


def test_a_loss_of_energies_and_forces_reaches_the_weights(tiny_header, tiny_engine):
    """Its derivative goes twice through the eigenproblem and S: against finite differences of a weight."""
    engine = engine_of(tiny_header, dtype=torch.float64, build=False)
    engine.load_state_dict(tiny_engine.state_dict())
    engine.baseline.prepare()
    batch = engine.batch([WATER, PEROXIDE])
    batch = batch.with_positions(batch.positions.clone().requires_grad_())

    def loss(create_graph):
        energy = engine(batch).energy
        (gradient,) = torch.autograd.grad(energy.sum(), batch.positions, create_graph=create_graph)
        return (energy**2).sum() * 1e-3 + (gradient**2).sum()

    parameter = engine.network.embedding
    (found,) = torch.autograd.grad(loss(True), parameter)
    assert float(found.abs().max()) > 1e-6
    place = tuple(np.unravel_index(int(found.abs().argmax()), found.shape))
    values = []
    for step in (1e-4, -2e-4):
        parameter.data[place] += step
        values.append(float(loss(False).detach()))
    # central differences, as above
    assert float(found[place]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-5)


PEROXIDE = Molecule([8, 1, 1, 8], [[0, 0, 0.2], [0, 1.5, -0.9], [0.1, -1.5, -0.9], [2.6, 0.1, 0.4]])
