"""Thermochemistry of the ideal gas: rigid rotor, harmonic oscillator, electronic ground state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.constants import physical_constants as _codata
from scipy.constants import pi

from mlsemi.properties.vibrations import HARTREE_IN_WAVENUMBERS, Vibrations, inertia

_HARTREE, _BOHR, _AMU, _PLANCK = (
    _codata[name][0] for name in ("Hartree energy", "Bohr radius", "atomic mass constant", "Planck constant")
)
BOLTZMANN = _codata["kelvin-hartree relationship"][0]
"""Boltzmann constant [Eh/K]."""


@dataclass(frozen=True)
class Share:
    """What one kind of motion contributes.

    Attributes:
        energy: internal energy [Eh].
        entropy: [Eh/K].
        heat_capacity: at constant volume [Eh/K].
    """

    energy: float
    entropy: float
    heat_capacity: float


@dataclass(frozen=True)
class Thermochemistry:
    """Functions of state of the ideal gas of a molecule.

    Attributes:
        temperature: [K].
        pressure: [Pa].
        symmetry_number: of the rotation.
        electronic_energy: energy of the nuclei at rest [Eh].
        zero_point_energy: [Eh].
        electronic: of the degeneracy of the spin, 2S + 1; its energy is the electronic energy.
        translation: of the molecule as a whole.
        rotation: of the rigid rotor.
        vibration: of the harmonic oscillators with real frequencies, zero-point energy included.
    """

    temperature: float
    pressure: float
    symmetry_number: int
    electronic_energy: float
    zero_point_energy: float
    electronic: Share
    translation: Share
    rotation: Share
    vibration: Share

    @property
    def energy_at_zero(self) -> float:
        """Energy at 0 K: electronic and zero-point [Eh]."""
        return self.electronic_energy + self.zero_point_energy

    @property
    def energy(self) -> float:
        """Internal energy U [Eh]."""
        return sum(share.energy for share in self._shares)

    @property
    def enthalpy(self) -> float:
        """H = U + kT [Eh]."""
        return self.energy + BOLTZMANN * self.temperature

    @property
    def entropy(self) -> float:
        """S [Eh/K]."""
        return sum(share.entropy for share in self._shares)

    @property
    def gibbs_energy(self) -> float:
        """G = H - TS [Eh]."""
        return self.enthalpy - self.temperature * self.entropy

    @property
    def heat_capacity(self) -> float:
        """C_V, at constant volume [Eh/K]; C_p is k more."""
        return sum(share.heat_capacity for share in self._shares)

    @property
    def _shares(self) -> tuple[Share, ...]:
        return self.electronic, self.translation, self.rotation, self.vibration


def thermochemistry(
    energy: float,
    vibrations: Vibrations,
    *,
    spin: int = 0,
    temperature: float = 298.15,
    pressure: float = 101325.0,
    symmetry_number: int = 1,
) -> Thermochemistry:
    """Functions of state in the approximation of rigid rotor, harmonic oscillator and ideal gas.

    Modes of a few tens of wavenumbers, which are no harmonic oscillators, dominate the error of the entropy. Imaginary
    frequencies are left out.

    Args:
        energy: electronic energy [Eh].
        vibrations: normal modes, masses and positions of the molecule.
        spin: unpaired electrons, 2S; spatial degeneracy and excited states are not counted.
        temperature: [K].
        pressure: [Pa]; 100000 for the standard state of today, 101325 for that of older tables.
        symmetry_number: number of orientations that differ by an exchange of like nuclei only: 2 for water, 3 for
            ammonia, 12 for methane and benzene, 2 for CO2; `mlsemi.vibrations.rotational_symmetry_number` finds it.

    Raises:
        ValueError: for temperature, pressure or symmetry number that are not positive, or a negative spin.
    """
    for name, value in (("temperature", temperature), ("pressure", pressure), ("symmetry_number", symmetry_number)):
        if not (value > 0 and np.isfinite(value)):
            raise ValueError(f"{name}={value} must be positive")
    if spin < 0:
        raise ValueError(f"spin={spin} must be the number of unpaired electrons, 2S")
    return Thermochemistry(
        temperature=temperature,
        pressure=pressure,
        symmetry_number=symmetry_number,
        electronic_energy=energy,
        zero_point_energy=vibrations.zero_point_energy,
        electronic=Share(energy, BOLTZMANN * float(np.log(spin + 1)), 0.0),
        translation=_translation(float(vibrations.masses.sum()), temperature, pressure),
        rotation=_rotation(vibrations, temperature, symmetry_number),
        vibration=_vibration(vibrations.wavenumbers, temperature),
    )


def rotational_constants(positions: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """h / (8 pi^2 I) [GHz] of the principal axes, descending, shape (3,); infinite where there is no moment."""
    moments = np.linalg.eigvalsh(inertia(positions, masses))
    moments[moments < 1e-9] = 0.0  # rounding, in u bohr^2
    with np.errstate(divide="ignore"):
        return _PLANCK / (8 * pi**2 * _AMU * _BOHR**2 * 1e9) / moments


def _translation(mass: float, temperature: float, pressure: float) -> Share:
    thermal = BOLTZMANN * _HARTREE * temperature  # [J]
    states = (2 * pi * mass * _AMU * thermal / _PLANCK**2) ** 1.5 * thermal / pressure
    return Share(1.5 * BOLTZMANN * temperature, BOLTZMANN * (2.5 + float(np.log(states))), 1.5 * BOLTZMANN)


def _rotation(vibrations: Vibrations, temperature: float, symmetry_number: int) -> Share:
    if len(vibrations.masses) == 1:
        return Share(0.0, 0.0, 0.0)
    thermal = BOLTZMANN * _HARTREE * temperature / _PLANCK * 1e-9  # [GHz]
    constants = rotational_constants(vibrations.positions, vibrations.masses)
    if vibrations.linear:
        freedom, states = 1.0, thermal / (symmetry_number * constants[1:].mean())
    else:
        freedom, states = 1.5, (pi * thermal**3 / constants.prod()) ** 0.5 / symmetry_number
    entropy = BOLTZMANN * (freedom + float(np.log(states)))
    return Share(freedom * BOLTZMANN * temperature, entropy, freedom * BOLTZMANN)


def _vibration(wavenumbers: np.ndarray, temperature: float) -> Share:
    quanta = wavenumbers[wavenumbers > 0] / HARTREE_IN_WAVENUMBERS  # [Eh]
    x = quanta / (BOLTZMANN * temperature)
    with np.errstate(over="ignore"):  # a mode that is frozen has infinitely many kT in its quantum
        occupied = 1 / np.expm1(x)
        energy = float((quanta * (0.5 + occupied)).sum())
        entropy = float((x * occupied - np.log(-np.expm1(-x))).sum())
        capacity = float((x**2 * occupied * np.where(np.isinf(occupied), 0.0, occupied + 1)).sum())
    return Share(energy, BOLTZMANN * entropy, BOLTZMANN * capacity)
