"""Density of states: areas and widths of the lines, sums, projections."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from mlsemi.properties.populations import orbital_populations
from mlsemi.properties.spectrum import density_of_states, line

GRID = torch.linspace(-40.0, 20.0, 12_001, dtype=torch.float64)
STEP = float(GRID[1] - GRID[0])


@pytest.mark.parametrize("shape", ["gaussian", "lorentzian"])
def test_lines_have_area_one_and_the_width(shape):
    x = torch.tensor([0.0, 0.15, -0.15], dtype=torch.float64)
    top, right, left = line(x, width=0.3, shape=shape).tolist()
    assert right == pytest.approx(top / 2, rel=1e-12) and left == pytest.approx(top / 2, rel=1e-12)
    area = float(line(GRID + 10, width=0.3, shape=shape).sum()) * STEP
    # the tails of a Lorentzian beyond a distance d hold width / (2 pi d) each
    assert area == pytest.approx(1.0, abs=1e-10 if shape == "gaussian" else 0.3 / np.pi / 30 + 1e-3)


@pytest.mark.parametrize("shape", ["gaussian", "lorentzian"])
def test_total_is_the_sum_of_lines_and_of_the_projections(together, shape):
    t = together
    grid = GRID[::60]
    total = density_of_states(grid, t.mo_energy, t.batch, width=0.1, shape=shape)
    assert total.shape == (6, 2, len(grid))
    for k, case in enumerate(t.cases):
        for spin in range(2):
            energies = case.observables.mo_energy[spin % len(case.observables.mo_energy)]
            d = grid.numpy()[:, None] - energies
            if shape == "gaussian":
                sigma = 0.1 / np.sqrt(8 * np.log(2))
                expected = np.exp(-(d**2) / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi))
            else:
                expected = 0.05 / np.pi / (d**2 + 0.05**2)
            np.testing.assert_allclose(total[k, spin], expected.sum(1), rtol=1e-10, atol=1e-12)
    for kind in ("mulliken", "loewdin"):
        shares = orbital_populations(t.mo_coeff, t.overlap, t.batch, kind=kind)
        projected = density_of_states(grid, t.mo_energy, t.batch, width=0.1, shape=shape, populations=shares)
        assert projected.shape == (6, 2, 4, len(grid))
        torch.testing.assert_close(projected.sum(2), total, rtol=1e-9, atol=1e-9)
        assert not projected[2, :, 2:].any()  # N2 has two atoms


def test_the_integral_counts_spin_orbitals(together, solved):
    t = together
    total = density_of_states(GRID, t.mo_energy, t.batch, width=0.1).sum(1).sum(1) * STEP
    np.testing.assert_allclose(total, 2 * t.batch.n_ao, rtol=1e-10)
    one = t.mo_energy[:, :1]  # restricted: orbitals count twice
    np.testing.assert_allclose(density_of_states(GRID, one, t.batch, width=0.1).sum((1, 2)) * STEP, total, rtol=1e-10)


def test_degenerate_levels_make_one_line(together):
    """The occupied pi pair of N2 has twice the height, on both atoms alike."""
    t = together
    shares = orbital_populations(t.mo_coeff, t.overlap, t.batch, kind="loewdin")
    energy = t.mo_energy[2, 0]
    pair = [p for p in range(7) if (energy[:7] - energy[p]).abs().lt(1e-6).sum() == 2]
    assert len(pair) == 2
    at = energy[pair[0]].reshape(1)
    projected = density_of_states(at, t.mo_energy, t.batch, width=1e-3, populations=shares)[2, 0, :, 0]
    np.testing.assert_allclose(projected[:2], float(line(torch.zeros(1), width=1e-3)), rtol=1e-6)


def test_derivatives_and_errors(together):
    t = together
    grid = torch.linspace(-1, 1, 7, dtype=torch.float64)
    shares = torch.rand(6, 2, 4, t.mo_energy.shape[2], dtype=torch.float64, requires_grad=True)
    for shape in ("gaussian", "lorentzian"):
        assert gradcheck(
            lambda e, p, shape=shape: density_of_states(grid, e, t.batch, width=0.3, shape=shape, populations=p),
            [t.mo_energy.clone().requires_grad_(), shares],
            fast_mode=True,
        )
    with pytest.raises(ValueError, match="width=0 must be a positive energy"):
        density_of_states(grid, t.mo_energy, t.batch, width=0)
    with pytest.raises(ValueError, match="shape='voigt' must be"):
        density_of_states(grid, t.mo_energy, t.batch, width=1, shape="voigt")
    with pytest.raises(ValueError, match="do not fit"):
        density_of_states(grid, t.mo_energy, t.batch, width=1, populations=shares[:, :1])
