"""Fine-tuning on differences of energies: the method of the labels minus the variational, or fast, energy of the model.

Energies of many unlike molecules, as the only labels of a fine-tuning through the Fock matrix, can be fitted in ways
that ruin F elsewhere. Here a difference is learned as a sum of atomic energies (Delta-learning: R. Ramakrishnan et al.,
J. Chem. Theory Comput. 11, 2087 (2015)) by a network of its own that starts from the features of the trained one. F,
and all that follows from it, stays. The error of F is in the fast energy to first order and in the variational one to
second, so that the difference to the latter is smooth: it is the one to take for another method. The difference to the
fast one needs no PySCF and brings labels of energies and gradients of the model's own method into its fast mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlsemi.data.store import LabelStore
from mlsemi.energy import atom_sums
from mlsemi.engine import Engine
from mlsemi.frames import BondFrames
from mlsemi.molecule import Molecule
from mlsemi.nn.network import EnergyNetwork
from mlsemi.train.config import FinetuneConfig
from mlsemi.train.objective import Objective
from mlsemi.train.statistics import refit_atomic_energies

UNITS = {"energy": "meh", "gradient": "meh_per_bohr"}
"""What a difference can be learned of."""

_MILLI = 1e3


@dataclass(frozen=True, eq=False)
class DifferenceTarget:
    """What the atomic energies of one molecule have to sum up to.

    Attributes:
        molecule: the molecule.
        energy: label minus energy of the model plus the atomic energies of the trained network [Eh].
        difference: label minus energy of the model alone [Eh].
        gradient: the derivative of all that [Eh/bohr], shape (atom, 3); None if it is not asked for or not known.
    """

    molecule: Molecule
    energy: float
    difference: float
    gradient: Tensor | None


def differences_objective(
    engine: Engine,
    stores: Sequence[LabelStore],
    parts: Sequence[tuple[list[int], list[int]]],
    settings: FinetuneConfig,
    device: str,
    *,
    method: str,
    report: Callable[[int], None] | None = None,
) -> Objective:
    """Energies of the model at the geometries of the labels, and an energy network that starts from the trained one.

    Args:
        engine: the model to be fine-tuned, on the CPU; it gets an energy network, whose atomic reference energies are
            refitted to the differences.
        stores: label files.
        parts: numbers of the labels to train and to validate on in each of them.
        settings: weights.
        device: where training will run.
        method: that of the Fock matrices of the engine.
        report: called with the number of labels prepared.

    Raises:
        ValueError: if no label has what a weight asks for.
        ImportError: without PySCF, for the difference to variational energies.
    """
    weights = {name: getattr(settings, name) for name in UNITS if getattr(settings, name)}
    energy_of = _fast if settings.difference_to == "fast" else _variational
    prepared: tuple[list[DifferenceTarget], list[DifferenceTarget]] = ([], [])
    done = 0
    for store, part in zip(stores, parts, strict=True):
        for k in (0, 1):
            for index in part[k]:
                prepared[k].append(_target(store, index, engine, method, energy_of, forces="gradient" in weights))
                done += 1
                if report is not None:
                    report(done)
    for part, of in zip(prepared, ("training", "validation"), strict=True):
        if "gradient" in weights and all(target.gradient is None for target in part):
            raise ValueError(
                f"[finetune] gradient has the weight {weights['gradient']:g}, but none of the {len(part)} labels for "
                f"{of} has one: set the weight to 0, or label with --gradient"
            )
    network = engine.energy_network = EnergyNetwork.of(engine.network)
    # the energy network starts without a difference: all of it is missing
    molecules, missing = [t.molecule for t in prepared[0]], np.array([t.difference for t in prepared[0]])
    refit_atomic_energies(network.energy_readout, engine.elements, molecules, missing)

    def differences(chosen: Sequence[DifferenceTarget]) -> tuple[Tensor, list[Tensor]]:
        return energy_differences(engine, network, chosen, gradients="gradient" in weights)

    def terms(chosen: Sequence[DifferenceTarget]) -> dict[str, Tensor]:
        energies, gradients = differences(chosen)
        found = {"energy": energies.abs()}
        if "gradient" in weights:
            of_molecule = [gradient.abs().mean() for gradient in gradients]
            found["gradient"] = torch.stack(of_molecule) if of_molecule else energies.new_zeros(0)
        return found

    def residuals(chosen: Sequence[DifferenceTarget]) -> Tensor:
        energies, gradients = differences(chosen)
        rest = iter(gradients)
        parts: list[Tensor] = []
        for target, energy in zip(chosen, energies, strict=True):
            parts.append(weights["energy"] * energy.reshape(1))
            if "gradient" in weights and target.gradient is not None:
                parts.append(weights["gradient"] * next(rest).flatten())
        return torch.cat(parts)

    units = {name: UNITS[name] for name in weights}
    return Objective(*prepared, weights, units, terms, residuals, trains="energy_network")


def energy_differences(
    engine: Engine, network: EnergyNetwork, targets: Sequence[DifferenceTarget], *, gradients: bool
) -> tuple[Tensor, list[Tensor]]:
    """What the energy network gives minus what it should.

    Args:
        engine: makes batches.
        network: the energy network.
        targets: of some molecules.
        gradients: those too, to be differentiated again.

    Returns:
        Errors of the energies [mEh], shape (molecule,), and of the gradients [mEh/bohr] of the molecules that have one,
        each of shape (atom, 3).
    """
    batch = engine.batch([target.molecule for target in targets])
    with torch.set_grad_enabled(gradients or torch.is_grad_enabled()):
        if gradients:
            batch = batch.with_positions(batch.positions.clone().requires_grad_())
        found = atom_sums(network(batch, BondFrames.of(batch, network.l_max)), batch)
        slopes: list[Tensor] = []
        if gradients:
            (slope,) = torch.autograd.grad(found.sum(), batch.positions, create_graph=True)
            slopes = [
                _MILLI * (own - target.gradient.to(own))
                for own, target in zip(slope.split([t.molecule.n_atoms for t in targets]), targets, strict=True)
                if target.gradient is not None
            ]
    wanted = torch.tensor([target.energy for target in targets], dtype=found.dtype, device=found.device)
    return _MILLI * (found - wanted), slopes


def _target(
    store: LabelStore, index: int, engine: Engine, method: str, energy_of: EnergyOf, *, forces: bool
) -> DifferenceTarget:
    """Label minus energy of the model, plus the atomic energies that the network to be replaced gives."""
    record = store.record(index)
    molecule, label = record.molecule, record.observables
    assert label.energy is not None, "labels have one"
    forces = forces and label.gradient is not None
    where = f"{store.path}, label {index} ({molecule.name or molecule.formula})"
    try:
        energy, slope = energy_of(engine, molecule, method, forces)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    of_atoms, slope_of_atoms = _atomic(engine, molecule, forces=forces)
    gradient = None
    if slope is not None and slope_of_atoms is not None:
        gradient = torch.as_tensor(label.gradient) - slope + slope_of_atoms
        if not bool(torch.isfinite(gradient).all()):
            raise ValueError(f"{where}: the model has no forces there, the density has no derivative; leave it out")
    difference = label.energy - energy
    return DifferenceTarget(molecule, difference + of_atoms, difference, gradient)


EnergyOf = Callable[[Engine, Molecule, str, bool], tuple[float, Tensor | None]]
"""Of engine, molecule, method and whether forces are asked for: energy [Eh] and its gradient [Eh/bohr] or None."""


def _variational(engine: Engine, molecule: Molecule, method: str, forces: bool) -> tuple[float, Tensor | None]:
    from mlsemi.reference.forces import variational_gradient
    from mlsemi.reference.variational import variational

    if forces:
        found, gradient = variational_gradient(engine, molecule, method=method)
        return found.energy, torch.from_numpy(gradient)
    with torch.no_grad():
        density = engine(engine.batch([molecule])).state.density[0].cpu().numpy()
    return variational(molecule, engine.basis, density, method=method).energy, None


def _fast(engine: Engine, molecule: Molecule, method: str, forces: bool) -> tuple[float, Tensor | None]:
    batch = engine.batch([molecule])
    with torch.set_grad_enabled(forces):
        batch = batch.with_positions(batch.positions.clone().requires_grad_(forces))
        energy = engine(batch).energy.sum()
        gradient = torch.autograd.grad(energy, batch.positions)[0] if forces else None
    return float(energy.detach()), gradient


def _atomic(engine: Engine, molecule: Molecule, *, forces: bool) -> tuple[float, Tensor | None]:
    """Sum of the atomic energies of the network [Eh], and where asked for its gradient [Eh/bohr], shape (atom, 3)."""
    batch, network = engine.batch([molecule]), engine.network
    with torch.set_grad_enabled(forces):
        batch = batch.with_positions(batch.positions.clone().requires_grad_(forces))
        energy = network(batch, BondFrames.of(batch, network.l_max)).atom_energy.sum()
        gradient = torch.autograd.grad(energy, batch.positions)[0] if forces else None
    return float(energy.detach()), gradient
