"""F0: the starting Hamiltonian that the network corrects, without SCF and without a grid in the laboratory frame."""

from mlsemi.baseline.model import KINDS, Baseline, BaselineTerms

__all__ = ["KINDS", "Baseline", "BaselineTerms"]
