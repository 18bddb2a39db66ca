"""What the errors of energies say: of the energies, and of the reactions between the molecules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from mlsemi.molecule import Molecule
from mlsemi.units import HARTREE_IN_KCAL_PER_MOL

HYDRIDES = {6: "CH4", 7: "H3N", 8: "H2O"}
BONDS = {6: 4, 7: 3, 8: 2}


def energies(errors: np.ndarray) -> dict[str, float]:
    """Mean and largest absolute error [kcal/mol] of energies whose errors are given [Eh]."""
    size = np.abs(errors) * HARTREE_IN_KCAL_PER_MOL
    return {"energy_kcal": float(size.mean()), "energy_max_kcal": float(size.max())}


def reactions(
    molecules: Sequence[Molecule], errors: np.ndarray, partners: Sequence[Molecule], of_partners: np.ndarray
) -> dict[str, float]:
    """Mean and largest absolute errors [kcal/mol] of isomerizations and hydrogenations.

    Isomerizations are all pairs of molecules of one formula. A hydrogenation takes a molecule with H2 to CH4, NH3 and
    H2O. Neither depends on the reference energies of atoms.

    Args:
        molecules: one geometry of each.
        errors: of their energies [Eh].
        partners: molecules among which are H2, CH4, NH3 and H2O.
        of_partners: errors of theirs [Eh].

    Returns:
        Nothing where there are no such reactions.
    """
    known = {molecule.formula: error for molecule, error in reversed(list(zip(partners, of_partners, strict=True)))}
    found: dict[str, list[float]] = {"isomerization": [], "hydrogenation": []}
    for (one, error), (other, other_error) in combinations(zip(molecules, errors, strict=True), 2):
        if one.formula == other.formula:
            found["isomerization"].append(error - other_error)
    for molecule, error in zip(molecules, errors, strict=True):
        atoms = Counter(molecule.numbers.tolist())
        hydrogen = (sum(BONDS[z] * n for z, n in atoms.items() if z != 1) - atoms[1]) / 2
        needed = {"H2"} | {HYDRIDES[z] for z in atoms if z != 1}
        if needed <= set(known) and molecule.formula not in known:
            products = sum(n * known[HYDRIDES[z]] for z, n in atoms.items() if z != 1)
            found["hydrogenation"].append(products - error - hydrogen * known["H2"])
    out: dict[str, float] = {}
    for kind, values in found.items():
        if values:
            size = np.abs(values) * HARTREE_IN_KCAL_PER_MOL
            out |= {kind: len(values), f"{kind}_kcal": float(size.mean()), f"{kind}_max_kcal": float(size.max())}
    return out
