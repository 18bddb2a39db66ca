"""Gaussian integrals against libcint, by identities, and by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mlsemi.basis import Basis, Shell, load_basis
from mlsemi.batch import Batch
from mlsemi.integrals import coulomb, dipole, kinetic, one_electron, overlap, plan
from mlsemi.integrals.charges import CANDIDATES, Charges
from mlsemi.integrals.hermite import asymptotic, boys
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule, symbol_of

BASES = ("sto-3g", "def2-svp", "def2-tzvp", "cc-pvtz")
TO_LIBCINT = 1e-10
"""The contract; what is measured is 1e-13 times the largest element."""


def mole_of(molecule: Molecule, basis: Basis):  # noqa: ANN201
    """The same molecule with the same functions in PySCF."""
    gto = pytest.importorskip("pyscf.gto")
    shells = {
        symbol_of(z): [[s.l, *zip(s.exponents, s.coefficients, strict=True)] for s in basis.shells(z)]
        for z in set(molecule.numbers.tolist())
    }
    atoms = [(symbol_of(z), x) for z, x in zip(molecule.numbers.tolist(), molecule.positions.tolist(), strict=True)]
    return gto.M(atom=atoms, unit="B", basis=shells, charge=molecule.charge, spin=molecule.spin, verbose=0)


def neutral_atoms(batch: Batch, *, excess: float = 0.0) -> tuple[Tensor, Tensor]:
    """omega^2 and weights of a nucleus and two Gaussians for each atom (one for H), of a total charge."""
    z = batch.numbers.double()
    omega2 = torch.stack([torch.full_like(z, torch.inf), 0.3 * z, 3 * z], 1)
    heavy = (batch.numbers > 1).double()
    weight = torch.stack([-z, z * (1 - 0.6 * heavy) + excess, 0.6 * z * heavy], 1)
    return omega2, weight


def nuclear(batch: Batch) -> Tensor:
    z = batch.numbers.double()[:, None]
    infinite = torch.full_like(z, torch.inf)
    return coulomb(batch, plan(batch), batch.positions, batch.molecule, infinite, -z)


def potential(batch: Batch, *, excess: float = 0.0) -> Tensor:
    return coulomb(batch, plan(batch), batch.positions, batch.molecule, *neutral_atoms(batch, excess=excess))


@pytest.fixture(scope="module", params=BASES)
def case(request: pytest.FixtureRequest, molecules: dict[str, Molecule]) -> tuple[Basis, Batch]:
    if request.param == "cc-pvtz":
        pytest.importorskip("basis_set_exchange")
    basis = load_basis(request.param)
    return basis, Batch.of([molecules[name] for name in ("water", "helium", "formamide", "hydroxyl")], basis)


def test_equals_libcint(case: tuple[Basis, Batch]) -> None:
    basis, batch = case
    overlaps, kinetics, dipoles = one_electron(batch, plan(batch), with_dipole=True)
    assert dipoles is not None
    ours = {"int1e_ovlp": overlaps, "int1e_kin": kinetics, "int1e_r": dipoles, "int1e_nuc": nuclear(batch)}
    for row, molecule in enumerate(batch.molecules):
        mole, layout = mole_of(molecule, basis), AOLayout(basis, molecule.numbers)
        for name, matrices in ours.items():
            matrix = layout.to_pyscf(matrices[row, ..., : layout.n_ao, : layout.n_ao].numpy())
            np.testing.assert_allclose(matrix, mole.intor(name), rtol=0, atol=TO_LIBCINT, err_msg=name)


@pytest.mark.parametrize("excess", [0.0, 0.3])
def test_gaussian_charges_equal_libcint(case: tuple[Basis, Batch], excess: float) -> None:
    basis, batch = case
    matrices = potential(batch, excess=excess)
    omega2, weight = (x.numpy() for x in neutral_atoms(batch, excess=excess))
    for row, molecule in enumerate(batch.molecules):
        mole, layout = mole_of(molecule, basis), AOLayout(basis, molecule.numbers)
        expected = mole.intor("int1e_nuc").copy()
        atoms = np.flatnonzero(batch.molecule.numpy() == row)
        for atom, center in zip(atoms, molecule.positions, strict=True):
            for k in (1, 2):
                with mole.with_rinv_origin(center), mole.with_rinv_zeta(omega2[atom, k]):
                    expected += weight[atom, k] * mole.intor("int1e_rinv")
        matrix = layout.to_pyscf(matrices[row, : layout.n_ao, : layout.n_ao].numpy())
        np.testing.assert_allclose(matrix, expected, rtol=0, atol=TO_LIBCINT)


def test_padding_is_zero_and_matrices_are_symmetric(case: tuple[Basis, Batch]) -> None:
    _, batch = case
    inside = batch.ao_mask[:, :, None] & batch.ao_mask[:, None, :]
    overlaps, kinetics, dipoles = one_electron(batch, plan(batch), with_dipole=True)
    assert dipoles is not None
    for matrix in (overlaps, kinetics, *dipoles.unbind(1), nuclear(batch)):
        assert (matrix[~inside] == 0).all()
        assert torch.equal(matrix, matrix.mT)
    diagonal = overlaps.diagonal(dim1=1, dim2=2)[batch.ao_mask]
    # the contraction coefficients are normalized in double precision
    torch.testing.assert_close(diagonal, torch.ones_like(diagonal), rtol=0, atol=1e-13)


def test_single_functions_equal_one_electron(molecules: dict[str, Molecule]) -> None:
    batch = Batch.of([molecules["water"]], load_basis("def2-svp"))
    tables = plan(batch)
    together = one_electron(batch, tables, with_dipole=True)
    for alone, shared in zip((overlap, kinetic, dipole), together, strict=True):
        assert shared is not None
        # the order of summation is the same
        torch.testing.assert_close(alone(batch, tables), shared, rtol=0, atol=1e-15)
    assert one_electron(batch, tables)[2] is None


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_batch_equals_single_molecules(molecules: dict[str, Molecule], shuffled: bool) -> None:
    basis = load_basis("def2-svp")
    chosen = [molecules[name] for name in ("formamide", "water", "ammonium", "water", "hydrogen_sulfide")]
    batch = Batch.of(chosen, basis)
    omega2, weight = neutral_atoms(batch)
    order = torch.from_numpy(np.random.default_rng(1).permutation(len(batch.numbers)))
    order = order if shuffled else torch.arange(len(order))
    charges = (batch.positions[order], batch.molecule[order], omega2[order], weight[order])
    together = [*one_electron(batch, plan(batch))[:2], coulomb(batch, plan(batch), *charges)]
    for row, molecule in enumerate(chosen):
        single = Batch.of([molecule], basis)
        n = int(single.n_ao[0])
        for ours, alone in zip(together, (*one_electron(single, plan(single))[:2], potential(single)), strict=True):
            # sums in another order, elements up to 100
            torch.testing.assert_close(ours[row, :n, :n], alone[0], rtol=0, atol=1e-13 * float(alone.abs().max() + 1))


def test_rotation_and_translation(molecules: dict[str, Molecule], random_rotation: Callable[..., np.ndarray]) -> None:
    basis = load_basis("def2-tzvp")
    molecule = molecules["water"]
    shift = np.array([0.3, -1.2, 0.7])
    for improper in (False, True):
        rotation = random_rotation(improper=improper)
        moved = Molecule(molecule.numbers, molecule.positions @ rotation.T + shift)
        before, after = Batch.of([molecule], basis), Batch.of([moved], basis)
        d = torch.from_numpy(AOLayout(basis, molecule.numbers).rotation(rotation))
        for integral in (lambda b: overlap(b, plan(b)), lambda b: kinetic(b, plan(b)), potential):
            # rounding of elements up to 100
            torch.testing.assert_close(d @ integral(before)[0] @ d.T, integral(after)[0], rtol=0, atol=1e-11)
        turned = torch.einsum("xy,yij->xij", torch.from_numpy(rotation), dipole(before, plan(before))[0])
        turned = d @ turned @ d.T
        moved_back = dipole(after, plan(after))[0] - torch.from_numpy(shift)[:, None, None] * overlap(
            after, plan(after)
        )
        torch.testing.assert_close(turned, moved_back, rtol=0, atol=1e-12)


AXES = {"x": [1.0, 0, 0], "y": [0, 1.0, 0], "z": [0, 0, 1.0], "askew": [0.48, -0.6, 0.64]}


def all_integrals(batch: Batch, *, excess: float) -> Callable[[Tensor], tuple[Tensor, ...]]:
    tables = plan(batch)
    charges = neutral_atoms(batch, excess=excess)

    def function(positions: Tensor) -> tuple[Tensor, ...]:
        moved = batch.with_positions(positions)
        overlaps, kinetics, dipoles = one_electron(moved, tables, with_dipole=True)
        assert dipoles is not None
        return overlaps, kinetics, dipoles, coulomb(moved, tables, positions, batch.molecule, *charges)

    return function


@pytest.mark.parametrize("axis", AXES)
def test_first_and_second_derivatives_of_linear_molecules(axis: str) -> None:
    """HCN and H2: centres on the line of the pairs, some right on the product centre (H2's middle, T = 0)."""
    direction = np.array(AXES[axis])
    hcn = Molecule(np.array([1, 6, 7]), np.array([[-2.0], [0.0], [2.2]]) * direction)
    h2 = Molecule(np.array([1, 1]), np.array([[0.0], [1.4]]) * direction)
    batch = Batch.of([hcn, h2], load_basis("def2-svp"))
    function = all_integrals(batch, excess=0.2)
    positions = batch.positions.clone().requires_grad_()
    # the error of central differences with this step is 1e-7 of third derivatives of steep functions
    assert torch.autograd.gradcheck(function, positions, eps=1e-5, atol=1e-6, rtol=1e-6, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, positions, eps=1e-5, atol=1e-5, rtol=1e-5, fast_mode=True)


def test_full_jacobian_of_the_gradient(molecules: dict[str, Molecule]) -> None:
    batch = Batch.of([molecules["hydroxyl"]], load_basis("sto-3g"))
    function = all_integrals(batch, excess=0.0)
    positions = batch.positions.clone().requires_grad_()
    assert torch.autograd.gradcheck(function, positions, eps=1e-5, atol=1e-6, rtol=1e-6)
    assert torch.autograd.gradgradcheck(function, positions, eps=1e-5, atol=1e-5, rtol=1e-5)


def test_derivatives_with_f_shells(molecules: dict[str, Molecule]) -> None:
    batch = Batch.of([molecules["hydroxyl"]], load_basis("def2-tzvp"))
    positions = batch.positions.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        all_integrals(batch, excess=0.0), positions, eps=1e-5, atol=1e-6, rtol=1e-6, fast_mode=True
    )


def test_charge_on_the_product_centre() -> None:
    """T = 0: between two equal s functions, in closed form, with its first and second derivatives."""
    basis = Basis("one", {1: (Shell.normalized(0, [0.7], [1.0]),)})
    batch = Batch.of([Molecule(np.array([1, 1]), np.array([[0.0, 0, -0.8], [0, 0, 0.8]]))], basis)
    center = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    omega2 = torch.tensor([[2.0]], dtype=torch.float64)
    tables = plan(batch)
    value = coulomb(batch, tables, center, torch.zeros(1, dtype=torch.int64), omega2, torch.ones_like(omega2))[0, 0, 1]
    p, theta = 1.4, 2.0 / 3.4
    # S_ab (p / pi)^(3/2) is the prefactor of the product Gaussian
    r000 = 2 * np.pi / p * theta**0.5 * float(overlap(batch, tables)[0, 0, 1]) * (p / np.pi) ** 1.5
    np.testing.assert_allclose(value.item(), r000, rtol=1e-13)
    (slope,) = torch.autograd.grad(value, center, create_graph=True)
    np.testing.assert_allclose(slope.detach().numpy(), 0.0, atol=1e-15)
    (curvature,) = torch.autograd.grad(slope[0, 2], center)
    np.testing.assert_allclose(curvature.numpy(), [[0.0, 0.0, -2 / 3 * p * theta * r000]], rtol=1e-12, atol=1e-15)


def test_learned_charges(molecules: dict[str, Molecule]) -> None:
    """Weights that require a gradient: same values, linear, twice differentiable together with the positions."""
    batch = Batch.of([molecules["water"], molecules["hydroxyl"]], load_basis("sto-3g"))
    tables = plan(batch)
    omega2, fixed = neutral_atoms(batch)

    def function(weight: Tensor, positions: Tensor) -> Tensor:
        moved = batch.with_positions(positions)
        return coulomb(moved, tables, positions, batch.molecule, omega2, weight)

    weight, positions = fixed.clone().requires_grad_(), batch.positions.clone().requires_grad_()
    # screening leaves out less than 1e-13 of elements up to 60
    torch.testing.assert_close(function(weight, positions), function(fixed, batch.positions), rtol=0, atol=1e-11)
    assert torch.autograd.gradcheck(function, (weight, positions), eps=1e-5, atol=1e-6, rtol=1e-6, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (weight, positions), eps=1e-5, atol=1e-5, rtol=1e-5, fast_mode=True)


def test_centres_each_of_its_own_kind_and_in_parts(
    molecules: dict[str, Molecule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grouping of the work does not change the result."""
    batch = Batch.of([molecules["formamide"], molecules["water"]], load_basis("def2-svp"))
    omega2, weight = neutral_atoms(batch)
    omega2 = omega2 * torch.linspace(0.9, 1.1, len(omega2), dtype=torch.float64)[:, None]
    charges = (batch.positions, batch.molecule, omega2, weight)
    whole = coulomb(batch, plan(batch), *charges)
    assert CANDIDATES > 1000
    for name, value in (("CANDIDATES", 1000), ("SMALLEST_RUN", 1), ("CHUNK", 300)):
        monkeypatch.setattr(f"mlsemi.integrals.charges.{name}", value)
        # sums in another order
        torch.testing.assert_close(coulomb(batch, plan(batch), *charges), whole, rtol=0, atol=1e-12)


def test_far_neutral_atoms_are_left_out() -> None:
    """Far combinations with neutral centres vanish, exactly those, and the result is that of all."""
    x = np.zeros((12, 3))
    x[:, 0] = 9.0 * np.arange(12)
    batch = Batch.of([Molecule(np.full(12, 6), x)], load_basis("def2-svp"))
    omega2, weight = neutral_atoms(batch)
    one = torch.ones(12, dtype=torch.float64)
    sizes = []
    for scale in (None, one):  # with a scale there is no screening
        charges = Charges(batch.positions, batch.molecule, omega2, weight, 1, scale=scale)
        pair, _, _ = charges._combinations(batch.positions.t(), one, batch.molecule, asymptotic(2))
        sizes.append(len(pair))
    assert sizes[0] < 0.3 * sizes[1] == 0.3 * 144
    exact = coulomb(batch, plan(batch), batch.positions, batch.molecule, omega2, weight.requires_grad_()).detach()
    # a sum of terms up to 40 that cancel
    torch.testing.assert_close(potential(batch), exact, rtol=0, atol=1e-11)


def test_boys_function() -> None:
    """F_0 = sqrt(pi / 4T) erf(sqrt T), and F_m(0) = 1 / (2m + 1)."""
    t = np.array([1e-3, 0.5, 3.0, 30.0])
    erf = torch.special.erf(torch.from_numpy(t).sqrt()).numpy()
    np.testing.assert_allclose(boys(0, t), np.sqrt(np.pi / (4 * t)) * erf, rtol=1e-14)
    np.testing.assert_allclose([boys(m, np.zeros(1))[0] for m in range(8)], 1 / (2 * np.arange(8) + 1), rtol=1e-15)


def test_no_charges_and_wrong_shapes(molecules: dict[str, Molecule]) -> None:
    batch = Batch.of([molecules["water"]], load_basis("sto-3g"))
    tables = plan(batch)
    none = torch.zeros(0, 1, dtype=torch.float64)
    nothing = coulomb(batch, tables, torch.zeros(0, 3).double(), torch.zeros(0, dtype=torch.int64), none, none)
    assert nothing.shape == (1, 7, 7) and not nothing.any()
    with pytest.raises(ValueError, match=r"must be \(center, 3\), \(center,\), \(center, k\), \(center, k\)"):
        coulomb(batch, tables, batch.positions, batch.molecule, torch.ones(3, 1).double(), torch.ones(3).double())


def test_plans_of_one_composition_are_shared(molecules: dict[str, Molecule]) -> None:
    basis = load_basis("sto-3g")
    water = molecules["water"]
    moved = Molecule(water.numbers, water.positions * 1.05)
    assert plan(Batch.of([water], basis)) is plan(Batch.of([moved], basis))
    assert plan(Batch.of([water], basis)) is not plan(Batch.of([water, moved], basis))
