"""The density of a trained model as the start of an SCF.

It changes how many iterations a label takes, not the label: that is proved by its residual, whatever the start was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlsemi.basis import Basis
from mlsemi.domain import refuse_uncovered
from mlsemi.molecule import Molecule

if TYPE_CHECKING:
    from mlsemi.checkpoint import Header
    from mlsemi.engine import Engine


@dataclass(frozen=True)
class ModelGuess:
    """Start of an SCF from a model: an `InitialDensity` that goes to other processes by its path alone.

    Attributes:
        path: the checkpoint.
    """

    path: Path

    def __call__(self, molecule: Molecule) -> np.ndarray:
        """The predicted density, shape (spin, ao, ao), in mlsemi's AO order.

        Raises:
            ValueError: if the model does not cover the molecule; `check` says so beforehand.
        """
        import torch

        engine = _engine(str(self.path))
        with torch.no_grad():
            return engine(engine.batch([molecule])).state.density[0].numpy()

    @property
    def header(self) -> Header:
        """What the checkpoint says of itself."""
        # here, so that the processes of a run without a guess do not load the network's libraries
        from mlsemi.checkpoint import read_header

        return read_header(self.path)

    @property
    def description(self) -> str:
        """Name and basis of the model, for the record."""
        header = self.header
        return f"{header.name} ({header.method}/{header.basis.name})"

    def check(self, molecules: Sequence[Molecule], basis: Basis) -> None:
        """Refuses what the model cannot start, before any work is done.

        Args:
            molecules: all molecules of the run.
            basis: basis of the run.

        Raises:
            ValueError: naming the first molecule and why, and how many there are; or if the basis is another one.
        """
        header = self.header
        refused: list[str] = []
        for molecule in molecules:
            try:
                refuse_uncovered(molecule, model=header.name, elements=header.elements, domain=header.domain)
                if molecule.spin and not header.network.open_shells:
                    raise ValueError(
                        f"{molecule.name or molecule.formula} has spin (2S) {molecule.spin}, and this model is for "
                        "closed shells"
                    )
            except ValueError as error:
                refused.append(str(error))
        if refused:
            raise ValueError(
                f"guess={header.name!r} does not cover {len(refused)} of {len(molecules)} molecules, the first: "
                f"{refused[0]}; label these without a guess"
            )
        numbers = {z for m in molecules for z in m.numbers.tolist()}
        if header.basis.content_hash(numbers) != basis.content_hash(numbers):
            raise ValueError(
                f"guess={header.name!r} is a model in {header.basis.name!r}, labels are asked for in {basis.name!r}: "
                "take a model of this basis, or label without a guess"
            )


@lru_cache(maxsize=1)
def _engine(path: str) -> Engine:
    """The model, once in a process. The network is in float32: the SCF does the rest."""
    from mlsemi import checkpoint

    return checkpoint.load(path)[1].requires_grad_(False)
