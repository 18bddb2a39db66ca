"""Vibrations of molecules by a model: Hessian, normal modes, infrared intensities, thermochemistry.

In the fast mode the Hessian is exact, by derivatives of the gradient through the network and the eigenproblem; in the
others it is the central difference of exact gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch

from mlsemi.model import NO_FORCES, Mode, Model
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables
from mlsemi.properties.masses import MassKind, atomic_masses
from mlsemi.properties.multipoles import dipole
from mlsemi.properties.response import dipole_derivatives
from mlsemi.properties.thermochemistry import Thermochemistry, thermochemistry
from mlsemi.properties.vibrations import Vibrations, harmonic_analysis, infrared_intensities, is_linear

STEP = 5e-3
"""Displacement of the central differences [bohr]: the third derivative costs 1e-5 of a force constant, and noise of
1e-7 Eh/bohr in gradients 1e-5 Eh/bohr^2."""

STATIONARY = 4.5e-4
"""Largest component of the gradient [Eh/bohr] of a geometry that counts as stationary: where optimizations end by
default in many programs."""

RELAXED = 1e-5
"""Largest component of the gradient after `relaxed` [Eh/bohr]: a mode of 50 cm^-1 moves by 1 % or so."""

_NO_FORCES = f"{NO_FORCES}; are charge and spin (2S) right?"


@dataclass(frozen=True, eq=False)
class ForceField:
    """A molecule near a geometry, to second order.

    Attributes:
        observables: energy, gradient and the rest at the geometry.
        hessian: second derivatives of the energy [Eh/bohr^2], shape (atom, 3, atom, 3), symmetric.
        dipole_derivatives: [e], shape (atom, 3, 3), entry (A, i, j) being d mu_j / d R_Ai.
    """

    observables: Observables
    hessian: np.ndarray
    dipole_derivatives: np.ndarray


@dataclass(frozen=True, eq=False)
class Frequencies:
    """Vibrations of a molecule.

    Attributes:
        molecule: at the geometry of the analysis.
        force_field: energy and derivatives.
        vibrations: normal modes.
        intensities: infrared absorption [km/mol], shape (mode,).
        warnings: what the user should know: those of the prediction, and whether it is no minimum.
    """

    molecule: Molecule
    force_field: ForceField
    vibrations: Vibrations
    intensities: np.ndarray
    warnings: tuple[str, ...]

    def thermochemistry(
        self, *, temperature: float = 298.15, pressure: float = 101325.0, symmetry_number: int | None = None
    ) -> Thermochemistry:
        """Thermochemistry of the ideal gas, see `mlsemi.properties.thermochemistry`.

        Args:
            temperature: [K].
            pressure: [Pa].
            symmetry_number: by default that of the geometry, see `rotational_symmetry_number`.
        """
        energy = self.force_field.observables.energy
        assert energy is not None
        return thermochemistry(
            energy,
            self.vibrations,
            spin=self.molecule.spin,
            temperature=temperature,
            pressure=pressure,
            symmetry_number=rotational_symmetry_number(self.molecule) if symmetry_number is None else symmetry_number,
        )


def frequencies(
    model: Model,
    molecule: Molecule,
    *,
    mode: Mode = "fast",
    dispersion: bool = False,
    masses: MassKind | np.ndarray = "most-abundant",
    step: float = STEP,
) -> Frequencies:
    """Harmonic frequencies and infrared intensities of a molecule at its geometry, which should be a stationary point.

    Args:
        model: any model; its network is taken in float64.
        molecule: a molecule that it covers.
        mode: of the prediction.
        dispersion: add the D4 term.
        masses: kind of masses, see `mlsemi.properties.masses`, or the masses [u], shape (atom,).
        step: of the central differences, where there are any [bohr].

    Returns:
        The frequencies; their warnings tell of a gradient above `STATIONARY` and of imaginary frequencies.

    Raises:
        ValueError: for molecules that are not covered, or have no forces.
    """
    weights = atomic_masses(molecule.numbers, kind=masses) if isinstance(masses, str) else np.asarray(masses)
    field = force_field(model, molecule, mode=mode, dispersion=dispersion, step=step)
    vibrations = harmonic_analysis(field.hessian, molecule.positions, weights)
    return Frequencies(
        molecule=molecule,
        force_field=field,
        vibrations=vibrations,
        intensities=infrared_intensities(field.dipole_derivatives, vibrations),
        warnings=field.observables.warnings + _doubts(field, vibrations),
    )


def hessian(
    model: Model, molecule: Molecule, *, mode: Mode = "fast", dispersion: bool = False, step: float = STEP
) -> np.ndarray:
    """Second derivatives of the energy [Eh/bohr^2], shape (atom, 3, atom, 3), symmetric; arguments as `frequencies`."""
    return force_field(model, molecule, mode=mode, dispersion=dispersion, step=step).hessian


def force_field(
    model: Model, molecule: Molecule, *, mode: Mode = "fast", dispersion: bool = False, step: float = STEP
) -> ForceField:
    """Energy, gradient, Hessian and dipole derivatives at a geometry; arguments as `frequencies`."""
    if not step > 0:
        raise ValueError(f"step={step} must be a positive displacement [bohr]")
    model = in_double_precision(model)
    if molecule.n_atoms == 1:
        return _of_an_atom(model, molecule, mode, dispersion)
    found = model.predict(molecule, mode=mode, forces=True, dispersion=dispersion, estimate=mode != "fast")
    if found.gradient is None:
        raise ValueError(f"{molecule.name or molecule.formula}: {_NO_FORCES}")
    if mode == "fast":
        second, moments = _by_derivatives(model, molecule)
        if dispersion:
            second = second + _dispersion_hessian(molecule, model.header.method, step)
    else:
        places = _displaced(molecule, step)
        results = model.predict(places, mode=mode, forces=True, dispersion=dispersion)
        _refuse_missing(molecule, results)
        second = _differences([o.gradient for o in results], step)
        moments = _differences([o.dipole for o in results], step)
    flat = second.reshape(3 * molecule.n_atoms, -1)
    return ForceField(found, ((flat + flat.T) / 2).reshape(second.shape), moments)


def in_double_precision(model: Model) -> Model:
    """The model with its network in float64: what float32 costs, 5e-7 Eh/bohr^2, is no matter, but time is the same."""
    if model.engine.network.dtype == torch.float64:
        return model
    return Model(model.header, deepcopy(model.engine).double())


def rotational_symmetry_number(molecule: Molecule) -> int:
    """Number of rotations that bring the nuclei onto equal ones, to within 0.02 bohr; 2 or 1 for linear molecules.

    A geometry that is not relaxed to its symmetry counts as less symmetric.
    """
    from mlsemi.reference.degeneracy import symmetry_operations

    if molecule.n_atoms == 1:
        return 1
    operations = symmetry_operations(molecule)
    if is_linear(molecule.positions):
        return 2 if any(name == "inversion" for *_, name in operations) else 1
    return 1 + sum(bool(np.linalg.det(operation) > 0) for operation, *_ in operations)


def relaxed(
    model: Model,
    molecule: Molecule,
    *,
    mode: Mode = "fast",
    dispersion: bool = False,
    largest: float = RELAXED,
    steps: int = 300,
) -> Molecule:
    """The molecule at the stationary point that quasi-Newton steps (BFGS in Cartesian coordinates) lead to.

    Args:
        model: any model; its network is taken in float64.
        molecule: the start.
        mode: of the prediction.
        dispersion: add the D4 term.
        largest: component of the gradient at the end [Eh/bohr].
        steps: so many at most.

    Raises:
        ValueError: for molecules that are not covered, or have no forces somewhere on the way.
        RuntimeError: if the gradient is not small after all steps.
    """
    from scipy.optimize import minimize

    if molecule.n_atoms == 1:
        return molecule
    model = in_double_precision(model)

    def evaluated(x: np.ndarray) -> tuple[float, np.ndarray]:
        place = replace(molecule, positions=x.reshape(-1, 3))
        found = model.predict(place, mode=mode, forces=True, dispersion=dispersion, estimate=mode != "fast")
        _refuse_missing(molecule, [found])
        assert found.energy is not None and found.gradient is not None
        return found.energy, found.gradient.ravel()

    found = minimize(
        evaluated, molecule.positions.ravel(), jac=True, method="BFGS", options={"gtol": largest, "maxiter": steps}
    )
    left = float(np.abs(found.jac).max())
    # the line search may end a little above, where the energy has no more digits
    if not left < max(largest, STATIONARY / 3):
        raise RuntimeError(
            f"{molecule.name or molecule.formula}: not relaxed after {found.nit} steps, the largest component of the "
            f"gradient is {left:.1e} Eh/bohr; start from a better geometry"
        )
    return replace(molecule, positions=found.x.reshape(-1, 3))


def _by_derivatives(model: Model, molecule: Molecule) -> tuple[np.ndarray, np.ndarray]:
    """Hessian and dipole derivatives of the fast mode, one reverse pass for each row."""
    batch = model.engine.batch([molecule])
    batch = batch.with_positions(batch.positions.clone().requires_grad_())
    prediction = model.engine(batch, dipole=True)
    integrals = prediction.integrals.dipole
    assert integrals is not None
    moments = dipole_derivatives(dipole(prediction.state.total_density, integrals, batch), batch.positions)
    (gradient,) = torch.autograd.grad(prediction.energy.sum(), batch.positions, create_graph=True)
    # the graph of the gradient serves all rows; a batch of copies with one row each takes longer, and more memory
    rows = [torch.autograd.grad(g, batch.positions, retain_graph=True)[0] for g in gradient.flatten()]
    second = torch.stack(rows).reshape(molecule.n_atoms, 3, molecule.n_atoms, 3)
    return second.cpu().numpy(), moments.cpu().numpy()


def _of_an_atom(model: Model, molecule: Molecule, mode: Mode, dispersion: bool) -> ForceField:
    """Nothing changes where an atom is, also of an open shell that has no derivatives."""
    found = model.predict(molecule, mode=mode, dispersion=dispersion)
    found = replace(found, gradient=np.zeros((1, 3)))
    return ForceField(found, np.zeros((1, 3, 1, 3)), molecule.charge * np.eye(3)[None])


def _displaced(molecule: Molecule, step: float) -> list[Molecule]:
    """The molecule with each coordinate moved forth, then with each moved back."""
    moves = step * np.eye(3 * molecule.n_atoms).reshape(-1, molecule.n_atoms, 3)
    return [replace(molecule, positions=molecule.positions + sign * move) for sign in (1, -1) for move in moves]


def _differences(values: Sequence[np.ndarray | None], step: float) -> np.ndarray:
    """Derivatives by the positions, shape (atom, 3, ...), from values at `_displaced`."""
    forth, back = np.split(np.array(values, dtype=np.float64), 2)
    found = (forth - back) / (2 * step)
    return found.reshape(-1, 3, *found.shape[1:])


def _dispersion_hessian(molecule: Molecule, method: str, step: float) -> np.ndarray:
    from mlsemi.reference.dispersion import dispersion

    return _differences([dispersion(m, method=method).gradient for m in _displaced(molecule, step)], step)


def _refuse_missing(molecule: Molecule, results: Sequence[Observables]) -> None:
    if any(o.gradient is None for o in results):
        raise ValueError(f"{molecule.name or molecule.formula}, displaced: {_NO_FORCES}")


def _doubts(field: ForceField, vibrations: Vibrations) -> tuple[str, ...]:
    """Warnings of a geometry that is no minimum."""
    gradient = field.observables.gradient
    assert gradient is not None
    largest = float(np.abs(gradient).max())
    found = []
    if largest > STATIONARY:
        found.append(
            f"the geometry is no stationary point (largest component of the gradient {largest:.1e} Eh/bohr, above "
            f"{STATIONARY:.1e}): harmonic frequencies and thermochemistry mean little; relax it first, in the same mode"
        )
    if vibrations.n_imaginary:
        n = vibrations.n_imaginary
        found.append(
            f"{n} imaginary {'frequency' if n == 1 else 'frequencies'}, printed as negative: no minimum; the "
            "thermochemistry leaves out what is imaginary"
        )
    return tuple(found)
