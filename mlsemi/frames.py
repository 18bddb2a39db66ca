"""Bond frames of the pairs of a batch: distance, direction and the Wigner matrices of the rotation z -> r_ij."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlsemi.batch import Batch
from mlsemi.blocks import Slots
from mlsemi.harmonics import bond_frames, wigner_d


@dataclass(frozen=True, eq=False)
class BondFrames:
    """Geometry of every directed pair.

    Attributes:
        distance: |r_ij| [bohr], shape (pair,).
        wigner: for l = 0..l_max the matrix from the bond frame to the laboratory, shape (pair, 2l + 1, 2l + 1).
    """

    distance: Tensor
    wigner: tuple[Tensor, ...]

    @classmethod
    def of(cls, batch: Batch, l_max: int) -> BondFrames:
        """Frames up to l_max, in float64; differentiable in the positions."""
        vectors = batch.vectors
        distance = torch.linalg.vector_norm(vectors, dim=-1)
        rotation = bond_frames(vectors / distance[:, None])
        return cls(distance, tuple(wigner_d(l_max, rotation)))

    def to_dtype(self, dtype: torch.dtype) -> BondFrames:
        """The same in another precision."""
        return BondFrames(self.distance.to(dtype), tuple(w.to(dtype) for w in self.wigner))

    def slot_rotation(self, slots: Slots) -> Tensor:
        """Block-diagonal rotation of AO blocks, from the bond frame to the laboratory, shape (pair, slot, slot)."""
        shells = [self.wigner[l] for l, n in enumerate(slots.n_shells) for _ in range(n)]
        out = shells[0].new_zeros(shells[0].shape[0], slots.n_slots, slots.n_slots)
        start = 0
        for matrix in shells:
            stop = start + matrix.shape[-1]
            out[:, start:stop, start:stop] = matrix
            start = stop
        return out
