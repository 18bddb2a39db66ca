"""The generalized eigenproblem: identities of its solution, padding, the derivative, and what is refused."""

import numpy as np
import pytest
import scipy.linalg
import torch
from pyscf import gto, scf
from torch.autograd import gradcheck

from mlsemi import eigen

WATER = "O 0 0 0.1173; H 0 0.7572 -0.4692; H 0 -0.7572 -0.4692"
AMMONIA = "N 0 0 0; H 0.9377 0 0.3816; H -0.46885 0.812072 0.3816; H -0.46885 -0.812072 0.3816"
METHANE = "C 0 0 0; H 0.629 0.629 0.629; H -0.629 -0.629 0.629; H -0.629 0.629 -0.629; H 0.629 -0.629 -0.629"


def _benzene() -> str:
    atoms = []
    for k in range(6):
        x, y = np.cos(k * np.pi / 3), np.sin(k * np.pi / 3)
        atoms += [f"C {1.397 * x} {1.397 * y} 0", f"H {2.481 * x} {2.481 * y} 0"]
    return "; ".join(atoms)


def _hartree_fock(atoms: str, **kwargs) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Converged F and S in STO-3G, and the number of occupied orbitals."""
    field = scf.RHF(gto.M(atom=atoms, basis="sto-3g", verbose=0, **kwargs)).run(conv_tol=1e-13)
    return torch.from_numpy(field.get_fock()), torch.from_numpy(field.get_ovlp()), field.mol.nelectron // 2


def _random(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, n, n, dtype=torch.float64, generator=generator)
    return a + a.T, b @ b.T / n + torch.eye(n)


def _padded(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n = max(len(f) for f, _ in pairs)
    fock, overlap = torch.zeros(2, len(pairs), n, n, dtype=torch.float64)
    mask = torch.zeros(len(pairs), n, dtype=torch.bool)
    for k, (f, s) in enumerate(pairs):
        fock[k, : len(f), : len(f)], overlap[k, : len(f), : len(f)], mask[k, : len(f)] = f, s, True
    return fock, overlap, mask


def _occupation(n_occupied: list[int], n_mo: int) -> torch.Tensor:
    return 2.0 * (torch.arange(n_mo) < torch.tensor(n_occupied).unsqueeze(1)).double()


PAIRS = [_random(7, 0), _random(3, 1), _random(12, 2), _random(7, 3), _random(1, 4)]
OCCUPIED = [3, 1, 5, 2, 1]


@pytest.mark.parametrize("group", [True, False])
def test_batch_equals_singles_and_scipy(group):
    fock, overlap, mask = _padded(PAIRS)
    fock = torch.where(mask[:, :, None] & mask[:, None], fock, torch.nan)  # padding must not matter
    orbitals, density = eigen.solve_density(fock, overlap, _occupation(OCCUPIED, 12), mask, group=group)
    for k, (f, s) in enumerate(PAIRS):
        n = len(f)
        single, single_density = eigen.solve_density(f[None], s[None], _occupation([OCCUPIED[k]], n))
        reference = scipy.linalg.eigh(f.numpy(), s.numpy(), eigvals_only=True)
        # 1e-12: rounding of two LAPACK drivers on spectra of order 10
        np.testing.assert_allclose(single.mo_energy[0], reference, atol=1e-12)
        np.testing.assert_allclose(orbitals.mo_energy[k, :n], reference, atol=1e-12)
        np.testing.assert_allclose(density[k, :n, :n], single_density[0], atol=1e-12)
        c = orbitals.mo_coeff[k, :n, :n]
        np.testing.assert_allclose(c.T @ s @ c, np.eye(n), atol=1e-12)
        np.testing.assert_allclose(f @ c, s @ c * orbitals.mo_energy[k, :n], atol=1e-12)
        assert not orbitals.mo_coeff[k, n:].any() and not orbitals.mo_coeff[k, :, n:].any()
        assert not density[k, n:].any() and not density[k, :, n:].any()


@pytest.mark.parametrize("group", [True, False])
def test_padding_orbitals_stand_a_few_spectral_widths_above(group):
    fock, overlap, mask = _padded(PAIRS)
    energy = eigen.solve(fock, overlap, mask, group=group).mo_energy
    for k, (f, _) in enumerate(PAIRS):
        real, padding = energy[k, : len(f)], energy[k, len(f) :]
        assert (padding > real.max()).all()
        assert (padding < 100 * (1 + real.abs().max())).all()


def test_matches_pyscf():
    field = scf.RHF(gto.M(atom=WATER, basis="sto-3g", verbose=0)).run(conv_tol=1e-13)
    orbitals, density = eigen.solve_density(
        torch.from_numpy(field.get_fock())[None], torch.from_numpy(field.get_ovlp())[None], _occupation([5], 7)
    )
    # 1e-6: PySCF's orbitals belong to the last but one Fock matrix, converged to the root of its 1e-13 in energy
    np.testing.assert_allclose(orbitals.mo_energy[0], field.mo_energy, atol=1e-6)
    np.testing.assert_allclose(density[0], field.make_rdm1(), atol=1e-6)


def test_float32_input_is_solved_in_float64():
    f, s = PAIRS[2]
    orbitals = eigen.solve(f[None].float(), s[None].float())
    assert orbitals.mo_energy.dtype == orbitals.mo_coeff.dtype == torch.float64


def _checked(fock, overlap, mask, occupation, **kwargs):
    """gradcheck of the density and of power sums of the orbital energies, which exist for degenerate sets too."""

    def function(f, s):
        orbitals, density = eigen.solve_density(f, s, occupation, mask)
        energy = orbitals.mo_energy if mask is None else orbitals.mo_energy.masked_fill(~mask, 0.0)
        occupied = energy * occupation
        return density, occupied.sum(-1), (occupied * energy).sum(-1), energy.pow(2).sum(-1)

    return gradcheck(function, (fock.requires_grad_(), overlap.requires_grad_()), **kwargs)


def test_gradient_of_a_padded_random_batch():
    pairs = [_random(5, 5), _random(3, 6), _random(5, 7)]
    fock, overlap, mask = _padded(pairs)
    assert _checked(fock, overlap, mask, _occupation([2, 1, 3], 5))


@pytest.mark.parametrize(
    ("atoms", "fast"),
    [(WATER, False), (AMMONIA, True), (METHANE, True), (_benzene(), True)],
    ids=["H2O", "NH3", "CH4", "C6H6"],
)
def test_gradient_of_molecules_with_degenerate_orbitals(atoms, fast):
    f, s, n_occupied = _hartree_fock(atoms)
    assert _checked(f[None], s[None], None, _occupation([n_occupied], len(f)), fast_mode=fast)


def test_gradient_of_single_orbital_energies():
    f, s, _ = _hartree_fock(WATER)  # C2v: no degenerate orbitals
    assert gradcheck(lambda a, b: eigen.solve(a, b).mo_energy, (f[None].requires_grad_(), s[None].requires_grad_()))


def test_exact_degeneracy_leaves_no_trace_in_the_gradient():
    fock = torch.diag(torch.tensor([-1.0, -1.0, 0.5, 0.5, 0.5], dtype=torch.float64))[None].requires_grad_()
    overlap = torch.eye(5, dtype=torch.float64)[None].requires_grad_()
    weight = _random(5, 8)[0][None]
    (eigen.density(fock, overlap, _occupation([2], 5)) * weight).sum().backward()
    # by hand, C = 1: dL/dF_ia = -(2 / 1.5) W_ia, zero in oo and vv; dL/dS_oo = -2 W_oo, zero in vv
    expected = torch.zeros(5, 5, dtype=torch.float64)
    expected[:2, 2:] = weight[0, :2, 2:] * 2 / -1.5
    np.testing.assert_allclose(fock.grad[0], expected + expected.T, atol=1e-14)
    np.testing.assert_allclose(overlap.grad[0, :2, :2], -2 * weight[0, :2, :2], atol=1e-14)
    assert not overlap.grad[0, 2:, 2:].any()


def test_padding_has_no_gradient():
    fock, overlap, mask = _padded(PAIRS)
    fock.requires_grad_(), overlap.requires_grad_()
    orbitals, density = eigen.solve_density(fock, overlap, _occupation(OCCUPIED, 12), mask)
    (density.pow(2).sum() + density.sum() + orbitals.mo_energy.sum()).backward()
    outside = ~(mask[:, :, None] & mask[:, None])
    assert not fock.grad[outside].any() and not overlap.grad[outside].any()


def test_second_derivative_is_refused_and_coefficients_carry_no_gradient():
    f, s = PAIRS[0]
    fock = f[None].clone().requires_grad_()
    orbitals, density = eigen.solve_density(fock, s[None], _occupation([3], 7))
    assert not orbitals.mo_coeff.requires_grad
    (first,) = torch.autograd.grad(density.pow(2).sum(), fock, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_indefinite_overlap_is_named():
    fock, overlap, mask = _padded(PAIRS)
    overlap[3, 2, :7] = overlap[3, :7, 2] = 0.0
    overlap[3, 2, 2] = -0.25
    for group in (True, False):
        with pytest.raises(ValueError, match=r"overlap of molecule 3 .* smallest eigenvalue is -2\.500e-01"):
            eigen.solve(fock, overlap, mask, group=group)


def test_values_that_are_not_finite_are_named():
    fock, overlap, mask = _padded(PAIRS)
    fock[2, 1, 1] = torch.nan
    for group in (True, False):
        with pytest.raises(ValueError, match=r"fock of molecule\(s\) \[2\] .* not finite"):
            eigen.solve(fock, overlap, mask, group=group)


@pytest.mark.parametrize("failure", ["wrong vectors", "no convergence"])
def test_failed_solver_is_found_and_repaired(monkeypatch, failure):
    fock, overlap, mask = _padded(PAIRS)
    expected = eigen.solve(fock, overlap, mask)
    honest = torch.linalg.eigh

    def broken(matrix):
        if failure == "no convergence":
            raise torch.linalg.LinAlgError("as CUDA's Jacobi solver says it")
        energy, vectors = honest(matrix)
        vectors = vectors.clone()
        vectors[2, :, 0] = vectors[2, :, 1]
        return energy, vectors

    monkeypatch.setattr(torch.linalg, "eigh", broken)
    named = r"\[2\]" if failure == "wrong vectors" else r"\[0, 1, 2, 3, 4\]"
    with pytest.warns(RuntimeWarning, match=rf"failed for molecule\(s\) {named} of the batch"):
        repaired = eigen.solve(fock, overlap, mask, group=False)
    np.testing.assert_allclose(repaired.mo_energy[mask], expected.mo_energy[mask], atol=1e-12)
    assert (repaired.mo_energy[~mask] > 0).all()
    occupation = _occupation(OCCUPIED, 12).unsqueeze(1)
    d = [(c * occupation) @ c.mT for c in (repaired.mo_coeff, expected.mo_coeff)]
    np.testing.assert_allclose(d[0], d[1], atol=1e-12)


def test_nearly_dependent_basis_is_solved():
    # s functions whose exponents lie 5 % apart: condition number of S 1e9
    exponents = 0.1 * 1.05 ** np.arange(4)
    mol = gto.M(atom="He 0 0 0", basis={"He": [[0, [a, 1.0]] for a in exponents] + [[0, [3.0, 1.0]]]}, verbose=0)
    s, h = torch.from_numpy(mol.intor("int1e_ovlp")), torch.from_numpy(scf.hf.get_hcore(mol))
    assert np.linalg.cond(s) > 1e8
    eigen.solve(h[None], s[None])


def test_shapes_are_checked():
    f, s = PAIRS[0]
    with pytest.raises(ValueError, match="fock must have shape"):
        eigen.solve(f, s)
    with pytest.raises(ValueError, match="overlap must have the shape of fock"):
        eigen.solve(f[None], s[None, :3, :3])
    with pytest.raises(ValueError, match="ao_mask must have shape"):
        eigen.solve(f[None], s[None], torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="first AOs"):
        eigen.solve(f[None], s[None], torch.arange(7)[None] != 2)


def test_square_root():
    _, overlap, mask = _padded(PAIRS)
    root = eigen.square_root(overlap, mask)
    np.testing.assert_allclose(root @ root, overlap, atol=1e-12)  # zero in the padding as well
    small = _padded([_random(4, 5), _random(2, 6)])
    assert gradcheck(lambda s: eigen.square_root(s, small[2]), small[1].requires_grad_())
    assert gradcheck(eigen.square_root, torch.eye(4, dtype=torch.float64)[None].requires_grad_())
    with pytest.raises(ValueError, match="overlap of molecule 1 .* smallest eigenvalue"):
        eigen.square_root(torch.stack([torch.eye(2), torch.ones(2, 2)]) - 1e-3 * torch.eye(2))


def near_dependent(generator: torch.Generator, smallest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A Fock matrix and an overlap with one eigenvalue `smallest`, the others from 0.1 to 2, shape (1, 8, 8)."""
    vectors, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=generator))
    values = torch.cat([torch.tensor([smallest]), torch.linspace(0.1, 2.0, 7)]).double()
    half = vectors * values.sqrt()
    fock = torch.randn(8, 8, dtype=torch.float64, generator=generator)
    return (half @ (fock + fock.T) @ half.T)[None], (half @ half.T)[None]


def test_an_orbital_without_norm_is_lifted_and_the_others_stay():
    """An error of 3e-3 Eh in a direction of norm 3e-4 makes an orbital at -10 Eh; the filter puts it at LEVEL."""
    fock, overlap = near_dependent(torch.Generator().manual_seed(2), 1e-4)
    mask = torch.ones(1, 8, dtype=torch.bool)
    _, vectors = torch.linalg.eigh(overlap)
    direction = vectors[..., :1]
    wrong = fock - 5e-3 * direction @ direction.mT
    assert float(eigen.solve(wrong, overlap, mask).mo_energy[0, 0]) < -30
    energy = eigen.solve(eigen.lift_near_dependencies(wrong, overlap, mask, 1e-3), overlap, mask).mo_energy
    # what is left if that direction is dropped: canonical orthogonalization
    kept = vectors[0, :, 1:] * torch.linalg.eigvalsh(overlap)[0, 1:] ** -0.5
    expected = torch.sort(
        torch.cat([torch.linalg.eigvalsh(kept.T @ fock[0] @ kept), torch.tensor([eigen.LEVEL]).double()])
    )[0]
    # the filter is (s / floor)^4 = 1e-4 in that direction, and 1 - 1e-8 in the others
    torch.testing.assert_close(energy[0], expected, atol=1e-3, rtol=0)


def test_lifting_leaves_a_well_conditioned_problem_and_padding():
    fock, overlap = near_dependent(torch.Generator().manual_seed(3), 0.05)
    mask = torch.ones(1, 10, dtype=torch.bool)
    mask[:, 8:] = False
    pad = [torch.nn.functional.pad(x, (0, 2, 0, 2)) for x in (fock, overlap)]
    lifted = eigen.lift_near_dependencies(*pad, mask, 1e-3)
    # (floor / s)^4 = 1.6e-7 of elements of order 0.1 at most
    torch.testing.assert_close(lifted[:, :8, :8], fock, atol=1e-7, rtol=0)
    assert torch.equal(lifted[:, 8:], torch.zeros_like(lifted[:, 8:]))
    assert eigen.lift_near_dependencies(*pad, mask, 0.0) is pad[0]


def test_lifting_turns_with_the_basis_and_has_a_derivative():
    fock, overlap = near_dependent(torch.Generator().manual_seed(4), 1e-3)
    mask = torch.ones(1, 8, dtype=torch.bool)
    turn, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5)))
    turned = eigen.lift_near_dependencies(turn @ fock @ turn.T, turn @ overlap @ turn.T, mask, 1e-3)
    torch.testing.assert_close(turned, turn @ eigen.lift_near_dependencies(fock, overlap, mask, 1e-3) @ turn.T)

    def lifted(f, s):
        return eigen.lift_near_dependencies(f, 0.5 * (s + s.mT), mask, 1e-3)

    assert torch.autograd.gradcheck(lifted, (fock.requires_grad_(), overlap.requires_grad_()), eps=1e-8, atol=1e-4)
