"""What a model covers: molecules outside are refused with what it does cover, doubtful ones get a warning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from mlsemi.molecule import Molecule, symbol_of

# fmt: off
COVALENT_RADII_ANGSTROM = np.array([
    np.nan, 0.31, 0.28, 1.28, 0.96, 0.84, 0.76, 0.71, 0.66, 0.57, 0.58, 1.66, 1.41, 1.21, 1.11, 1.07, 1.05, 1.02, 1.06,
    2.03, 1.76, 1.70, 1.60, 1.53, 1.39, 1.39, 1.32, 1.26, 1.24, 1.32, 1.22, 1.22, 1.20, 1.19, 1.20, 1.20, 1.16,
    2.20, 1.95, 1.90, 1.75, 1.64, 1.54, 1.47, 1.46, 1.42, 1.39, 1.45, 1.44, 1.42, 1.39, 1.39, 1.38, 1.39, 1.40,
])
# fmt: on
"""By atomic number, H to Xe (Cordero et al., Dalton Trans. 2008, 2832)."""

BOND_TOLERANCE_ANGSTROM = 0.45
"""Atoms nearer than the sum of their radii and this are bonded: Open Babel's rule (J. Cheminf. 3, 33 (2011))."""

SEPARATE_ANGSTROM = 1.0
"""Atoms farther apart than the sum of their radii and this are of two molecules, not of a stretched bond."""

BROKEN_X_H_ANGSTROM = 0.6
"""Bonds of H count as broken only beyond the sum of the radii and this: the training has distorted ones up to about
there, and the errors of longer ones leave their intervals. The shortest hydrogen bonds of the training stand at 0.7."""

DISTANCE_MARGIN = 0.1
"""A distance of two atoms that is by more than this share outside of what the training had is worth a warning."""

SIZE_LIMIT = 1.5
"""A molecule with more atoms than this times the largest one of the training is worth a warning."""

LARGEST_CHANGE = 0.5
"""The change of the electronic energy from the superposed atoms to a molecule stays within -0.1 and 0.25 Eh an atom."""

SMALLEST_GAP = 0.05
"""HOMO-LUMO gaps [Eh] below this are a sign of an open shell, or of a wrong Fock matrix."""

DEGENERACY_GAP = 1e-3
"""Below this distance of the frontier orbitals of one spin [Eh] the occupation is a matter of choice: the state, and a
label, is not unique."""

_LISTED = 5
_OTHERS = " (`mlsemi models` lists what others cover)"


def n_fragments(molecule: Molecule, *, tolerance_angstrom: float = BOND_TOLERANCE_ANGSTROM) -> int:
    """Number of fragments without a covalent bond between them.

    Args:
        molecule: one or several molecules.
        tolerance_angstrom: atoms nearer than the sum of their radii and this are bonded.
    """
    return _components(_excess(molecule) < tolerance_angstrom)[0]


def _excess(molecule: Molecule) -> np.ndarray:
    """Distances of the atoms less the sums of their covalent radii [angstrom], shape (atom, atom)."""
    x, radii = molecule.positions_angstrom, COVALENT_RADII_ANGSTROM[molecule.numbers]
    return np.linalg.norm(x[:, None] - x, axis=-1) - radii[:, None] - radii


def _components(bonded: np.ndarray) -> tuple[int, np.ndarray]:
    """Number of fragments, and the fragment of each atom, from a matrix of what is bonded, shape (atom, atom)."""
    if len(bonded) == 1:
        return 1, np.zeros(1, dtype=np.int32)
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    count, fragment = connected_components(csr_array(bonded), directed=False)
    return int(count), fragment


def distance_ranges(molecules: Iterable[Molecule]) -> dict[str, list[float]]:
    """Least and largest distance of the atoms of each pair of elements [angstrom], as {"C-H": [1.02, 3.1], ...}."""
    found: dict[str, list[float]] = {}
    for molecule in molecules:
        for pair, (least, largest) in _extreme_distances(molecule).items():
            low, high = found.get(pair, (np.inf, 0.0))
            found[pair] = [min(low, round(least, 4)), max(high, round(largest, 4))]
    return dict(sorted(found.items()))


def _extreme_distances(molecule: Molecule) -> dict[str, tuple[float, float]]:
    """Least and largest distance [angstrom] of the atoms of each pair of elements, hydrogen named last."""
    first, second = np.triu_indices(molecule.n_atoms, 1)
    x, z = molecule.positions_angstrom, molecule.numbers
    distance = np.linalg.norm(x[first] - x[second], axis=-1)
    found = {}
    elements = sorted(set(z.tolist()), key=lambda each: (each == 1, symbol_of(each)))
    for a, b in combinations_with_replacement(elements, 2):
        of_pair = distance[(z[first] == a) & (z[second] == b) | (z[first] == b) & (z[second] == a)]
        if len(of_pair):
            found[f"{symbol_of(a)}-{symbol_of(b)}"] = float(of_pair.min()), float(of_pair.max())
    return found


def refuse_uncovered(molecule: Molecule, *, model: str, elements: Iterable[int], domain: Mapping[str, Any]) -> None:
    """Refuses a molecule that a model cannot treat.

    Args:
        molecule: what is asked for.
        model: name of the model, for the message.
        elements: atomic numbers that it covers.
        domain: `charges`, `spins` and `states`, pairs of both, that it covers; what is missing or empty is not
            checked.

    Raises:
        ValueError: naming what the model does cover.
    """
    where = molecule.name or molecule.formula
    covered = sorted(elements)
    foreign = sorted(set(molecule.numbers.tolist()) - set(covered))
    if foreign:
        raise ValueError(
            f"{where} holds {_symbols(foreign)}, which the model {model} does not cover; it covers {_symbols(covered)}"
            + _OTHERS
        )
    for name, value in (("charges", molecule.charge), ("spins", molecule.spin)):
        values = domain.get(name) or [value]
        if value not in values:
            meaning = "charge" if name == "charges" else "spin (2S)"
            raise ValueError(
                f"{where} has {meaning} {value}, which the model {model} does not cover; it covers {meaning} "
                + ", ".join(map(str, values))
                + _OTHERS
            )
    states = [tuple(state) for state in domain.get("states") or []]
    if states and (molecule.charge, molecule.spin) not in states:
        listed = ", ".join(f"{charge:+d} and {spin}" if charge else f"0 and {spin}" for charge, spin in states)
        raise ValueError(
            f"{where} has charge {molecule.charge} and spin (2S) {molecule.spin}, which the model {model} does not "
            f"cover together; it covers {listed}{_OTHERS}"
        )


def doubts(molecule: Molecule, domain: Mapping[str, Any]) -> tuple[str, ...]:
    """Reasons why a prediction may be worse than the errors that were measured for the model.

    Args:
        molecule: what is asked for.
        domain: `max_atoms`, `max_heavy_atoms`, `formulas` and `distances` (of `distance_ranges`) of the training, what
            is missing or empty is not checked; `max_fragments`, one if it is missing, and `min_atoms`, two if it is.
            Broken bonds are looked for in neutral molecules, unless a distance is outside of `distances` already.
    """
    found, far = [], ""
    formulas: Sequence[str] = domain.get("formulas") or []
    if formulas and molecule.formula not in formulas:
        listed = ", ".join(formulas[:_LISTED]) + (" and others" if len(formulas) > _LISTED else "")
        found.append(f"the model was trained on {listed} only, this is {molecule.formula}: errors are not known")
    elif far := _outside(molecule, domain.get("distances") or {}):
        found.append(far)
    smallest = domain.get("min_atoms", 2)
    if molecule.n_atoms < smallest:
        found.append(
            f"the smallest molecule of the training has {smallest} atoms, this has {molecule.n_atoms}: the energy is "
            "not reliable"
        )
    largest = domain.get("max_atoms")
    if largest and molecule.n_atoms > SIZE_LIMIT * largest:
        found.append(
            f"{molecule.n_atoms} atoms, far more than the {largest} of the largest molecule of the training: errors "
            "grow with the size and have not been measured there"
        )
    heavy = domain.get("max_heavy_atoms")
    if heavy and molecule.n_heavy_atoms > heavy:
        found.append(
            f"{molecule.n_heavy_atoms} atoms other than H, the training has at most {heavy}: errors have not been "
            "measured there"
        )
    excess = _excess(molecule)
    fragments, fragment = _components(excess < BOND_TOLERANCE_ANGSTROM)
    trained = domain.get("max_fragments", 1)
    if fragments > 1 and molecule.charge:
        found.append(
            f"{fragments} fragments without a bond between them, charge {molecule.charge:+d}: the model spreads the "
            "charge over all of them, however far apart they are; energies are off by tens of mEh"
        )
    elif fragments > 1 and not far and (broken := _broken_bond(molecule, excess, fragment)):
        found.append(broken)
    elif fragments > trained:
        on = "connected molecules" if trained == 1 else f"at most {trained}"
        found.append(
            f"{fragments} fragments without a bond between them: the model was trained on {on}, and the interaction of "
            "fragments is not reliable"
        )
    return tuple(found)


def _outside(molecule: Molecule, distances: Mapping[str, Sequence[float]]) -> str:
    """The distance that is farthest outside of those of the training, in words; empty if none is."""
    worst, words = 1 + DISTANCE_MARGIN, ""
    for pair, extremes in _extreme_distances(molecule).items():
        for distance in extremes if pair in distances else ():
            low, high = distances[pair]
            ratio = max(low / max(distance, 1e-9), distance / high)
            if ratio > worst:
                worst = ratio
                words = (
                    f"{pair} distance of {distance:.2f} angstrom, the training has {low:.2f} to {high:.2f}: another "
                    "isomer or conformer, or a geometry far from the training, where errors are not known"
                )
    return words


def _broken_bond(molecule: Molecule, excess: np.ndarray, fragment: np.ndarray) -> str:
    """What tells a broken bond of a neutral molecule from molecules beside each other, in words; empty if nothing does.

    Either there are more fragments with an odd number of electrons (as neutral ones) than unpaired electrons, or two
    fragments have heavy atoms nearer than any two molecules come. Fragments with even numbers of electrons that are
    farther apart, such as two CH2, look like two molecules.

    Args:
        molecule: a neutral molecule.
        excess: of `_excess`.
        fragment: of each atom, for bonds up to `BOND_TOLERANCE_ANGSTROM`.
    """
    hydrogen, apart = molecule.numbers == 1, fragment[:, None] != fragment
    if (apart & (excess < BROKEN_X_H_ANGSTROM) & (hydrogen[:, None] | hydrogen)).any():
        longest = np.where(hydrogen[:, None] | hydrogen, BROKEN_X_H_ANGSTROM, BOND_TOLERANCE_ANGSTROM)
        _, fragment = _components(excess < longest)
        apart = fragment[:, None] != fragment
    odd = np.flatnonzero(np.bincount(fragment, weights=molecule.numbers) % 2)
    if len(odd) > molecule.spin:
        names = [_formula_of_radical(molecule, fragment == k) for k in odd[:_LISTED].tolist()]
        listed = ", ".join(names) + (" and others" if len(odd) > _LISTED else "")
        return (
            f"{int(fragment.max()) + 1} fragments without a bond between them, with an odd number of electrons in "
            f"{listed}, at spin (2S) {molecule.spin}: a broken or stretched bond, or ions beside each other; the "
            "energy can be off by hundreds of mEh, whatever its error estimate is: take a geometry with whole bonds"
        )
    near = apart & (excess < SEPARATE_ANGSTROM) & ~hydrogen[:, None] & ~hydrogen
    if not near.any():
        return ""
    i, j = np.unravel_index(np.argmin(np.where(near, excess, np.inf)), near.shape)
    distance = float(np.linalg.norm(molecule.positions_angstrom[i] - molecule.positions_angstrom[j]))
    pair = "-".join(symbol_of(z) for z in sorted(molecule.numbers[[i, j]].tolist()))
    return (
        f"{pair} distance of {distance:.2f} angstrom between fragments, too long for a bond and too short for two "
        "molecules: a stretched bond; the energy can be off by tens of mEh, whatever its error estimate is: take a "
        "geometry with whole bonds"
    )


def _formula_of_radical(molecule: Molecule, atoms: np.ndarray) -> str:
    return Molecule(molecule.numbers[atoms], molecule.positions[atoms], spin=1).formula


def implausible(
    molecule: Molecule, *, change: float | None, gap: float | None, spin_gap: float | None = None
) -> tuple[str, ...]:
    """Signs in a result that it is wrong.

    Args:
        molecule: what was asked for.
        change: electronic energy relative to the superposed atoms [Eh]; None if the baseline has none.
        gap: HOMO-LUMO gap [Eh], over both spins.
        spin_gap: smallest gap of one spin [Eh].
    """
    found = []
    if change is not None and abs(change) > LARGEST_CHANGE * molecule.n_atoms:
        found.append(
            f"the electronic energy is more than {LARGEST_CHANGE} Eh an atom away from that of the superposed "
            "atoms, which no molecule is: the predicted Fock matrix has an orbital that does not exist; do not use "
            "this result"
        )
    if spin_gap is not None and spin_gap < DEGENERACY_GAP:
        found.append(
            f"the highest occupied and the lowest empty orbital (of one spin) are only {spin_gap:.1e} Eh apart: which "
            "of them is occupied is arbitrary, so that the density is not unique; energy, forces, dipole and charges "
            "are doubtful"
        )
    elif gap is not None and gap < SMALLEST_GAP:
        reason = "an open shell (such as triplet O2), or a wrong Fock matrix"
        if molecule.spin:
            reason = "a state of another spin may be lower, or the Fock matrix is wrong"
        found.append(f"the HOMO-LUMO gap is only {gap:.3f} Eh: {reason}")
    return tuple(found)


def _symbols(numbers: Iterable[int]) -> str:
    return ", ".join(symbol_of(z) for z in numbers)
