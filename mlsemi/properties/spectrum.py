"""Density of states: orbital levels, broadened, total and projected on atoms."""

from __future__ import annotations

from math import log, pi, sqrt
from typing import Literal

import torch
from torch import Tensor

from mlsemi.batch import Batch

LineShape = Literal["gaussian", "lorentzian"]


def line(distance: Tensor, *, width: float, shape: LineShape = "gaussian") -> Tensor:
    """A line of area one.

    Args:
        distance: from the centre [Eh], any shape.
        width: full width at half of the maximum [Eh], positive.
        shape: 'gaussian' or 'lorentzian'.

    Returns:
        Values [1/Eh], same shape.

    Raises:
        ValueError: for a width that is not positive, or another shape.
    """
    if not width > 0:
        raise ValueError(f"width={width!r} must be a positive energy [Eh]")
    half = width / 2
    if shape == "gaussian":
        return torch.exp((distance / half).square() * -log(2)) * (sqrt(log(2) / pi) / half)
    if shape == "lorentzian":
        return half / pi / (distance.square() + half * half)
    raise ValueError(f"shape={shape!r} must be 'gaussian' or 'lorentzian'")


def density_of_states(
    energy: Tensor,
    mo_energy: Tensor,
    batch: Batch,
    *,
    width: float,
    shape: LineShape = "gaussian",
    populations: Tensor | None = None,
) -> Tensor:
    """Number of spin orbitals per energy, g(E) = sum_p c line(E - eps_p).

    c is two where the spin axis has one entry, and one for each of two spins; the sum over spins integrates to twice
    the number of orbitals. Differentiable in the orbital energies, except of single levels of a degenerate set, and in
    the populations.

    Args:
        energy: where [Eh], shape (point,).
        mo_energy: orbital energies [Eh], shape (molecule, spin, mo).
        batch: the molecules.
        width: full width at half of the maximum of each line [Eh], positive.
        shape: 'gaussian' or 'lorentzian'.
        populations: from `orbital_populations`, shape (molecule, spin, atom, mo), for the density of states projected
            on each atom; these add up to the total one.

    Returns:
        Densities of states [1/Eh], shape (molecule, spin, point), or (molecule, spin, atom, point) with populations.

    Raises:
        ValueError: for a width that is not positive, another shape, or populations that do not fit.
    """
    n_molecules, n_spins, n_mo = mo_energy.shape
    if populations is not None and (populations.shape[:2] != (n_molecules, n_spins) or populations.shape[3] != n_mo):
        raise ValueError(
            f"populations of shape {tuple(populations.shape)} do not fit orbital energies of shape "
            f"{tuple(mo_energy.shape)}: they must be (molecule, spin, atom, mo)"
        )
    exists = torch.arange(n_mo, device=mo_energy.device) < batch.n_ao.unsqueeze(-1)
    weight = (2.0 / n_spins) * exists[:, None, None, :]
    if populations is not None:
        weight = weight * populations
    lines = line(energy - mo_energy.unsqueeze(-1), width=width, shape=shape)
    out = weight.to(lines) @ lines
    return out.squeeze(2) if populations is None else out
