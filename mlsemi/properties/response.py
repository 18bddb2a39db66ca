"""Response of the density to fields and to displacements of the nuclei, by derivatives through the eigenproblem."""

from __future__ import annotations

import torch
from torch import Tensor

from mlsemi.batch import Batch
from mlsemi.eigen import CLOSED_GAP
from mlsemi.state import solve_state


def polarizability(
    fock: Tensor, overlap: Tensor, dipole_integrals: Tensor, batch: Batch, *, create_graph: bool = False
) -> Tensor:
    """Static polarizability by uncoupled response: the field acts on the orbitals of a Fock matrix that stays fixed.

    It is the derivative of the dipole moment of the density of F + r E by the field E,

        alpha_ab = sum over spins of sum_ia 2 f <i| r_a |a> <a| r_b |i> / (eps_a - eps_i),

    f being 2 or, with two spins, 1. It does not depend on the origin. What is left out, the change of F by the density,
    is no small thing: of HF orbitals the result is a tenth to a fifth below the coupled one, of B3LYP orbitals a fifth
    to three fifths above it (water, formamide, HCN). Compare within one method; `mlsemi.reference.response` has the
    coupled one.

    Args:
        fock: Fock matrices [Eh], shape (molecule, spin, ao, ao).
        overlap: overlap matrices, shape (molecule, ao, ao).
        dipole_integrals: <mu| r |nu> [bohr], shape (molecule, 3, ao, ao).
        batch: the molecules.
        create_graph: make the result differentiable (once) in fock, overlap and dipole_integrals.

    Returns:
        Polarizabilities [bohr^3], shape (molecule, 3, 3), symmetric; nan for molecules without a gap.
    """
    with torch.enable_grad():
        if not create_graph:
            fock, overlap, dipole_integrals = fock.detach(), overlap.detach(), dipole_integrals.detach()
        field = fock.new_zeros(batch.n_molecules, 3, requires_grad=True)
        term = torch.einsum("ka,kaij->kij", field, dipole_integrals)
        state = solve_state(fock + term.unsqueeze(1), overlap, batch)
        defined = state.gap.amin(1) > CLOSED_GAP
        moment = -(dipole_integrals * state.total_density.unsqueeze(1)).sum((-2, -1))
        # the sum over the molecules serves all at once: the moment of one depends on its own field only
        rows = [
            torch.autograd.grad(
                moment[defined, a].sum(), field, retain_graph=True, create_graph=create_graph, materialize_grads=True
            )[0]
            for a in range(3)
        ]
    found = torch.stack(rows, dim=1)
    found = (found + found.mT) / 2
    return found.masked_fill(~defined[:, None, None], torch.nan)


def mean_polarizability(polarizability: Tensor) -> Tensor:
    """A third of the trace, shape (...) for tensors of shape (..., 3, 3)."""
    return polarizability.diagonal(dim1=-2, dim2=-1).mean(-1)


def anisotropy(polarizability: Tensor) -> Tensor:
    """sqrt(3/2) times the norm of the traceless part: alpha_parallel - alpha_perpendicular of a linear molecule.

    Args:
        polarizability: shape (..., 3, 3).

    Returns:
        Shape (...), not negative.
    """
    mean = mean_polarizability(polarizability)
    traceless = polarizability - mean[..., None, None] * torch.eye(3, dtype=mean.dtype, device=mean.device)
    return (1.5 * (traceless**2).sum((-2, -1))) ** 0.5


def dipole_derivatives(dipole: Tensor, positions: Tensor) -> Tensor:
    """Derivatives of the dipole moments by the positions of the nuclei (atomic polar tensors), by three reverse passes.

    Args:
        dipole: dipole moments [e bohr], shape (molecule, 3), computed from `positions`, as by
            `mlsemi.properties.multipoles.dipole`; its graph is kept.
        positions: positions of the batch [bohr], shape (atom, 3), that require a gradient. Molecules do not act upon
            each other.

    Returns:
        Shape (atom, 3, 3) [e], the moment last: entry (A, i, j) is d mu_j / d R_Ai.
    """
    columns = [torch.autograd.grad(dipole[:, j].sum(), positions, retain_graph=True)[0] for j in range(3)]
    return torch.stack(columns, dim=-1)
