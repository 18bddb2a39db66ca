"""How charge and spin of a molecule enter the network.

Beside what the network sees of them, a charge has an effect that is known: it shifts the potential of all electrons.
The excess charge q, spread over the atoms as q w_k with sum w_k = 1, gives

    phi_i = -q sum_k w_k / sqrt(r_ik^2 + a_i a_k),    dF_ij = (phi_i + phi_j) / 2 S_ij,

the self-consistent charge term of tight binding; the weights w are learned. It has the long range that no local network
has, and with equal weights it already brings F - F0 of an ion (NH4+ 51 mEh, HCOO- 20 mEh) to the size of that of a
neutral molecule (15 and 8 mEh).

Neutral molecules have such a tail, too: the potential of the charges that their atoms exchange. At a water molecule
that has another one 7.5 angstrom away it is 2 to 4 mEh, beyond what messages reach. Partial charges, learned as what
each bond moves from one of its atoms to the other, give it in the same way: the charge term of density-functional tight
binding (M. Elstner et al., Phys. Rev. B 58, 7260 (1998)) without its self-consistency.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.nn.utils.rnn import pad_sequence

from mlsemi.batch import Batch
from mlsemi.nn.so2 import Linear

SOFTENING = 2.5
"""a of the potential [bohr]: the size of an atom, so that the potential at NH4+ is what it should be."""

_SMALLEST = 1.0
"""Softenings stay above this [bohr], so that nothing diverges."""

_HIDDEN = 32
_LARGEST_LOGIT = 6.0

_LARGEST_TRANSFER = 1.0
"""No bond moves more than this [e]: a bound for features far from those of the training."""


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

    The shares add up to one over all atoms of a molecule, however far apart they are: an ion beside another molecule
    is not size-consistent.

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
        charge = share * excess.index_select(0, batch.molecule)
        return atom_potential(charge, self.softening[element], batch)


class ChargeTransfer(nn.Module):
    """Potential of partial charges: q_i is the sum over the neighbours of t_ij = -t_ji, what the bond moves to i.

    So the charges of a molecule add up to zero, and those of each of several molecules that are far from each other.
    Zero at first, so that a model without partial charges can be trained further from where it is.

    Args:
        channels: invariant channels of the bond state.
        n_elements: number of elements.
    """

    def __init__(self, channels: int, n_elements: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(n_elements * n_elements, channels))
        self.softening = nn.Parameter(torch.full((n_elements,), SOFTENING))

    def charge(self, state: Tensor, pair_type: Tensor, near: Tensor, batch: Batch) -> Tensor:
        """Partial charges [e], shape (atom,).

        Args:
            state: even m = 0 part of the bond states, shape (pair, channel).
            pair_type: ordered element pair of each bond, shape (pair,).
            near: envelope of each bond, shape (pair,).
            batch: the molecules.
        """
        given = (state * self.slope[pair_type]).sum(-1)
        moved = _LARGEST_TRANSFER * torch.tanh(0.5 * (given - given.index_select(0, batch.reverse))) * near
        return moved.new_zeros(len(batch.numbers)).index_add(0, batch.pair[0], moved)

    def forward(self, state: Tensor, pair_type: Tensor, near: Tensor, element: Tensor, batch: Batch) -> Tensor:
        """phi [Eh], shape (atom,); the arguments of `charge`, and the index of the element of each atom."""
        return atom_potential(self.charge(state, pair_type, near, batch), self.softening[element], batch)


def atom_potential(charge: Tensor, softening: Tensor, batch: Batch) -> Tensor:
    """phi_i = -sum_k q_k / sqrt(r_ik^2 + a_i a_k) for an electron [Eh]; all pairs of a molecule count, however far.

    Args:
        charge: q [e], shape (atom,).
        softening: a [bohr], shape (atom,).
        batch: the molecules.

    Returns:
        Shape (atom,).
    """
    sizes = [molecule.n_atoms for molecule in batch.molecules]
    x, q, a = (
        pad_sequence(list(values.split(sizes)), batch_first=True)
        for values in (batch.positions, charge, softening.clamp(min=_SMALLEST))
    )
    there = torch.arange(x.shape[1], device=x.device) < torch.tensor(sizes, device=x.device)[:, None]
    a = a.masked_fill(~there, 1.0)
    square = ((x[:, :, None] - x[:, None]) ** 2).sum(-1).to(q.dtype)
    return -(q[:, None] / torch.sqrt(square + a[:, :, None] * a[:, None])).sum(-1)[there]


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
