"""The split by molecule, for labels that are named by their SMILES."""

from __future__ import annotations

import re
from collections import Counter

from mlsemi.data.split import Split, split_of
from mlsemi.molecule import Molecule, symbol_of

_TOKEN = re.compile(r"\[\d*([A-Z][a-z]?|[a-z][a-z]?)[^\]]*\]|(Cl|Br|[BCNOPSFIbcnops])|[0-9=#()%+\-./\\@:$]")


def side_of(molecule: Molecule) -> Split:
    """Side of the split that a molecule is on by the SMILES that it is named with, which must be the canonical one.

    Raises:
        ValueError: if its name is no SMILES of its formula: the split would go by geometry, not by molecule.
    """
    heavy = Counter(symbol_of(z) for z in molecule.numbers.tolist() if z != 1)
    if _heavy_atoms(molecule.name) != heavy:
        raise ValueError(
            f"a label of {molecule.formula} is named {molecule.name!r}, which is not its SMILES: the split by molecule "
            "needs labels that are named by their SMILES, as `mlsemi sample` names them; for others take all labels "
            "or the random split"
        )
    return split_of(molecule.name)


def _heavy_atoms(smiles: str) -> Counter[str] | None:
    """Numbers of the heavy atoms in a SMILES by symbol; None for what cannot be one."""
    count: Counter[str] = Counter()
    position = 0
    while position < len(smiles):
        token = _TOKEN.match(smiles, position)
        if token is None:
            return None
        symbol = (token[1] or token[2] or "").capitalize()
        if symbol and symbol != "H":
            count[symbol] += 1
        position = token.end()
    return count if smiles else None
