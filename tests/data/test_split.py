from collections import Counter
from pathlib import Path

import pytest

from mlsemi.data.split import TEST_FRACTION, VALIDATION_FRACTION, split_of

SMILES = Path(__file__).parents[2] / "reference_data" / "organic" / "smiles.txt"


def test_frozen():
    # Literal answers: a change of the hash would move test molecules of the shipped model into training.
    expected = {"CCO": "train", "O": "train", "[H][H]": "train", "N#N": "test", "C#N": "validation", "C": "train"}
    assert {smiles: split_of(smiles) for smiles in expected} == expected


def test_fractions():
    n = 20000
    counts = Counter(split_of(f"molecule {i}") for i in range(n))
    # five standard deviations of a binomial count, below 0.012
    assert counts["test"] / n == pytest.approx(TEST_FRACTION, abs=0.012)
    assert counts["validation"] / n == pytest.approx(VALIDATION_FRACTION, abs=0.012)


def test_the_shipped_set_keeps_a_tenth_unseen():
    smiles = SMILES.read_text().split()
    counts = Counter(map(split_of, smiles))
    assert len(smiles) == len(set(smiles))
    assert counts["test"] >= 0.1 * len(smiles)
    assert counts["validation"] > 0.05 * len(smiles)


@pytest.mark.parametrize("smiles", ["", " CCO", "CCO\n"])
def test_refuses_what_cannot_be_stored(smiles):
    with pytest.raises(ValueError, match="canonical SMILES"):
        split_of(smiles)
