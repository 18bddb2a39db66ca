"""Exact gradients of the energies that need a Fock build, E(R, D(R), S(R)) with a density that is predicted from R.

    dE/dR = (partial by R at fixed D, S) + Tr[dE/dD dD/dR] + Tr[dE/dS dS/dR]

The partial derivatives are PySCF's work (`mlsemi.reference.variational`), for E[D] just the Fock matrix F[D] = dE/dD.
The rest is one backward pass of torch from the predicted density, and S, to the positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from mlsemi.molecule import Molecule
from mlsemi.reference.variational import Derivative, VariationalEnergy, variational

if TYPE_CHECKING:
    from torch import Tensor

    from mlsemi.engine import Engine


def variational_gradient(
    engine: Engine, molecule: Molecule, *, method: str, correction: float = 0.0, max_memory_mb: float = 4000
) -> tuple[VariationalEnergy, np.ndarray]:
    """Energy of the reference method at the predicted density, and its exact gradient.

    Args:
        engine: predicts the density. In float32 the gradient is that of an energy with steps: see docs/results.md.
        molecule: restricted if its spin is 0, unrestricted otherwise.
        method: 'hf' or a functional in PySCF's notation; it need not be the one that the engine was trained for.
        correction: c of the corrected energy E[D] - c dE2; zero is the variational mode.
        max_memory_mb: memory that PySCF may use [MB].

    Returns:
        The energy (`corrected_energy` if there is a correction), and its gradient [Eh/bohr], shape (atom, 3).

    Raises:
        ValueError: as `variational` and the engine do.
    """
    with torch.enable_grad():
        (density,), (overlap,), positions = predicted([molecule], engine)
    found = variational(
        molecule,
        engine.basis,
        density.detach().cpu().numpy(),
        method=method,
        correction=correction,
        derivative=True,
        max_memory_mb=max_memory_mb,
    )
    assert found.derivative is not None
    return found, chain([found.derivative], [density], [overlap], positions)


def predicted(molecules: Sequence[Molecule], engine: Engine) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Predicted densities as functions of the positions.

    Returns:
        Density, shape (spin, ao, ao), and overlap, shape (ao, ao), of each molecule, with their graph; and the
        positions of all atoms [bohr], shape (atom, 3), which require a gradient.
    """
    batch = engine.batch(list(molecules))
    positions = batch.positions.clone().requires_grad_()
    state = engine(batch.with_positions(positions)).state
    densities, overlaps = [], []
    for k, (molecule, n) in enumerate(zip(molecules, batch.n_ao.tolist(), strict=True)):
        density = state.density[k, :, :n, :n]
        # a closed shell beside an open one has both spins
        densities.append(density if molecule.spin else density.sum(0, keepdim=True))
        overlaps.append(state.overlap[k, :n, :n])
    return densities, overlaps, positions


def chain(
    derivatives: Sequence[Derivative], densities: Sequence[Tensor], overlaps: Sequence[Tensor], positions: Tensor
) -> np.ndarray:
    """The whole gradient from partial derivatives, by one backward pass for all molecules.

    Args:
        derivatives: of the energy of each molecule.
        densities: of each molecule, shape (spin, ao, ao), with their graph.
        overlaps: of each molecule, shape (ao, ao), with their graph.
        positions: what these depend on [bohr], shape (atom, 3): the atoms of one molecule after the other.

    Returns:
        Gradient [Eh/bohr], shape (atom, 3).

    Raises:
        ValueError: if the shapes do not fit.
    """
    outputs, seeds = [], []
    for partial, density, overlap in zip(derivatives, densities, overlaps, strict=True):
        if partial.density.shape != tuple(density.shape):
            raise ValueError(f"densities must have shape {partial.density.shape} here, got {tuple(density.shape)}")
        outputs.append(density)
        seeds.append(torch.as_tensor(partial.density, dtype=density.dtype, device=density.device))
        if partial.overlap is not None:
            outputs.append(overlap)
            seeds.append(torch.as_tensor(partial.overlap, dtype=overlap.dtype, device=overlap.device))
    (response,) = torch.autograd.grad(outputs, positions, seeds)
    return np.concatenate([d.explicit for d in derivatives]) + response.detach().cpu().numpy()
