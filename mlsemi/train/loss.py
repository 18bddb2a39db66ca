"""Losses: the error of F in the metrics that matter, of the repulsive energy, and of the gradient of the energy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mlsemi.blocks import BlockMap
from mlsemi.engine import Engine
from mlsemi.molecule import Molecule
from mlsemi.nn.network import NetworkOutput
from mlsemi.train.samples import SampleBatch

_MILLI = 1e3


def loss_terms(output: NetworkOutput, blocks: BlockMap, samples: SampleBatch) -> dict[str, Tensor]:
    """Errors of each molecule [mEh]; those of F are means over the Fock matrices of both spins.

    Returns:
        Each of shape (molecule,). `ao`: mean absolute error over all n^2 elements. `orthonormal`: the same of
        S^-1/2 dF S^-1/2. `occupied_virtual`: root mean square of the occupied-virtual block of C^T dF C. `energy`:
        absolute error of the repulsive energy, per atom. `fast`: that of the energy of the fast mode, to first order in
        the error of F.
    """
    found = output.correction(blocks, samples.batch, samples.overlap)
    error = found - samples.residual.to(found.dtype)
    n_elements = samples.batch.n_ao.to(error.dtype)[:, None] ** 2
    ao = error.abs().sum((-2, -1)) / n_elements
    root = samples.inverse_root.to(error.dtype).unsqueeze(1)
    orthonormal = (root @ error @ root).abs().sum((-2, -1)) / n_elements
    coefficients = samples.mo_coeff.to(error.dtype)
    index, filled = torch.arange(error.shape[-1], device=error.device), samples.n_occupied.unsqueeze(-1)
    occupied = (index < filled).to(error.dtype)
    virtual = ((index >= filled) & samples.batch.ao_mask.unsqueeze(1)).to(error.dtype)
    mixed = (coefficients * occupied.unsqueeze(-2)).mT @ error @ (coefficients * virtual.unsqueeze(-2))
    count = (occupied.sum(-1) * virtual.sum(-1)).clamp(min=1)
    # the square root has no derivative at zero, where an error below 1e-9 Eh does not matter
    occupied_virtual = ((mixed**2).sum((-2, -1)) / count + 1e-18).sqrt()
    atoms = torch.zeros_like(samples.repulsion).index_add(
        0, samples.batch.molecule, torch.ones_like(output.atom_energy)
    )
    energy = torch.zeros_like(samples.repulsion).index_add(0, samples.batch.molecule, output.atom_energy)
    repulsive = energy - samples.repulsion
    electronic = (samples.energy_gradient.to(error.dtype) * error).sum((-3, -2, -1))
    parts = {
        "ao": ao.mean(-1),
        "orthonormal": orthonormal.mean(-1),
        "occupied_virtual": occupied_virtual.mean(-1),
        "energy": repulsive.abs() / atoms,
        "fast": (repulsive + electronic).abs() / atoms,
    }
    return {name: value * _MILLI for name, value in parts.items()}


def gradient_errors(engine: Engine, molecules: Sequence[Molecule], labels: Sequence[Tensor]) -> Tensor:
    """Mean absolute error of the components of the gradient of the fast mode, to be differentiated again.

    Args:
        engine: the model.
        molecules: the molecules.
        labels: their gradients [Eh/bohr], each of shape (atom, 3).

    Returns:
        Errors [mEh/bohr], shape (molecule,).
    """
    if not molecules:
        return torch.zeros(0)
    found = gradient_differences(engine, molecules, labels)
    return torch.stack([difference.abs().mean() for difference in found])


def gradient_differences(engine: Engine, molecules: Sequence[Molecule], labels: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the fast mode minus those of the labels [mEh/bohr], each of shape (atom, 3).

    The arguments are those of `gradient_errors`.
    """
    with torch.enable_grad():  # in validation too
        batch = engine.batch(list(molecules))
        batch = batch.with_positions(batch.positions.clone().requires_grad_())
        energy = engine(batch).energy
        (gradient,) = torch.autograd.grad(energy.sum(), batch.positions, create_graph=True)
    difference = _MILLI * (gradient - torch.cat(list(labels)).to(gradient))
    return list(difference.split([m.n_atoms for m in molecules]))
