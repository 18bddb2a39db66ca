"""Memory and time of a correlated label, estimated before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlsemi.basis import Basis
from mlsemi.molecule import Molecule
from mlsemi.reference.coupled_cluster import Correlation, n_frozen

_PROCESS_MB = 350.0
"""What Python, PySCF and their libraries take."""

_SAFETY = 1.3
_CYCLES = 13.0
_FIELD_CYCLES = 7.5
_SECONDS_PER_PRODUCT = 1.1e-10
"""One multiplication and addition in the contractions of PySCF on one core of 2020 to 2025."""


@dataclass(frozen=True)
class Cost:
    """What a label is going to need.

    Attributes:
        memory_mb: peak memory of the process [MB].
        seconds: time on one core [s], good to a factor of two or so.
        n_ao: basis functions.
        n_occupied: correlated orbitals of the majority spin.
        n_virtual: empty orbitals of the majority spin.
    """

    memory_mb: float
    seconds: float
    n_ao: int
    n_occupied: int
    n_virtual: int


def estimate(
    molecule: Molecule, basis: Basis, *, method: str, correlation: Correlation, gradient: bool = False
) -> Cost:
    """Cost of a label of `mlsemi.reference.coupled_cluster.solve`."""
    name = method.strip().lower()
    if correlation.small_basis is None:
        return _single(molecule, basis, name, correlation, gradient)
    large = _single(molecule, basis, "mp2", correlation, gradient)
    small = _single(molecule, correlation.small_basis, name, correlation, gradient)
    memory = max(large.memory_mb, small.memory_mb)
    return Cost(memory, large.seconds + small.seconds, large.n_ao, large.n_occupied, large.n_virtual)


def total(
    molecules: Sequence[Molecule], basis: Basis, *, method: str, correlation: Correlation, gradient: bool = False
) -> tuple[Cost, Molecule, float]:
    """The cost that needs the most memory, whose it is, and the time of all on one core [s]."""
    found: dict[tuple[str, int, int], Cost] = {}
    largest: tuple[Cost, Molecule] | None = None
    seconds = 0.0
    for molecule in molecules:
        key = (molecule.formula, molecule.charge, molecule.spin)
        if key not in found:
            found[key] = estimate(molecule, basis, method=method, correlation=correlation, gradient=gradient)
        seconds += found[key].seconds
        if largest is None or found[key].memory_mb > largest[0].memory_mb:
            largest = found[key], molecule
    if largest is None:
        raise ValueError("molecules is empty: nothing to label")
    return *largest, seconds


def _single(molecule: Molecule, basis: Basis, method: str, correlation: Correlation, gradient: bool) -> Cost:
    n_ao = sum(basis.n_ao(z) for z in molecule.numbers.tolist())
    frozen = n_frozen(molecule, correlation)
    majority = (molecule.n_electrons + molecule.spin) // 2
    o, v = max(majority - frozen, 1), max(n_ao - majority, 1)
    pairs, virtual_pairs, ao_pairs = (n * (n + 1) / 2 for n in (o + v, v, n_ao))
    numbers = ao_pairs**2 / 2
    amplitudes = float(o * o * v * v)
    spins = 1.0 if molecule.spin == 0 else 3.0
    products = 2.0 * n_ao**5
    points = _field_points(molecule) if correlation.dipole else 0
    if method == "mp2":
        numbers += spins * 3 * amplitudes + o * v * ao_pairs
        products *= 0.5 * spins * (1 + points)
        products += gradient * spins * 8 * n_ao**4 * o
    else:
        integrals = virtual_pairs**2 + o * v * virtual_pairs + 3 * amplitudes
        numbers += spins * (integrals + 18 * amplitudes) + pairs**2
        step = spins * 1.2 * (0.5 * amplitudes * v * v + 9 * o**3 * v**3)
        triples = spins * 1.7 * o**3 * v**4 * (method == "ccsd(t)")
        numbers += spins * o * v * v * (o + v) * (method == "ccsd(t)")
        products = spins * products * (1 + points) + (_CYCLES + points * _FIELD_CYCLES) * step + (1 + points) * triples
        if correlation.ip or correlation.ea:
            numbers += spins * 2 * o * v**3
            products += spins * 40 * (correlation.ip + 1) * amplitudes * v
        if correlation.ea:
            numbers += spins * 2 * v**4
            products += spins * 40 * (correlation.ea + 1) * o * v**4 + spins * 4 * o * o * v**4
        if gradient:
            numbers += spins * (v**4 / 2 + 3 * o * v**3)
            products += 2 * _CYCLES * step + 6 * triples + 8 * spins * n_ao**5
    seconds = 0.3 + 3e-8 * n_ao**4 + _SECONDS_PER_PRODUCT * products
    return Cost(_PROCESS_MB + _SAFETY * 8e-6 * numbers, seconds, n_ao, o, v)


def _field_points(molecule: Molecule) -> int:
    """Energies of a dipole: two for each direction in which the nuclei may be spread."""
    return 2 * min(molecule.n_atoms - 1, 3)
