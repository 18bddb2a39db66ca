"""Blocks: the pieces of an AO matrix are its slices, and together they are the matrix."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mlsemi.basis import load_basis
from mlsemi.batch import Batch
from mlsemi.blocks import BlockMap, Blocks, Slots
from mlsemi.harmonics import wigner_d
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule


def random_matrices(batch: Batch, rng: np.random.Generator) -> torch.Tensor:
    """Symmetric matrices of the molecules, zero in the padding, shape (molecule, ao, ao)."""
    n = batch.ao_mask.shape[1]
    full = torch.from_numpy(rng.normal(size=(batch.n_molecules, n, n)))
    mask = batch.ao_mask.double()
    return (full + full.transpose(1, 2)) * mask[:, :, None] * mask[:, None, :]


@pytest.fixture(params=["sto-3g", "def2-svp", "def2-tzvp"])
def case(request: pytest.FixtureRequest, molecules: dict[str, Molecule]) -> tuple[Batch, Slots]:
    basis = load_basis(request.param)
    batch = Batch.of(list(molecules.values()), basis)
    return batch, Slots.of(basis, batch.numbers.tolist())


def test_slots_hold_the_richest_of_each_l() -> None:
    basis = load_basis("def2-svp")
    slots = Slots.of(basis, [8, 1, 16, 1])
    assert slots.elements == (1, 8, 16)
    assert slots.n_shells == (4, 3, 1)  # sulfur: 4s3p1d
    assert (slots.n_slots, slots.l_max) == (4 + 9 + 5, 2)
    assert slots.l.tolist() == [0] * 4 + [1] * 9 + [2] * 5
    assert slots.m.tolist() == [0] * 4 + [-1, 0, 1] * 3 + [-2, -1, 0, 1, 2]
    assert slots.shell.tolist() == [0, 1, 2, 3] + [4] * 3 + [5] * 3 + [6] * 3 + [7] * 5
    assert slots.of_ao[1].tolist() == [0, 1, 4, 5, 6]  # hydrogen: 2s1p
    np.testing.assert_array_equal(slots.mask().sum(1), [5, 14, 18])


def test_slots_keep_l_and_m_of_each_function(case: tuple[Batch, Slots]) -> None:
    batch, slots = case
    for z in slots.elements:
        layout = AOLayout(batch.basis, [z])
        np.testing.assert_array_equal(slots.l[slots.of_ao[z]], layout.ao_l)
        np.testing.assert_array_equal(slots.m[slots.of_ao[z]], layout.ao_m)


def test_blocks_are_slices_of_the_matrix(case: tuple[Batch, Slots], rng: np.random.Generator) -> None:
    batch, slots = case
    matrices = random_matrices(batch, rng)
    blocks = BlockMap.of(batch, slots).split(matrices, len(batch.numbers))
    assert blocks.diagonal.shape == (len(batch.numbers), slots.n_slots, slots.n_slots)
    assert blocks.off_diagonal.shape == (batch.pair.shape[1], slots.n_slots, slots.n_slots)
    everyone = torch.arange(len(batch.numbers))
    pairs = torch.cat([torch.stack([everyone, everyone]), batch.pair], dim=1).T.tolist()
    for (i, j), block in zip(pairs, torch.cat([blocks.diagonal, blocks.off_diagonal]), strict=True):
        rows, columns = (slots.of_ao[int(batch.numbers[a])] for a in (i, j))
        first, second = (int(batch.ao_offset[a]) for a in (i, j))
        part = matrices[batch.molecule[i], first : first + len(rows), second : second + len(columns)]
        expected = torch.zeros(slots.n_slots, slots.n_slots, dtype=torch.float64)
        expected[np.ix_(rows, columns)] = part
        torch.testing.assert_close(block, expected, rtol=0, atol=0)


def test_together_the_blocks_are_the_matrix(case: tuple[Batch, Slots], rng: np.random.Generator) -> None:
    batch, slots = case
    matrices = random_matrices(batch, rng)
    table = BlockMap.of(batch, slots)
    torch.testing.assert_close(table.assemble(table.split(matrices, len(batch.numbers))), matrices, rtol=0, atol=0)


def test_what_stands_in_empty_slots_is_ignored(molecules: dict[str, Molecule]) -> None:
    batch = Batch.of([molecules["water"]], load_basis("def2-svp"))
    slots = Slots.of(batch.basis, [1, 8, 16])
    size = (slots.n_slots, slots.n_slots)
    ones = Blocks(torch.ones(3, *size), torch.ones(6, *size))
    torch.testing.assert_close(BlockMap.of(batch, slots).assemble(ones), torch.ones(1, 24, 24), rtol=0, atol=0)


def test_pairs_beyond_the_cutoff_are_zero(molecules: dict[str, Molecule], rng: np.random.Generator) -> None:
    batch = Batch.of([molecules["formamide"], molecules["helium"]], load_basis("sto-3g"), cutoff=2.8)
    slots = Slots.of(batch.basis, batch.numbers.tolist())
    table = BlockMap.of(batch, slots)
    matrices = random_matrices(batch, rng)
    kept = table.assemble(table.split(matrices, len(batch.numbers)))
    near = {tuple(p) for p in batch.pair.T.tolist()}
    layout = AOLayout(batch.basis, molecules["formamide"].numbers)
    for row, i in enumerate(layout.ao_atom.tolist()):
        for column, j in enumerate(layout.ao_atom.tolist()):
            expected = matrices[0, row, column] if i == j or (i, j) in near else 0.0
            assert kept[0, row, column] == expected


def test_single_atoms_have_diagonal_blocks_only(molecules: dict[str, Molecule], rng: np.random.Generator) -> None:
    batch = Batch.of([molecules["helium"]], load_basis("def2-svp"))
    table = BlockMap.of(batch, Slots.of(batch.basis, [2]))
    matrix = random_matrices(batch, rng)
    blocks = table.split(matrix, 1)
    assert blocks.off_diagonal.shape == (0, 5, 5)
    torch.testing.assert_close(table.assemble(blocks), matrix, rtol=0, atol=0)


def test_assembly_is_linear_with_the_transposed_gradient(
    molecules: dict[str, Molecule], rng: np.random.Generator
) -> None:
    """<G, assemble(B)> = <split(G), B>: the gradient of assembly is splitting."""
    batch = Batch.of([molecules["water"], molecules["hydroxyl"]], load_basis("sto-3g"))
    slots = Slots.of(batch.basis, batch.numbers.tolist())
    table = BlockMap.of(batch, slots)
    size = (slots.n_slots, slots.n_slots)
    diagonal = torch.zeros(len(batch.numbers), *size, dtype=torch.float64, requires_grad=True)
    off_diagonal = torch.zeros(batch.pair.shape[1], *size, dtype=torch.float64, requires_grad=True)
    seed = random_matrices(batch, rng)
    gradients = torch.autograd.grad(
        (table.assemble(Blocks(diagonal, off_diagonal)) * seed).sum(), (diagonal, off_diagonal)
    )
    expected = table.split(seed, len(batch.numbers))
    torch.testing.assert_close(gradients[0], expected.diagonal, rtol=0, atol=0)
    torch.testing.assert_close(gradients[1], expected.off_diagonal, rtol=0, atol=0)


def test_rotated_blocks_make_the_rotated_matrix(
    case: tuple[Batch, Slots], rng: np.random.Generator, random_rotation: Callable[..., np.ndarray]
) -> None:
    batch, slots = case
    r = random_rotation(improper=True)
    matrices = random_matrices(batch, rng)
    d = wigner_d(slots.l_max, torch.from_numpy(r))
    turn = torch.block_diag(*[d[l] for l, n in enumerate(slots.n_shells) for _ in range(n)])
    table = BlockMap.of(batch, slots)
    blocks = table.split(matrices, len(batch.numbers))
    turned = table.assemble(Blocks(turn @ blocks.diagonal @ turn.T, turn @ blocks.off_diagonal @ turn.T))
    for k, molecule in enumerate(batch.molecules):
        layout = AOLayout(batch.basis, molecule.numbers)
        n, whole = layout.n_ao, layout.rotation(r)
        expected = whole @ matrices[k, :n, :n].numpy() @ whole.T
        np.testing.assert_allclose(turned[k, :n, :n].numpy(), expected, rtol=0, atol=1e-12)


def test_elements_are_found_or_named(molecules: dict[str, Molecule]) -> None:
    slots = Slots.of(load_basis("def2-svp"), [1, 7, 8])
    assert slots.element_index(torch.tensor([8, 1, 7, 8])).tolist() == [2, 0, 1, 2]
    with pytest.raises(ValueError, match=r"\[6, 16\] are not among those covered, \[1, 7, 8\]"):
        slots.element_index(torch.tensor([8, 6, 16, 6]))
