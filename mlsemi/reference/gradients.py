"""The derivative of E[D] with respect to the nuclei at a fixed density in the AO basis.

It is what PySCF's gradient of a self-consistent energy has besides the energy-weighted density, and it includes the
derivative of the quadrature grid, which moves with the atoms. Without that it would be off by 5e-6 Eh/bohr (water,
PBE).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pyscf import dft
from pyscf.grad.rhf import grad_nuc


def explicit_gradient(field: Any, density: np.ndarray) -> np.ndarray:
    """Derivative of E[D] with respect to the nuclei at a fixed density in the AO basis.

    Args:
        field: PySCF's RHF, UHF, RKS or UKS object; its grid, if it has one, is that of the energy. No non-local
            correlation.
        density: any symmetric density in PySCF's order and shape, (ao, ao) or (2, ao, ao); it need not be that of a
            determinant.

    Returns:
        Gradient [Eh/bohr], shape (atom, 3).
    """
    mol = field.mol
    derivative = field.nuc_grad_method()
    derivative.verbose = 0
    kohn_sham = isinstance(field, dft.rks.KohnShamDFT)
    if kohn_sham:
        derivative.grid_response = True
    density = np.asarray(density)
    veff = derivative.get_veff(mol, density)
    # one spin axis for both cases; the factors are the same, as the matrices are those of one spin's orbitals
    spins = density.reshape(-1, mol.nao, mol.nao)
    potentials = np.asarray(veff).reshape(-1, 3, mol.nao, mol.nao)
    total = spins.sum(axis=0)
    core = derivative.hcore_generator(mol)
    gradient = grad_nuc(mol)
    for atom, (start, stop) in enumerate(mol.aoslice_by_atom()[:, 2:]):
        gradient[atom] += np.einsum("xij,ij->x", core(atom), total)
        gradient[atom] += 2 * np.einsum("sxij,sij->x", potentials[:, :, start:stop], spins[:, start:stop])
    return gradient + veff.exc1_grid if kohn_sham else gradient
