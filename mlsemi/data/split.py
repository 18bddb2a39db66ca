"""Which molecules are trained on, tuned on and tested on: a fixed hash of the canonical SMILES decides.

The split is by molecule: all geometries of one molecule are on the same side, so that the test molecules have never
been seen in training. It depends on nothing but the string, and so stays the same when molecules are added.
"""

from __future__ import annotations

import hashlib
from typing import Literal

Split = Literal["train", "validation", "test"]

TEST_FRACTION = 0.12
VALIDATION_FRACTION = 0.08


def split_of(smiles: str) -> Split:
    """The side of the split that a molecule is on.

    Args:
        smiles: the canonical SMILES as it is stored with the geometries; another SMILES of the same molecule
            gives another answer.

    Returns:
        "test" for 12 % of all strings, "validation" for 8 %, else "train".

    Raises:
        ValueError: for an empty string, or one with white space around it.
    """
    if not smiles or smiles != smiles.strip():
        raise ValueError(f"smiles must be a canonical SMILES without white space around it, got {smiles!r}")
    fraction = int.from_bytes(hashlib.sha256(smiles.encode()).digest()[:8], "big") / 2.0**64
    if fraction < TEST_FRACTION:
        return "test"
    return "validation" if fraction < TEST_FRACTION + VALIDATION_FRACTION else "train"
