"""The eigenproblem F C = S C eps for batches of unlike molecules, and the density with its closed derivatives.

Everything is solved in float64. AO matrices are padded; an explicit mask says which AOs exist. The padding has no
orbitals: it takes no part in the result, and gradients with respect to it are zero.

The derivative of the density D = C f C^T needs no derivative of an orbital (Daleckii and Krein 1965): with G = dL/dD
symmetrized and M = C^T G C

    dL/dF =  C (K o M) C^T,    K_pq   = (f_p - f_q) / (eps_p - eps_q),              0 where f_p = f_q
    dL/dS = -C (K_S o M) C^T,  K_S,pq = (f_p eps_p - f_q eps_q) / (eps_p - eps_q),  f_p where f_p = f_q

so that degenerate orbitals of equal occupation do no harm; only a closing gap does. Second derivatives are closed as
well, see `adjoint` and `spectrum`.
"""

from mlsemi.eigen.dependencies import LEVEL, LINEAR_DEPENDENCE, dependency_filter, lift_near_dependencies
from mlsemi.eigen.occupations import fermi_occupations
from mlsemi.eigen.roots import square_root
from mlsemi.eigen.solution import EigenSolution, SmearedDensity, density, solve, solve_density, solve_smeared
from mlsemi.eigen.spectrum import CLOSED_GAP

__all__ = [
    "CLOSED_GAP",
    "LEVEL",
    "LINEAR_DEPENDENCE",
    "EigenSolution",
    "SmearedDensity",
    "density",
    "fermi_occupations",
    "dependency_filter",
    "lift_near_dependencies",
    "solve",
    "solve_density",
    "solve_smeared",
    "square_root",
]
