"""One-electron integrals over contracted spherical Gaussians: overlap, kinetic energy, dipole, second moments,
Coulomb of charges.

Exact to rounding, on padded batches of unlike molecules, differentiable in the nuclear positions to any order; float64.

    tables = plan(batch)
    S, T, _ = one_electron(batch, tables)
    V = coulomb(batch, tables, batch.positions, batch.molecule, omega2, weight)
"""

from mlsemi.integrals.moments import second_moments
from mlsemi.integrals.operators import coulomb, dipole, kinetic, one_electron, overlap
from mlsemi.integrals.shell_pairs import IntegralPlan, plan

__all__ = ["IntegralPlan", "coulomb", "dipole", "kinetic", "one_electron", "overlap", "plan", "second_moments"]
