"""Localized orbitals against PySCF's functionals and spaces, and what they must be of: shells, spins, turns."""

import numpy as np
import pytest
import torch
from pyscf import lo

from mlsemi.basis import Basis, load_basis
from mlsemi.batch import Batch
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables
from mlsemi.reference.localization import localize, of_state, sweep
from mlsemi.reference.mean_field import solve, to_pyscf_mole
from mlsemi.state import solve_state

BASIS = "6-31g"
WATER = Molecule.from_angstrom(
    np.array([8, 1, 1]), np.array([[0.1, 0, 0.1173], [0, 0.757, -0.469], [0, -0.757, -0.469]])
)
AMMONIA = Molecule.from_angstrom(
    np.array([7, 1, 1, 1]), np.array([[0, 0, 0.1], [0, 0.94, -0.27], [0.81406, -0.47, -0.27], [-0.81406, -0.47, -0.27]])
)
METHYL = Molecule.from_angstrom(
    np.array([6, 1, 1, 1]), np.array([[0, 0, 0], [0, 1.08, 0], [0.93531, -0.54, 0], [-0.93531, -0.54, 0]]), spin=1
)
NITROGEN = Molecule.from_angstrom(np.array([7, 7]), np.array([[0.0, 0, 0], [0, 0, 1.1]]))
NEON = Molecule(np.array([10]), np.zeros((1, 3)))


@pytest.fixture(scope="module")
def basis() -> Basis:
    return load_basis(BASIS)


@pytest.fixture(scope="module")
def states(basis) -> dict[str, tuple[Molecule, Observables]]:
    named = {"water": WATER, "ammonia": AMMONIA, "methyl": METHYL, "nitrogen": NITROGEN, "neon": NEON}
    return {name: (m, solve(m, basis, method="hf", stability=False).observables) for name, m in named.items()}


@pytest.mark.parametrize("method", ["boys", "pipek-mezey", "ibo"])
@pytest.mark.parametrize(("name", "spin"), [("ammonia", 0), ("methyl", 0), ("methyl", 1)])
def test_occupied_orbitals(states, basis, method, name, spin):
    molecule, state = states[name]
    found = localize(state, molecule, basis, method=method, spin=spin)
    assert found.unique
    c, s = found.coefficients, state.overlap
    np.testing.assert_allclose(c.T @ s @ c, np.eye(c.shape[1]), atol=1e-10)
    electrons = 2.0 if len(state.mo_occ) == 1 else 1.0
    # 1e-6: a rotation of the occupied orbitals leaves the density as it is; F is converged to a residual of 1e-6
    np.testing.assert_allclose((c * found.occupations) @ c.T, state.density[spin], atol=1e-6)
    np.testing.assert_allclose(
        found.energies.sum(), (state.mo_energy * state.mo_occ)[spin].sum() / electrons, atol=1e-6
    )
    np.testing.assert_allclose(found.populations.sum(1), 1.0, atol=1e-8)
    # three equal bonds: as degenerate as the molecule is
    bonds = [e for e, n in zip(found.energies, found.labels, strict=True) if n.startswith("bond")]
    assert len(bonds) == 3 and np.ptp(bonds) < 1e-4
    heavy = "N1" if name == "ammonia" else "C1"
    expected = {f"bond {heavy}-H{k}" for k in (2, 3, 4)} | {f"core {heavy}"}
    if spin == 0:
        expected.add(f"lone pair {heavy}")
    assert set(found.labels) == expected


@pytest.mark.parametrize("method", ["boys", "pipek-mezey", "ibo"])
def test_functional_as_pyscf(states, basis, method):
    """The best that PySCF's own localizer reaches of the valence orbitals, and stationary by its own gradient.

    The best of several starts: from its default one PySCF stops at a saddle point here, with all three functionals, as
    its own stability analysis says too.
    """
    molecule, state = states["ammonia"]
    mol, layout = to_pyscf_mole(molecule, basis), AOLayout(basis, molecule.numbers)
    occupied = layout.to_pyscf(state.mo_coeff[0][:, :5], axes=(-2,))
    s = mol.intor("int1e_ovlp")
    iaos = lo.orth.vec_lowdin(lo.iao.iao(mol, occupied), s)

    def localizer(orbitals):
        made = {
            "boys": lambda: lo.Boys(mol, orbitals),
            "pipek-mezey": lambda: lo.PipekMezey(mol, orbitals),
            "ibo": lambda: lo.ibo.PipekMezey(mol, orbitals, iaos, s, exponent=4),
        }[method]()
        made.verbose = 0
        return made

    def value(orbitals) -> float:
        if method == "boys":
            return float((np.einsum("xmn,mi,ni->xi", mol.intor("int1e_r"), orbitals, orbitals) ** 2).sum())
        populations = np.einsum("aii->ai", localizer(orbitals).atomic_pops(mol, orbitals))
        return float((populations ** (4 if method == "ibo" else 2)).sum())

    found = localize(state, molecule, basis, method=method)
    own = layout.to_pyscf(found.coefficients, axes=(-2,))[:, 1:]
    assert value(own) == pytest.approx(found.functional, abs=1e-10)
    valence = occupied[:, 1:]
    rotations = [np.linalg.qr(np.random.default_rng(k).normal(size=(4, 4)))[0] for k in range(4)]
    best = max(value(localizer(valence).kernel(valence @ rotation)) for rotation in rotations)
    # 1e-8 and 1e-5: PySCF converges the gradient to about 1e-6, the value to its square
    assert found.functional == pytest.approx(best, abs=1e-8)
    assert np.abs(localizer(own).get_grad(np.eye(4))).max() < 1e-5


def test_antibonds(states, basis):
    molecule, state = states["ammonia"]
    occupied = localize(state, molecule, basis)
    found = localize(state, molecule, basis, space="valence-virtual")
    assert sorted(found.labels) == ["antibond N1-H2", "antibond N1-H3", "antibond N1-H4"]
    assert np.ptp(found.energies) < 1e-4 and not found.occupations.any()
    cross = occupied.coefficients.T @ state.overlap @ found.coefficients
    assert np.abs(cross).max() < 1e-8
    # rotations within occupied and within virtual orbitals: F between them stays zero
    assert np.abs(occupied.coefficients.T @ state.fock[0] @ found.coefficients).max() < 1e-5
    # IAOs are spanned by both
    assert found.coefficients.shape[1] + occupied.coefficients.shape[1] == 8


def test_all_virtual(states, basis):
    molecule, state = states["water"]
    found = localize(state, molecule, basis, method="boys", space="virtual", starts=1)
    assert found.coefficients.shape == (13, 8)
    np.testing.assert_allclose(found.populations.sum(1), 1.0, atol=1e-8)


def test_bonds_of_nitrogen_are_a_matter_of_choice(states, basis):
    molecule, state = states["nitrogen"]
    found = localize(state, molecule, basis, method="boys")
    assert not found.unique
    assert sorted(found.labels) == ["bond N1-N2"] * 3 + ["core N1", "core N2"] + ["lone pair N1", "lone pair N2"]
    again = localize(state, molecule, basis, method="boys")
    np.testing.assert_array_equal(again.coefficients, found.coefficients)


def test_turns_with_the_molecule(states, basis, random_rotation):
    molecule, state = states["ammonia"]
    rotation = random_rotation()
    matrix = AOLayout(basis, molecule.numbers).rotation(rotation)
    turned = Molecule(molecule.numbers, molecule.positions @ rotation.T)
    moved = Observables(fock=matrix @ state.fock @ matrix.T, mo_coeff=matrix @ state.mo_coeff, mo_occ=state.mo_occ)
    before, after = localize(state, molecule, basis), localize(moved, turned, basis)
    order = [after.labels.index(name) for name in before.labels]
    np.testing.assert_allclose(after.centres[order], before.centres @ rotation.T, atol=1e-5)
    overlap = after.coefficients[:, order].T @ matrix @ state.overlap @ before.coefficients
    np.testing.assert_allclose(np.abs(np.diag(overlap)), 1.0, atol=1e-8)


def test_electronic_state(states, basis):
    molecule, state = states["water"]
    batch = Batch.of([molecule, AMMONIA], basis)
    n = batch.ao_mask.shape[1]
    fock, overlap = torch.zeros(2, 1, n, n, dtype=torch.float64), torch.eye(n, dtype=torch.float64).repeat(2, 1, 1)
    for k, (_, o) in enumerate((states["water"], states["ammonia"])):
        i = slice(o.overlap.shape[0])
        fock[k, :, i, i], overlap[k, i, i] = torch.from_numpy(o.fock), torch.from_numpy(o.overlap)
    solved = solve_state(fock, overlap, batch)
    # not by ibo, which hardly tells one turn of the two lone pairs from another
    found, wanted = (localize(s, molecule, basis, method="boys") for s in (of_state(solved, 0), state))
    assert found.unique and wanted.unique
    np.testing.assert_allclose(found.energies, wanted.energies, atol=1e-5)
    with pytest.raises(ValueError, match=r"take one with of_state"):
        localize(solved, molecule, basis)


def test_sweep_finds_the_best_of_a_pair(rng):
    q = rng.normal(size=(3, 2, 2))
    q = q + q.transpose(0, 2, 1)
    for power in (2, 4):
        _, value = sweep(q, power)
        angles = np.linspace(0, np.pi, 4001)
        turns = np.array([[np.cos(angles), -np.sin(angles)], [np.sin(angles), np.cos(angles)]])
        values = (np.einsum("xyk,axz,zyk->ayk", turns, q, turns) ** power).sum((0, 1))
        assert value >= values.max() - 1e-9


def test_refusals(states, basis):
    molecule, state = states["water"]
    with pytest.raises(ValueError, match="method='foster'"):
        localize(state, molecule, basis, method="foster")
    with pytest.raises(ValueError, match="take space='valence-virtual'"):
        localize(state, molecule, basis, space="virtual")
    with pytest.raises(ValueError, match="spin=1"):
        localize(state, molecule, basis, spin=1)
    with pytest.raises(ValueError, match="has 15 in"):
        localize(state, AMMONIA, basis)
    with pytest.raises(ValueError, match="fractional occupations"):
        localize(Observables(fock=state.fock, mo_coeff=state.mo_coeff, mo_occ=state.mo_occ * 0.9), molecule, basis)
    with pytest.raises(ValueError, match="lack one of them"):
        localize(Observables(energy=1.0), molecule, basis)
    with pytest.raises(ValueError, match="no valence-virtual orbitals"):
        localize(states["neon"][1], NEON, basis, space="valence-virtual")
