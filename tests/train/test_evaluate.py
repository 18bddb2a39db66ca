"""Evaluation against identities: a model that is its own label has no error, a known error gives known metrics."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mlsemi.data.split import split_of
from mlsemi.data.store import LabelStore, Record, write_store
from mlsemi.layout import AO_ORDER
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables
from mlsemi.properties.multipoles import dipole
from mlsemi.reference.mean_field import solve
from mlsemi.train.evaluate import check_labels, evaluate, select
from mlsemi.train.metrics import State, average, estimate_quality, state_errors
from mlsemi.train.plots import plot_parity

WATER = Molecule.from_angstrom([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]], name="O")
HYDROGEN = Molecule.from_angstrom([1, 1], [[0, 0, 0.1], [0, 0.1, 0.86]], name="[H][H]")
PEROXIDE = Molecule.from_angstrom(
    [8, 8, 1, 1], [[0, 0.73, -0.05], [0, -0.73, -0.05], [0.84, 0.88, 0.42], [-0.84, -0.88, 0.42]], name="OO"
)
MOLECULES = [WATER, HYDROGEN, PEROXIDE]


@pytest.fixture
def write(tiny_header, tmp_path):
    """Writes a label file as of the tiny model's method and basis."""

    def make(records, *, basis=tiny_header.basis, method="hf", resolved="HF", encoding="full"):
        attrs = {"method": method, "resolved_functional": resolved, "basis_name": basis.name, "gradient": False}
        attrs |= {"basis_json": json_text(basis), "basis_hash": basis.content_hash(), "ao_order": AO_ORDER}
        write_store(tmp_path / "labels.h5", records, attrs, fock_encoding=encoding)
        return LabelStore.open(tmp_path / "labels.h5")

    return make


def json_text(basis):
    import json

    return json.dumps(basis.to_json())


def own_labels(engine, *, shift=0.0, stored_residual=False):
    """What the engine predicts, as labels; F shifted by a multiple of S shifts all orbital energies by it."""
    out = []
    for molecule in MOLECULES:
        batch = engine.batch([molecule])
        with torch.no_grad():
            found = engine(batch, dipole=True)
            moment = dipole(found.state.total_density, found.integrals.dipole, batch)[0].numpy()
        fock = (found.state.fock[:, 0] + shift * found.state.overlap)[0].numpy()
        if stored_residual:
            fock = fock - found.integrals.baseline.fock[0].numpy()
        observables = Observables(
            energy=float(found.energy[0]) + 0.001,
            fock=fock[None],
            mo_energy=found.state.mo_energy[0].numpy() + shift,
            dipole=moment,
        )
        out.append(Record(molecule, observables))
    return out


@pytest.mark.parametrize("residual", [False, True])
def test_a_model_has_no_error_on_its_own_predictions(write, tiny_header, tiny_engine, residual):
    encoding = "residual:atoms/1" if residual else "full"
    with write(own_labels(tiny_engine, stored_residual=residual), encoding=encoding) as store:
        found = evaluate(tiny_header, tiny_engine, store, select(store))
    metrics = found.metrics
    # float64 throughout; batches of unlike molecules round otherwise than single ones
    for key in ("h_mae_uEh", "h_max_uEh", "h_orthonormal_mae_uEh", "gap_mae_uEh", "dipole_mae_au"):
        assert metrics[key] < 1e-5, key
    for key in ("coefficient_similarity", "coefficient_cosine", "occupied_subspace_overlap"):
        assert metrics[key] == pytest.approx(1, abs=1e-9)
    assert metrics["energy_fast_mae_mEh"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["energy_fast_mae_kcal_per_mol"] == pytest.approx(0.6275, abs=1e-4)  # 627.5 kcal/mol are one hartree
    assert "energy_variational_mae_uEh" not in metrics
    assert [row["formula"] for row in found.rows] == ["H2O", "H2", "H2O2"]
    assert {k: v["count"] for k, v in found.classes.items()} == {"0": 1, "1": 1, "2": 1}


def test_a_shift_of_the_potential_moves_orbital_energies_only(write, tiny_header, tiny_engine, tmp_path):
    with write(own_labels(tiny_engine, shift=0.01)) as store:
        found = evaluate(tiny_header, tiny_engine, store, select(store))
    for key in ("occupied_energies_mae_uEh", "homo_mae_uEh", "lumo_mae_uEh"):
        assert found.metrics[key] == pytest.approx(1e4, rel=1e-6), key
    assert found.metrics["gap_mae_uEh"] < 1e-4
    assert found.metrics["occupied_subspace_overlap"] == pytest.approx(1, abs=1e-9)
    # S^-1/2 (0.01 S) S^-1/2 is 0.01 on the diagonal: its mean over n^2 elements is 0.01 / n
    expected = 1e4 * np.mean([1 / row["n_ao"] for row in found.rows])
    assert found.metrics["h_orthonormal_mae_uEh"] == pytest.approx(expected, rel=1e-6)
    plot_parity(found, tmp_path / "parity.png", title="shifted")
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")


def test_the_zero_of_a_fine_tuned_model_is_no_error(write, tiny_header, tiny_engine, monkeypatch):
    with write(own_labels(tiny_engine)) as store:
        monkeypatch.setattr(tiny_engine, "orbital_shift", 0.2)
        metrics = evaluate(tiny_header, tiny_engine, store, select(store)).metrics
    for key in ("h_mae_uEh", "h_orthonormal_mae_uEh", "occupied_energies_mae_uEh", "homo_mae_uEh"):
        assert metrics[key] < 1e-5, key


def test_variational_energies_are_those_of_the_reference(write, tiny_header, tiny_engine):
    """The variational energy lies above the SCF by about the estimate, whatever the density."""
    labels = []
    for molecule in (WATER, PEROXIDE):  # symmetry alone gives the density of H2 in a minimal basis
        labels.append(Record(molecule, solve(molecule, tiny_header.basis, method="hf").observables))
    with write(labels) as store:
        found = evaluate(tiny_header, tiny_engine, store, select(store), variational=True)
    errors = [row["energy_variational_error"] for row in found.rows]
    assert min(errors) > 0
    assert "energy_variational_mae_uEh" in found.metrics
    # the model is not trained: the estimate has the right order at best
    assert found.metrics["estimate_variational_median_ratio"] > 0.1


def test_state_errors_by_hand():
    a = State(np.diag([-1.0, 2.0])[None], np.array([[-1.0, 2.0]]), np.eye(2)[None])
    angle = 0.1
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    b = State(np.diag([-1.3, 2.1])[None], np.array([[-1.3, 2.1]]), -turn[None])
    row = state_errors(a, b, np.eye(2), [1])
    assert row["h_mae"] == pytest.approx(0.1)
    assert row["h_max"] == pytest.approx(0.3)
    assert row["h_rms"] == pytest.approx(np.sqrt(0.1 / 4))
    assert (row["homo"], row["lumo"]) == (pytest.approx(0.3), pytest.approx(-0.1))
    assert row["gap"] == pytest.approx(-0.4)
    assert row["similarity"] == row["cosine"] == pytest.approx(np.cos(angle))
    assert row["subspace"] == pytest.approx(np.cos(angle) ** 2)
    assert "s2" not in row


def test_state_errors_of_two_spins_by_hand():
    """One alpha electron and no beta one, then one of each in unlike orbitals."""
    c, s = np.cos(0.3), np.sin(0.3)
    turn = np.array([[c, -s], [s, c]])
    energies = np.array([[-1.0, 2.0], [-0.5, 0.7]])
    exact = State(np.stack([np.diag(e) for e in energies]), energies, np.stack([np.eye(2)] * 2))
    shift = np.array([[0.1, 0.2], [0.3, -0.4]])
    found = State(exact.fock + 0.01, energies + shift, np.stack([np.eye(2), turn]))
    row = state_errors(found, exact, np.eye(2), [1, 0])
    assert (row["h_mae"], row["h_max"]) == (pytest.approx(0.01), pytest.approx(0.01))
    # the lowest empty orbital is the first of beta
    assert (row["homo"], row["lumo"]) == (pytest.approx(0.1), pytest.approx(0.3))
    assert row["occupied_mae"] == pytest.approx(0.1)
    assert row["s2"] == 0
    row = state_errors(found, exact, np.eye(2), [1, 1])
    assert (row["homo"], row["lumo"]) == (pytest.approx(0.3), pytest.approx(-0.4))
    assert row["occupied_mae"] == pytest.approx(0.2)
    assert row["subspace"] == pytest.approx((1 + c**2) / 2)
    assert row["s2"] == pytest.approx(1 - c**2)


def test_a_degenerate_pair_changes_the_similarity_but_not_the_subspace(rng):
    turn = np.linalg.qr(rng.normal(size=(2, 2)))[0]
    energies = np.array([[-1.0, -1.0, 1.0]])
    fock = np.diag(energies[0])[None]
    mixed = np.eye(3)[None]
    mixed[0, :2, :2] = turn
    row = state_errors(State(fock, energies, mixed), State(fock, energies, np.eye(3)[None]), np.eye(3), [2])
    assert row["subspace"] == pytest.approx(1)
    assert row["similarity"] < 0.999


def test_averages_leave_out_what_is_missing():
    rows = [{"h_mae": 1e-6, "gap": float("nan"), "h_rms": 3.0}, {"h_mae": 3e-6, "gap": -2.0, "h_rms": 4.0}]
    metrics = average(rows)
    assert metrics["h_mae_uEh"] == pytest.approx(2)
    assert metrics["gap_mae_uEh"] == pytest.approx(2e6)
    assert metrics["h_rms_uEh"] == pytest.approx(np.sqrt(12.5) * 1e6)


def test_quality_of_estimates():
    rows = [{"energy_variational_estimate": 2 * e, "energy_variational_error": e} for e in (1e-4, 3e-4, 2e-4)]
    quality = estimate_quality([*rows, {"energy_variational_estimate": float("nan"), "energy_variational_error": 1.0}])
    assert quality["estimate_variational_median_ratio"] == pytest.approx(2)
    assert quality["estimate_variational_rank_correlation"] == pytest.approx(1)
    assert estimate_quality([{"h_mae": 1.0}]) == {}


def test_select_goes_by_smiles(write, tiny_engine):
    with write(own_labels(tiny_engine)) as store:
        sides = [split_of(m.name) for m in MOLECULES]
        assert select(store, split="train") == [i for i, side in enumerate(sides) if side == "train"]
        assert select(store, limit=2) == [0, 1]
        missing = ({"test", "validation"} - set(sides)).pop()
        with pytest.raises(ValueError, match=f"no label .* is in split='{missing}'"):
            select(store, split=missing)


def test_select_refuses_names_that_are_no_smiles(write, tiny_engine):
    records = own_labels(tiny_engine)
    for name in ("", "C", "water#0", "O "):
        with write([replace(r, molecule=replace(r.molecule, name=name)) for r in records[:1]]) as store:
            with pytest.raises(ValueError, match="is not its SMILES"):
                select(store, split="test")


def test_labels_of_something_else_are_refused(write, tiny_header, tiny_engine):
    records = own_labels(tiny_engine)
    with write(records, method="pbe", resolved="GGA") as store:
        with pytest.raises(ValueError, match="made with 'pbe' .* take labels of that method"):
            evaluate(tiny_header, tiny_engine, store, [0])
    from mlsemi.basis import load_basis

    with write(records, basis=load_basis("def2-svp").subset((1, 8))) as store:
        with pytest.raises(ValueError, match="is in basis 'def2-svp'.*'sto-3g'"):
            evaluate(tiny_header, tiny_engine, store, [0])
        methane = Molecule.from_angstrom([6], [[0, 0, 0]])
        with pytest.raises(ValueError, match="has C, but model 'tiny' covers H, O only"):
            check_labels(tiny_header, store, [methane])
    with write(records, encoding="residual:sap/1") as store:
        with pytest.raises(ValueError, match="'residual:sap/1'"):
            evaluate(tiny_header, tiny_engine, store, [0])


def test_open_shells_are_left_out_with_a_warning(write, tiny_header, tiny_engine):
    records = own_labels(tiny_engine)[:1]
    hydrogen = replace(HYDROGEN, spin=2)
    triplet = Record(hydrogen, Observables(energy=-0.5, fock=np.zeros((2, 2, 2)), mo_energy=np.zeros((2, 2))))
    with write([*records, triplet]) as store:
        found = evaluate(tiny_header, tiny_engine, store, [0, 1])
        assert len(found.rows) == 1
        assert found.warnings == ("1 labels of open shells, which the model does not cover, were left out",)
        assert found.groups == {}
        with pytest.raises(ValueError, match="none of the 1 labels .* can be used: 1 labels of open shells"):
            evaluate(tiny_header, tiny_engine, store, [1])
