"""How charge and spin of a molecule enter the network.

Beside what the network sees of them, a charge has an effect that is known: it shifts the potential of all electrons.
The excess charge q, spread over the atoms as q w_k with sum w_k = 1, gives

    phi_i = -q sum_k w_k / sqrt(r_ik^2 + a_i a_k),    dF_ij = (phi_i + phi_j) / 2 S_ij,

the self-consistent charge term of tight binding; the weights w are learned. It has the long range that no local network
has, and with equal weights it already brings F - F0 of an ion (NH4+ 51 mEh, HCOO- 20 mEh) to the size of that of a
neutral molecule (15 and 8 mEh).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mlsemi.batch import Batch
from mlsemi.nn.so2 import Linear

SOFTENING = 2.5
"""a of the potential [bohr]: the size of an atom, so that the potential at NH4+ is what it should be."""

_SMALLEST = 1.0
"""Softenings stay above this [bohr], so that nothing diverges."""

_HIDDEN = 32
_LARGEST_LOGIT = 6.0


class StateEmbedding(nn.Module):
    """Charge and spin to a change of the atom scalars and of the first bond states; zero for neutral closed shells.

    Without biases, so that charge = spin = 0 gives exactly zero; the last layers are zero at first, so that a model of
    neutral closed shells can be trained further from where it is.

    Args:
        n_elements: number of elements; each answers in its own way.
        scalars: invariant channels of the atoms.
        bonds: invariant channels of the bond state.
        charges: see the charge.
        open_shells: see the spin.
    """

    def __init__(self, n_elements: int, scalars: int, bonds: int, *, charges: bool, open_shells: bool) -> None:
        super().__init__()
        self.charges, self.open_shells = charges, open_shells
        self.hidden = Linear(4, _HIDDEN)
        self.atom = nn.Parameter(torch.zeros(n_elements, _HIDDEN, scalars))
        self.bond = nn.Parameter(torch.zeros(_HIDDEN, bonds))

    def forward(self, batch: Batch, element: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes (atom, scalar) and (pair, bond channel)."""
        dtype = self.bond.dtype
        seen = torch.stack([batch.charge * self.charges, batch.spin * self.open_shells], dim=1).to(dtype)
        size = torch.zeros_like(seen[:, :1]).index_add(0, batch.molecule, seen.new_ones(len(element), 1))
        hidden = silu(self.hidden(torch.cat([seen, seen / size], dim=1))).index_select(0, batch.molecule)
        atom = (hidden[:, None] @ self.atom[element])[:, 0]
        return atom, (hidden @ self.bond).index_select(0, batch.pair[0])


class ChargePotential(nn.Module):
    """Potential of the excess charge at each atom, see the module's docstring.

    Args:
        scalars: invariant channels of the atoms.
        n_elements: number of elements.
    """

    def __init__(self, scalars: int, n_elements: int) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(n_elements, scalars))
        self.offset = nn.Parameter(torch.zeros(n_elements))
        self.softening = nn.Parameter(torch.full((n_elements,), SOFTENING))

    def forward(self, scalars: Tensor, element: Tensor, batch: Batch) -> Tensor:
        """phi [Eh], shape (atom,); zero in neutral molecules."""
        logit = (scalars * self.logit[element]).sum(-1) + self.offset[element]
        # bounded, so that no exponential runs away where the features are far from the training
        share = torch.exp(_LARGEST_LOGIT * torch.tanh(logit / _LARGEST_LOGIT))
        total = share.new_zeros(batch.n_molecules).index_add(0, batch.molecule, share)
        excess = batch.charge.to(share.dtype) / total
        return self.potential(share * excess.index_select(0, batch.molecule), element, batch)

    def potential(self, excess: Tensor, element: Tensor, batch: Batch) -> Tensor:
        """Potential of charges on the atoms [Eh], shape (atom,); all pairs of a molecule count, however far."""
        parts: list[Tensor] = []
        first = 0
        for molecule in batch.molecules:
            own = slice(first, first := first + molecule.n_atoms)
            if not molecule.charge:
                parts.append(torch.zeros_like(excess[own]))
                continue
            positions = batch.positions[own]
            square = ((positions[:, None] - positions) ** 2).sum(-1).to(excess.dtype)
            a = self.softening[element[own]].clamp(min=_SMALLEST)
            parts.append(-(excess[own] / torch.sqrt(square + a[:, None] * a)).sum(1))
        return torch.cat(parts)


def potential_matrix(potential: Tensor, overlap: Tensor, batch: Batch) -> Tensor:
    """(phi_i + phi_j) / 2 S_ij.

    Args:
        potential: phi of each atom [Eh], shape (atom,).
        overlap: overlap matrices, shape (molecule, ao, ao).
        batch: the molecules.

    Returns:
        Matrices [Eh], shape (molecule, ao, ao).
    """
    at_ao = potential.new_zeros(batch.ao_mask.shape).masked_scatter(batch.ao_mask, potential[batch.ao_atom])
    return 0.5 * (at_ao.unsqueeze(-1) + at_ao.unsqueeze(-2)) * overlap
