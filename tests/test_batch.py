"""Batch: the graph of unlike molecules equals what the single molecules say."""

import numpy as np
import pytest
import torch

from mlsemi.basis import load_basis
from mlsemi.batch import Batch
from mlsemi.molecule import Molecule


def brute_force_pairs(molecules: list[Molecule], cutoff: float) -> list[tuple[int, int]]:
    pairs, start = [], 0
    for molecule in molecules:
        for i in range(molecule.n_atoms):
            for j in range(molecule.n_atoms):
                if i != j and np.linalg.norm(molecule.positions[i] - molecule.positions[j]) < cutoff:
                    pairs.append((start + i, start + j))
        start += molecule.n_atoms
    return pairs


@pytest.mark.parametrize("cutoff", [np.inf, 3.0, 0.6])
def test_pairs_are_all_within_the_cutoff_in_order(cutoff: float, molecules: dict[str, Molecule]) -> None:
    chosen = list(molecules.values())
    batch = Batch.of(chosen, load_basis("def2-svp"), cutoff=cutoff)
    assert [tuple(p) for p in batch.pair.T.tolist()] == brute_force_pairs(chosen, cutoff)


def test_fields_are_those_of_the_molecules(molecules: dict[str, Molecule]) -> None:
    basis = load_basis("def2-svp")
    chosen = list(molecules.values())
    batch = Batch.of(chosen, basis)
    assert batch.n_molecules == len(chosen)
    assert batch.n_electrons.tolist() == [m.n_electrons for m in chosen]
    assert batch.charge.tolist() == [m.charge for m in chosen]
    assert batch.spin.tolist() == [m.spin for m in chosen]
    assert batch.n_ao.tolist() == [sum(basis.n_ao(z) for z in m.numbers.tolist()) for m in chosen]
    assert batch.ao_mask.sum(1).tolist() == batch.n_ao.tolist()
    assert batch.ao_mask.shape == (len(chosen), int(batch.n_ao.max()))
    assert (batch.ao_mask.int().diff(dim=1) <= 0).all()  # the padding stands at the end
    for k, molecule in enumerate(chosen):
        own = batch.molecule == k
        assert batch.numbers[own].tolist() == molecule.numbers.tolist()
        np.testing.assert_array_equal(batch.positions[own].numpy(), molecule.positions)
        sizes = [basis.n_ao(z) for z in molecule.numbers.tolist()]
        assert batch.ao_offset[own].tolist() == (np.cumsum(sizes) - sizes).tolist()


def test_single_atoms_have_no_pairs(molecules: dict[str, Molecule]) -> None:
    batch = Batch.of([molecules["helium"]], load_basis("sto-3g"))
    assert batch.pair.shape == (2, 0)
    assert batch.vectors.shape == (0, 3)


def test_vectors_point_from_i_to_j_and_are_differentiable(molecules: dict[str, Molecule]) -> None:
    batch = Batch.of([molecules["water"], molecules["hydroxyl"]], load_basis("sto-3g"))
    positions = batch.positions.clone().requires_grad_()
    moved = batch.with_positions(positions)
    i, j = batch.pair
    torch.testing.assert_close(moved.vectors, batch.positions[j] - batch.positions[i], rtol=0, atol=0)
    (gradient,) = torch.autograd.grad((moved.vectors**2).sum(), positions)
    # each pair counts twice: d/dx_a sum = 4 sum_b (x_a - x_b)
    for k, molecule in enumerate((molecules["water"], molecules["hydroxyl"])):
        x = torch.from_numpy(molecule.positions.copy())
        torch.testing.assert_close(gradient[batch.molecule == k], 4 * (len(x) * x - x.sum(0)), rtol=1e-12, atol=1e-12)


def test_the_batch_moves_as_a_whole(molecules: dict[str, Molecule]) -> None:
    batch = Batch.of([molecules["water"]], load_basis("sto-3g")).to("meta")
    assert {v.device.type for v in vars(batch).values() if isinstance(v, torch.Tensor)} == {"meta"}
    assert batch.molecules == (molecules["water"],)


def test_the_molecules_are_not_written_through_the_batch(molecules: dict[str, Molecule]) -> None:
    batch = Batch.of([molecules["water"]], load_basis("sto-3g"))
    before = molecules["water"].positions.copy()
    batch.positions.add_(1.0)
    np.testing.assert_array_equal(molecules["water"].positions, before)


def test_what_cannot_be_a_batch_is_refused(molecules: dict[str, Molecule]) -> None:
    with pytest.raises(ValueError, match="at least one molecule"):
        Batch.of([], load_basis("sto-3g"))
    with pytest.raises(ValueError, match=r"'def2-svp' has no functions for S; it covers H, O"):
        Batch.of([molecules["hydrogen_sulfide"]], load_basis("def2-svp").subset([1, 8]))
