"""From a prediction of a batch to the values of each molecule, as plain arrays."""

from __future__ import annotations

import numpy as np
import torch

from mlsemi.batch import Batch
from mlsemi.calibration import spread
from mlsemi.energy import electronic_energy
from mlsemi.engine import Prediction
from mlsemi.molecule import Molecule
from mlsemi.properties.multipoles import dipole
from mlsemi.properties.populations import loewdin_charges, loewdin_populations, mulliken_charges, mulliken_populations
from mlsemi.properties.spin import spin_square


def arrays(batch: Batch, prediction: Prediction) -> dict[str, np.ndarray]:
    """Results of a batch, padded."""
    state, exact = prediction.state, prediction.integrals
    with torch.no_grad():
        density, overlap = state.total_density.detach(), state.overlap.detach()
        assert exact.dipole is not None
        tensors = {
            "energy": prediction.energy,
            "electronic": electronic_energy(
                exact.baseline.fock.detach(), state.fock.detach(), exact.baseline.density, state.density.detach()
            ),
            "fock": state.fock,
            "overlap": overlap,
            "density": state.density,
            "mo_energy": state.mo_energy,
            "mo_coeff": state.mo_coeff,
            "mo_occ": state.mo_occ,
            "n_dropped": state.n_dropped,
            "dipole": dipole(density, exact.dipole.detach(), batch),
            "charges_mulliken": mulliken_charges(density, overlap, batch),
            "charges_loewdin": loewdin_charges(density, overlap, batch),
        }
        if prediction.member_energy is not None:
            arrays = (x.detach().cpu().numpy() for x in (prediction.energy, prediction.member_energy))
            tensors["spread"] = torch.from_numpy(spread(*arrays))
        if state.n_spins == 2:
            unpaired = state.spin_density.detach()
            tensors["spin_square"] = spin_square(state.density.detach(), overlap, batch)
            tensors["spins_mulliken"] = mulliken_populations(unpaired, overlap, batch)
            tensors["spins_loewdin"] = loewdin_populations(unpaired, overlap, batch)
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def split_arrays(molecules: list[Molecule], padded: dict[str, np.ndarray], n_ao: list[int]) -> list[dict]:
    """The padded of a batch by molecule: without padding, and copied to let go of the batch."""
    out = []
    first = 0
    for k, (molecule, n) in enumerate(zip(molecules, n_ao, strict=True)):
        atoms = slice(first, first := first + molecule.n_atoms)
        values: dict = {"energy": float(padded["energy"][k]), "dipole": padded["dipole"][k].copy()}
        values["electronic"] = float(padded["electronic"][k])  # for the plausibility of the result, not a field of it
        values["dropped"] = int(padded["n_dropped"][k])
        n_mo = n - values["dropped"]
        if "spread" in padded:
            values["spread"] = float(padded["spread"][k])
        values["overlap"] = padded["overlap"][k, :n, :n].copy()
        for name in ("fock", "density"):
            values[name] = padded[name][k, :, :n, :n].copy()
        values["mo_coeff"] = padded["mo_coeff"][k, :, :n, :n_mo].copy()
        for name in ("mo_energy", "mo_occ"):
            values[name] = padded[name][k, :, :n_mo].copy()
        for name in ("charges_mulliken", "charges_loewdin", "gradient", "spins_mulliken", "spins_loewdin"):
            if name in padded:
                values[name] = padded[name][atoms].copy()
        if not molecule.spin:
            values |= _restricted(values)
        else:
            values["spin_square"] = float(padded["spin_square"][k])
        out.append(values)
    return out


def _restricted(values: dict) -> dict:
    """What a closed shell has of one spin only, also if it was calculated beside an open shell, with both."""
    unpaired = np.zeros(len(values["charges_mulliken"]))
    one = {"spin_square": 0.0, "spins_mulliken": unpaired, "spins_loewdin": unpaired.copy()}
    if len(values["density"]) == 2:
        one |= {name: values[name][:1] for name in ("fock", "mo_coeff", "mo_energy")}
        one |= {name: values[name].sum(0, keepdims=True) for name in ("density", "mo_occ")}
    return one
