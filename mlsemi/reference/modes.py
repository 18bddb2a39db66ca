"""The modes of a prediction that need PySCF: variational, corrected, composite, scf.

Each takes what the fast mode gives, and returns it with the energy, the gradient and the error estimate of the mode.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from mlsemi.calibration import stored_interval
from mlsemi.checkpoint import Header
from mlsemi.domain import SMALLEST_GAP
from mlsemi.engine import Engine
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables
from mlsemi.properties.populations import (
    loewdin_charges,
    loewdin_populations,
    mulliken_charges,
    mulliken_populations,
)
from mlsemi.properties.spin import spin_square
from mlsemi.reference.converge import CONV_TOL, Converged, converge
from mlsemi.reference.forces import chain, predicted
from mlsemi.reference.second_order import Correction
from mlsemi.reference.variational import variational

ReferenceMode = Literal["variational", "corrected", "composite", "scf"]


@dataclass(frozen=True)
class ModeOptions:
    """What is asked for besides the mode.

    Attributes:
        forces: the gradient too.
        conv_tol: scf mode: error of the energy that is accepted [Eh].
        compare: scf mode: converge from PySCF's default guess too, and return the lower solution.
    """

    forces: bool = False
    conv_tol: float = CONV_TOL
    compare: bool = False


def stored_correction(header: Header) -> Correction | None:
    """The correction that was fitted on the validation molecules of a model, if it has one."""
    stored = header.calibration.get("correction")
    return None if stored is None else Correction(**stored)


def in_mode(
    fast: Observables, molecule: Molecule, *, mode: ReferenceMode, engine: Engine, header: Header, options: ModeOptions
) -> Observables:
    """A prediction of the fast mode in another mode.

    Args:
        fast: the prediction; its density starts everything. Its gradient is not used.
        molecule: what it is of.
        mode: the mode.
        engine: what predicted it; used again for forces.
        header: method, basis and correction of the model.
        options: what else is asked for.

    Returns:
        Energy, gradient (if asked for), error estimate, residual, seconds and notes of the mode, warnings added to
        those of the prediction. Orbitals, density and what follows from it are those of the prediction. In the scf mode
        all, the warnings too, is of the self-consistent solution: what is doubtful about the prediction does not
        concern it.

    Raises:
        ValueError: if there is no such energy: non-local correlation, no correction, no error estimate to correct with,
            no learned difference between methods.
        NotConvergedError: if no SCF converges.
    """
    assert fast.density is not None and fast.seconds is not None
    if mode == "scf":
        return _self_consistent(fast, molecule, engine, header, options)
    correction = stored_correction(header) if mode == "corrected" else None
    if mode == "corrected" and correction is None:
        raise ValueError(
            f"mode='corrected': the model {header.name} has no correction; take mode='variational' or 'scf'"
        )
    start = time.perf_counter()
    found = variational(
        molecule,
        header.basis,
        fast.density,
        method=header.method,
        correction=correction.factor if correction else 0.0,
        derivative=options.forces,
    )
    gradient = None
    if found.derivative is not None:
        with torch.enable_grad():
            densities, overlaps, positions = predicted([molecule], engine)
        gradient = chain([found.derivative], densities, overlaps, positions)
    warnings = fast.warnings
    if found.error_estimate is None:
        warnings += (
            "an orbital without electrons lies below one with electrons in the Fock matrix of the predicted density: "
            "it is not near a ground state, and its energy has no error estimate",
        )
    estimate = found.error_estimate
    # the density of the composite mode is judged as that of the variational one
    interval = stored_interval(header.calibration, "variational" if mode == "composite" else mode)
    if interval is not None and estimate is not None and estimate > interval.largest:
        said = (
            f"the residual says an error of {estimate:.1e} Eh, more than the {interval.largest:.1e} Eh at most of the "
            f"molecules that errors of {header.name} were measured on"
        )
        if mode == "corrected":
            raise ValueError(f"mode='corrected' is for the domain of the model only: {said}; take mode='variational'")
        warnings += (said,)
    energy, notes = found.corrected_energy, fast.notes
    if mode == "composite":
        difference, slope = _method_difference(molecule, engine, header, forces=options.forces)
        notes += (f"{header.level('variational')} energy {energy:.8f} Eh, learned difference {difference:.8f} Eh",)
        energy += difference
        gradient = None if gradient is None else gradient + slope
        estimate, interval = None, None  # those of the variational energy say nothing of the difference
    return replace(
        fast,
        energy=energy,
        gradient=gradient,
        energy_error_estimate=estimate if interval is None or estimate is None else interval.scale_68 * estimate,
        energy_error_95=None if interval is None or estimate is None else interval.scale_95 * estimate,
        residual=found.residual,
        seconds=fast.seconds + time.perf_counter() - start,
        warnings=warnings,
        notes=notes,
    )


def check_difference(header: Header) -> None:
    """Refuses the composite mode for a model without a learned difference between methods.

    Raises:
        ValueError: for such a model.
    """
    if header.difference_to != "variational":
        raise ValueError(
            f"mode='composite': the model {header.name} has not learned what another method differs by from its "
            "variational energies; take mode='variational', a model that has, such as the shipped organic-ccsdt, or "
            "fine-tune it with difference_to = 'variational'"
        )


def _method_difference(
    molecule: Molecule, engine: Engine, header: Header, *, forces: bool
) -> tuple[float, np.ndarray | None]:
    """The learned difference between methods [Eh], and its gradient [Eh/bohr], shape (atom, 3), where asked for."""
    check_difference(header)
    batch = engine.batch([molecule])
    if not forces:
        with torch.no_grad():
            return float(engine.method_difference(batch)), None
    with torch.enable_grad():
        batch = batch.with_positions(batch.positions.clone().requires_grad_())
        difference = engine.method_difference(batch).sum()
        (slope,) = torch.autograd.grad(difference, batch.positions)
    return float(difference.detach()), slope.cpu().numpy()


def _self_consistent(
    fast: Observables, molecule: Molecule, engine: Engine, header: Header, options: ModeOptions
) -> Observables:
    """The scf mode."""
    assert fast.density is not None and fast.seconds is not None
    found = converge(
        molecule,
        header.basis,
        fast.density,
        method=header.method,
        conv_tol=options.conv_tol,
        compare=options.compare,
        gradient=options.forces,
    )
    exact = found.observables
    assert exact.density is not None and exact.overlap is not None and exact.seconds is not None
    batch = engine.batch([molecule]).to("cpu")
    density, overlap = torch.from_numpy(exact.density).unsqueeze(0), torch.from_numpy(exact.overlap).unsqueeze(0)
    total = density.sum(1)
    charges = {
        "charges_mulliken": mulliken_charges(total, overlap, batch).numpy(),
        "charges_loewdin": loewdin_charges(total, overlap, batch).numpy(),
        "spin_square": fast.spin_square,
        "spins_mulliken": fast.spins_mulliken,
        "spins_loewdin": fast.spins_loewdin,
    }
    if molecule.spin:
        unpaired = density[:, 0] - density[:, 1]
        charges["spin_square"] = float(spin_square(density, overlap, batch)[0])
        charges["spins_mulliken"] = mulliken_populations(unpaired, overlap, batch).numpy()
        charges["spins_loewdin"] = loewdin_populations(unpaired, overlap, batch).numpy()
    seconds = fast.seconds + exact.seconds
    warnings = exact.warnings
    if exact.gap is not None and exact.gap < SMALLEST_GAP:
        warnings += (f"the HOMO-LUMO gap is only {exact.gap:.3f} Eh: a state of another spin may be lower",)
    return replace(exact, **charges, seconds=seconds, warnings=warnings, notes=(_account(found, seconds),))


def _account(found: Converged, seconds: float) -> str:
    """What the SCF took, and what PySCF's default start took."""
    text = f"SCF ({found.scheme}) from the prediction: {found.cycles} Fock builds"
    if found.coarse_cycles:
        text += f" and {found.coarse_cycles} on a coarse grid"
    text += f", {seconds:.1f} s"
    if found.default_start is not None:
        text += f"; PySCF's default guess: {found.default_start.cycles} in {found.default_start.seconds:.1f} s"
    return text
