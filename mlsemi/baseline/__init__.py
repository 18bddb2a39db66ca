"""F0: the starting Hamiltonian that the network corrects, without SCF and without a grid in the laboratory frame."""

from mlsemi.baseline.model import KINDS, Baseline, BaselineTerms
from mlsemi.baseline.tables import LONGEST

__all__ = ["KINDS", "LONGEST", "Baseline", "BaselineTerms"]
