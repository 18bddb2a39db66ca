"""Engine: a batch of geometries to Fock matrices, states and fast energies, in pure torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlsemi.baseline import LONGEST, Baseline, BaselineTerms
from mlsemi.basis import Basis
from mlsemi.batch import Batch
from mlsemi.blocks import BlockMap
from mlsemi.eigen import dependency_filter, lift_near_dependencies
from mlsemi.energy import atom_sums, electronic_energy, fast_energy
from mlsemi.frames import BondFrames
from mlsemi.integrals import one_electron, plan
from mlsemi.nn.network import EnergyNetwork, FockNetwork, NetworkConfig
from mlsemi.state import ElectronicState, solve_state

RESOLVED_GAP = 1e-5
"""Distance of the frontier orbitals of one spin [Eh] that a network in float32 does not resolve: no forces below it."""


@dataclass(frozen=True, eq=False)
class Integrals:
    """What is computed exactly from the geometry.

    Attributes:
        overlap: S, shape (molecule, ao, ao).
        dipole: dipole integrals about the origin [bohr], shape (molecule, 3, ao, ao), or None.
        baseline: F0, D0 and the pair energy.
        blocks: block map of the batch.
        frames: bond frames in float64.
    """

    overlap: Tensor
    dipole: Tensor | None
    baseline: BaselineTerms
    blocks: BlockMap
    frames: BondFrames


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the engine gives for a batch.

    Attributes:
        integrals: the exact part.
        state: predicted Fock matrices, orbitals, densities.
        energy: energy of the fast mode [Eh], shape (molecule,).
        member_energy: that of each further member [Eh], shape (member, molecule); None if not asked for.
    """

    integrals: Integrals
    state: ElectronicState
    energy: Tensor
    member_energy: Tensor | None = None

    def gradient(self, batch: Batch) -> Tensor:
        """Derivative of the energies [Eh/bohr], shape (atom, 3); nan for molecules whose density has none.

        Args:
            batch: what was predicted, with positions that require a gradient.
        """
        defined = self.state.gap.amin(1) > RESOLVED_GAP
        if not defined.any():
            return torch.full_like(batch.positions, torch.nan)
        gradient = torch.autograd.grad(self.energy[defined].sum(), batch.positions)[0]
        return gradient.masked_fill(~defined[batch.molecule].unsqueeze(-1), torch.nan)


class Engine(nn.Module):
    """Baseline and network of one basis and one set of elements.

    Further members are networks that were trained independently of the first one. They take no part in what is
    predicted; how far their energies are from it says how certain it is.

    With an energy network the atomic energies of the fast mode are its own. By how much their sum differs from that of
    the network of the Fock matrix is the learned difference of another method to the one of the Fock matrix.

    Args:
        basis: the AO basis.
        elements: atomic numbers that are covered.
        config: size of the network.
        baseline: kind of F0, see `mlsemi.baseline.model.KINDS`.
        overlap_floor: eigenvalue of S below which the predicted F is not believed, see
            `mlsemi.eigen.dependencies.lift_near_dependencies`; zero believes it everywhere.
        members: sizes of the further members.
        orbital_shift: what is added to all orbital energies [Eh], as F + shift S; changes nothing else.
        energy_network: have an energy network, of the size of the network.
        dtype: precision of the networks; all else is float64.
        build: compute the tables of the baseline (False when they are loaded afterwards).
    """

    def __init__(
        self,
        basis: Basis,
        elements: tuple[int, ...],
        config: NetworkConfig,
        *,
        baseline: str = "atoms",
        overlap_floor: float = 0.0,
        members: Sequence[NetworkConfig] = (),
        orbital_shift: float = 0.0,
        energy_network: bool = False,
        dtype: torch.dtype = torch.float32,
        build: bool = True,
    ) -> None:
        super().__init__()
        self.basis = basis.subset(elements)
        self.overlap_floor = overlap_floor
        self.orbital_shift = orbital_shift
        self.baseline = Baseline(baseline, self.basis, elements, build=build)
        self.network = FockNetwork(config, self.baseline.slots, dtype=dtype)
        self.energy_network: EnergyNetwork | None = None
        if energy_network:
            self.energy_network = EnergyNetwork(config, self.baseline.slots, dtype=dtype)
        self.members = nn.ModuleList([FockNetwork(member, self.baseline.slots, dtype=dtype) for member in members])

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that are covered, ascending."""
        return self.baseline.slots.elements

    @property
    def device(self) -> torch.device:
        """Where the engine is."""
        return self.baseline.density.device

    def batch(self, molecules: list) -> Batch:
        """Molecules as a batch on the device of the engine, with all pairs that network or F0 reach."""
        cutoff = max(self.network.config.cutoff, LONGEST)
        return Batch.of(molecules, self.basis, cutoff=cutoff).to(self.device)

    def integrals(self, batch: Batch, *, dipole: bool = False) -> Integrals:
        """S, F0 and, where asked, the dipole integrals; differentiable in the positions."""
        tables = plan(batch)
        overlap, kinetic, moments = one_electron(batch, tables, with_dipole=dipole)
        frames = BondFrames.of(batch, self.network.l_max)
        blocks = BlockMap.of(batch, self.baseline.slots)
        terms = self.baseline(batch, tables, kinetic, blocks, frames)
        return Integrals(overlap, moments, terms, blocks, frames)

    def forward(self, batch: Batch, *, dipole: bool = False, with_members: bool = False) -> Prediction:
        """Predicts a batch.

        Args:
            batch: from `Engine.batch`; its positions may require a gradient.
            dipole: compute dipole integrals too.
            with_members: also the energies of the further members, which have no gradient.

        Raises:
            ValueError: for elements or open shells that are not covered, or a Fock matrix that is not finite.
        """
        return self.predict(batch, self.integrals(batch, dipole=dipole), with_members=with_members)

    def predict(self, batch: Batch, exact: Integrals, *, with_members: bool = False) -> Prediction:
        """As `forward`, with what is exact at hand."""
        keep = self.dependency_filter(batch, exact.overlap)  # the same for both spins and all members
        state, energy, of_network = self._predict(self.network, batch, exact, keep)
        if self.energy_network is not None:
            energy = energy + atom_sums(self.energy_network(batch, exact.frames) - of_network, batch)
        energies = None
        if with_members:
            with torch.no_grad():
                found = [self._predict(member, batch, exact, keep)[1] for member in self.members]
            energies = torch.stack(found) if found else energy.new_zeros(0, len(energy))
        return Prediction(exact, state, energy, energies)

    def method_difference(self, batch: Batch) -> Tensor:
        """What the energy network has learned: the other method minus the one of the Fock matrix.

        It holds the difference of the atomic reference energies too; differentiable in the positions.

        Args:
            batch: from `Engine.batch`.

        Returns:
            Energies [Eh], shape (molecule,).

        Raises:
            ValueError: for an engine without an energy network.
        """
        if self.energy_network is None:
            raise ValueError("this engine has no energy network: there is no difference between methods")
        frames = BondFrames.of(batch, self.network.l_max)
        return atom_sums(self.energy_network(batch, frames) - self.network(batch, frames).atom_energy, batch)

    def dependency_filter(self, batch: Batch, overlap: Tensor) -> Tensor | None:
        """The filter of `overlap_floor`, shape (molecule, 1, ao, ao); None without a floor."""
        if not self.overlap_floor:
            return None
        return dependency_filter(overlap, batch.ao_mask, self.overlap_floor).unsqueeze(1)

    def solve(
        self, fock: Tensor, batch: Batch, exact: Integrals, keep: Tensor | None
    ) -> tuple[ElectronicState, Tensor]:
        """What the engine makes of Fock matrices.

        Args:
            fock: Fock matrices [Eh], shape (molecule, spin, ao, ao), float64.
            batch: the molecules.
            exact: from `integrals`.
            keep: from `dependency_filter`.

        Returns:
            The states, and the electronic part of the fast energy [Eh], shape (molecule,).
        """
        overlap, mask = exact.overlap.unsqueeze(1), batch.ao_mask.unsqueeze(1)
        fock = lift_near_dependencies(fock, overlap, mask, self.overlap_floor, keep=keep)
        state = solve_state(fock, exact.overlap, batch)
        energy = electronic_energy(exact.baseline.fock, fock, exact.baseline.density, state.density)
        return state.shifted(self.orbital_shift), energy

    def _predict(
        self, network: nn.Module, batch: Batch, exact: Integrals, keep: Tensor | None
    ) -> tuple[ElectronicState, Tensor, Tensor]:
        """State and energy of the fast mode that one of the networks gives, and its atomic energies."""
        output = network(batch, exact.frames)
        fock = exact.baseline.fock.unsqueeze(1) + output.correction(exact.blocks, batch, exact.overlap).double()
        state, electronic = self.solve(fock, batch, exact, keep)
        energy = fast_energy(electronic, exact.baseline.energy, output.atom_energy, batch)
        return state, energy, output.atom_energy
