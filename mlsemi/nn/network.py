"""The network: geometry to the correction of F0, as blocks, and to the atomic energies of the fast mode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mlsemi.batch import Batch
from mlsemi.blocks import BlockMap, Blocks, Slots
from mlsemi.frames import BondFrames
from mlsemi.nn.charges import ChargePotential, ChargeTransfer, StateEmbedding, potential_matrix
from mlsemi.nn.interaction import AtomUpdate, BondUpdate, Message
from mlsemi.nn.radial import ExponentialNormal, envelope
from mlsemi.nn.readout import AtomReadout, EnergyReadout, PairReadout
from mlsemi.nn.so2 import Linear, feature_channels


@dataclass(frozen=True)
class NetworkConfig:
    """Size of a network.

    Attributes:
        natural: channels of natural parity of each l of the atom features.
        unnatural: channels of unnatural parity.
        bond: channels of the bond state: even m = 0, odd m = 0, then m = 1, 2, ...; the last one stands for all
            higher m.
        layers: rounds of messages between atoms.
        product: channels that are multiplied in the bond frame.
        radial: width of the radial embedding.
        n_radial: number of radial functions; few, and so wide ones, go on beyond the distances of the training.
        cutoff: largest distance of a pair [bohr]; beyond it the correction of a block is zero.
        reach: largest distance over which an atom sees a neighbour in one layer [bohr]; the cutoff if that is less.
        neighbours: typical number of neighbours of an atom.
        charges: see the charge of a molecule, and give ions the potential of their excess charge.
        partial_charges: give atoms partial charges, whose potential has no cutoff.
        open_shells: see the spin of a molecule, and give a Fock matrix for each spin.
    """

    natural: int = 48
    unnatural: int = 16
    bond: tuple[int, ...] = (112, 16, 64, 40, 16, 8)
    layers: int = 2
    product: int = 24
    radial: int = 64
    n_radial: int = 8
    cutoff: float = 14.0
    reach: float = 14.0
    neighbours: float = 8.0
    charges: bool = False
    partial_charges: bool = False
    open_shells: bool = False

    def bond_widths(self, l_max: int) -> list[int]:
        """Channels of the bond state [even_0, odd_0, z_1, ..., z_l_max]."""
        return [self.bond[min(k, len(self.bond) - 1)] for k in range(l_max + 2)]


@dataclass(frozen=True, eq=False)
class NetworkOutput:
    """What the network gives for a batch.

    Attributes:
        blocks: correction of F0, the mean over both spins [Eh].
        atom_energy: atomic energies of the fast mode [Eh], shape (atom,), float64.
        spin_blocks: (F_alpha - F_beta) / 2 [Eh], zero for closed shells; None if the batch holds no other.
        potential: of excess and partial charges at each atom [Eh], shape (atom,); None if there are none.
    """

    blocks: Blocks
    atom_energy: Tensor
    spin_blocks: Blocks | None = None
    potential: Tensor | None = None

    def correction(self, blocks: BlockMap, batch: Batch, overlap: Tensor) -> Tensor:
        """F - F0 [Eh], shape (molecule, spin, ao, ao); the spin axis has one entry without `spin_blocks`.

        Args:
            blocks: block map of the batch.
            batch: the molecules.
            overlap: overlap matrices, shape (molecule, ao, ao).
        """
        mean = blocks.assemble(self.blocks)
        if self.potential is not None:
            mean = mean + potential_matrix(self.potential, overlap.to(mean.dtype), batch)
        if self.spin_blocks is None:
            return mean.unsqueeze(1)
        difference = blocks.assemble(self.spin_blocks)
        return torch.stack([mean + difference, mean - difference], dim=1)


class RadialEmbedding(nn.Module):
    """Distance and the two elements to an invariant vector of each pair.

    Args:
        config: sizes.
        n_types: number of ordered element pairs.
    """

    def __init__(self, config: NetworkConfig, n_types: int) -> None:
        super().__init__()
        self.basis = ExponentialNormal(config.n_radial, config.cutoff)
        self.from_basis = Linear(config.n_radial, config.radial)
        self.type_scale = nn.Parameter(1 + 0.5 * torch.randn(n_types, config.radial))
        self.type_shift = nn.Parameter(0.5 * torch.randn(n_types, config.radial))
        self.out = Linear(config.radial, config.radial, bias=True)

    def forward(self, distance: Tensor, pair_type: Tensor) -> Tensor:
        """Shape (pair, radial)."""
        hidden = self.from_basis(self.basis(distance)) * self.type_scale[pair_type] + self.type_shift[pair_type]
        return silu(self.out(silu(hidden)))


@dataclass(frozen=True, eq=False)
class Representation:
    """What the rounds of messages make of a batch; all readouts start from it.

    Attributes:
        feature: of the atoms, (atom, 2l + 1, channel) for each l.
        state: of the bonds, see `mlsemi.nn.so2`.
        element: index of the element of each atom, shape (atom,).
        pair_type: ordered element pair of each bond, shape (pair,).
        near: envelope of each bond that ends at `reach`, shape (pair,).
    """

    feature: list[Tensor]
    state: list[Tensor]
    element: Tensor
    pair_type: Tensor
    near: Tensor

    @property
    def invariant(self) -> Tensor:
        """Scalars of the atoms, shape (atom, channel)."""
        return self.feature[0][:, 0]


class Trunk(nn.Module):
    """Geometry to features of atoms and states of bonds: what networks have in common before their readouts.

    A network adds its readouts, then calls `_add_state_embedding`.

    Args:
        config: sizes.
        slots: shape of the blocks and the elements.

    Raises:
        ValueError: for sizes that do not go together.
    """

    def __init__(self, config: NetworkConfig, slots: Slots) -> None:
        super().__init__()
        self.config, self.slots = config, slots
        self.l_max = 2 * slots.l_max
        n = len(slots.elements)
        channels = feature_channels(self.l_max, config.natural, config.unnatural)
        widths = config.bond_widths(self.l_max)
        _check(config, widths)
        self.channels, self.widths = channels, widths
        self.embedding = nn.Parameter(torch.randn(n, config.natural))
        self.radial = RadialEmbedding(config, n * n)
        self.first = Linear(config.radial, (self.l_max + 1) * config.natural, gain=config.neighbours**-0.5)
        self.start = Linear(config.radial, widths[0], gain=0.5)
        self.first_update = AtomUpdate(channels)
        self.bonds = nn.ModuleList(
            [BondUpdate(channels, widths, config.radial, config.product) for _ in range(config.layers + 1)]
        )
        self.messages = nn.ModuleList([Message(channels, widths, config.neighbours) for _ in range(config.layers)])
        self.updates = nn.ModuleList([AtomUpdate(channels) for _ in range(config.layers)])

    def _add_state_embedding(self) -> None:
        """What not every network has is made last, so that the random weights of all else do not depend on it."""
        config = self.config
        if config.charges or config.open_shells:
            self.state_embedding = StateEmbedding(
                len(self.slots.elements),
                config.natural,
                self.widths[0],
                charges=config.charges,
                open_shells=config.open_shells,
            )

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network."""
        return self.embedding.dtype

    def represent(self, batch: Batch, frames: BondFrames) -> Representation:
        """Features of atoms and states of bonds.

        Args:
            batch: the molecules, with pairs within `config.cutoff`.
            frames: bond frames up to `l_max`, in the precision of the network.

        Raises:
            ValueError: for an open shell that the network does not cover.
        """
        charged, open_shells = self._special(batch)
        element = self.slots.element_index(batch.numbers)
        i, j = batch.pair
        pair_type = element[i] * len(self.slots.elements) + element[j]
        n_atoms = len(element)
        radial = self.radial(frames.distance, pair_type)
        near = envelope(frames.distance, min(self.config.reach, self.config.cutoff))
        scalars, begun = self.embedding[element], self.start(radial)
        if charged or open_shells:
            of_atom, of_bond = self.state_embedding(batch, element)
            scalars, begun = scalars + of_atom, begun + of_bond
        feature = self._initial(scalars, radial, near, batch.pair, frames.wigner)
        state = [begun]
        state += [radial.new_zeros(len(i), *((2,) if k > 1 else ()), w) for k, w in enumerate(self.widths) if k]
        for layer, bond in enumerate(self.bonds):
            state = bond(feature, state, radial, batch.pair, frames.wigner)
            if layer < len(self.messages):
                message = self.messages[layer](state, near, batch.pair, frames.wigner, n_atoms)
                feature = self.updates[layer](feature, message)
        return Representation(feature, state, element, pair_type, near)

    def _special(self, batch: Batch) -> tuple[bool, bool]:
        """Whether the batch holds ions that the network is to see, and whether it holds open shells."""
        for molecule in batch.molecules:
            if molecule.spin and not self.config.open_shells:
                raise ValueError(
                    f"{molecule.name or molecule.formula} has {molecule.spin} unpaired electrons, but this network is "
                    "for closed shells only (open_shells = false)"
                )
        return self.config.charges and any(m.charge for m in batch.molecules), any(m.spin for m in batch.molecules)

    def _initial(
        self, scalars: Tensor, radial: Tensor, near: Tensor, pair: Tensor, wigner: tuple[Tensor, ...]
    ) -> list[Tensor]:
        """Scalars of each atom, and radial functions times spherical harmonics summed over the neighbours."""
        n_atoms, natural = len(scalars), self.config.natural
        weights = (self.first(radial) * near[:, None]).view(-1, self.l_max + 1, natural)
        feature, message = [], []
        for l, (n, u) in enumerate(self.channels):
            # the m = 0 column of the Wigner matrix is the spherical harmonic of the bond
            term = wigner[l][:, :, l, None] * weights[:, l, None, :]
            summed = term.new_zeros(n_atoms, 2 * l + 1, n).index_add(0, pair[0], term)
            message.append(torch.cat([summed, summed.new_zeros(n_atoms, 2 * l + 1, u)], -1) if u else summed)
            feature.append(torch.zeros_like(message[-1]))
        feature[0] = scalars[:, None]
        return self.first_update(feature, message)


class FockNetwork(Trunk):
    """dF(R): equivariant under rotation, reflection, translation and permutation by construction.

    Args:
        config: sizes.
        slots: shape of the blocks and the elements.
        dtype: precision of weights and features.

    Raises:
        ValueError: for sizes that do not go together.
    """

    def __init__(self, config: NetworkConfig, slots: Slots, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, slots)
        n, channels, widths = len(slots.elements), self.channels, self.widths
        self.pair_readout = PairReadout(slots, widths, n * n)
        self.atom_readout = AtomReadout(slots, channels)
        self.energy_readout = EnergyReadout(config.natural, widths[0], n)
        self._add_state_embedding()
        if config.charges:
            self.charge_potential = ChargePotential(config.natural, n)
        if config.partial_charges:
            self.charge_transfer = ChargeTransfer(widths[0], n)
        if config.open_shells:
            self.spin_pair_readout = PairReadout(slots, widths, n * n)
            self.spin_atom_readout = AtomReadout(slots, channels)
        # constant matrices are made in float64 and rounded once
        self.to(dtype)

    def forward(self, batch: Batch, frames: BondFrames) -> NetworkOutput:
        """Blocks of dF and atomic energies.

        Args:
            batch: the molecules, with pairs within `config.cutoff`.
            frames: float64 bond frames up to `l_max`.

        Raises:
            ValueError: for an open shell that the network does not cover.
        """
        charged, open_shells = self._special(batch)
        frames = frames.to_dtype(self.dtype)
        seen = self.represent(batch, frames)
        i = batch.pair[0]
        cut = envelope(frames.distance, self.config.cutoff)
        rotation = frames.slot_rotation(self.slots)

        def read(pair_readout: PairReadout, atom_readout: AtomReadout) -> Blocks:
            block = pair_readout(seen.state, seen.pair_type, frames.distance) * cut[:, None, None]
            block = rotation @ block @ rotation.mT
            diagonal = atom_readout(seen.feature, seen.element)
            return Blocks(diagonal, 0.5 * (block + block.index_select(0, batch.reverse).mT))

        spin_blocks = None
        if open_shells:
            spin_blocks = read(self.spin_pair_readout, self.spin_atom_readout)
            # of closed shells in the batch, too, which have no difference of the spins
            is_open = (batch.spin != 0).to(self.dtype)[batch.molecule][:, None, None]
            spin_blocks = Blocks(spin_blocks.diagonal * is_open, spin_blocks.off_diagonal * is_open[i])
        return NetworkOutput(
            read(self.pair_readout, self.atom_readout),
            self.energy_readout(seen.invariant, seen.element, seen.state[0], seen.pair_type, seen.near, i),
            spin_blocks,
            self._potential(seen, batch, charged=charged),
        )

    def _potential(self, seen: Representation, batch: Batch, *, charged: bool) -> Tensor | None:
        """Of all charges at each atom [Eh], shape (atom,)."""
        found = self.charge_potential(seen.invariant, seen.element, batch) if charged else None
        if not self.config.partial_charges:
            return found
        partial = self.charge_transfer(seen.state[0], seen.pair_type, seen.near, seen.element, batch)
        return partial if found is None else found + partial


class EnergyNetwork(Trunk):
    """Atomic energies and nothing else: takes the place of those of a `FockNetwork` where F is to stay.

    The arguments are those of `FockNetwork`.
    """

    def __init__(self, config: NetworkConfig, slots: Slots, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, slots)
        self.energy_readout = EnergyReadout(config.natural, self.widths[0], len(slots.elements))
        self._add_state_embedding()
        self.to(dtype)

    @classmethod
    def of(cls, network: FockNetwork) -> EnergyNetwork:
        """The one that gives the same energies as a network of Fock matrices, with weights of its own."""
        made = cls(network.config, network.slots, dtype=network.dtype)
        weights = network.state_dict()
        made.load_state_dict({name: weights[name] for name in made.state_dict()})
        return made

    def forward(self, batch: Batch, frames: BondFrames) -> Tensor:
        """Atomic energies [Eh], shape (atom,), float64.

        Args:
            batch: the molecules, with pairs within `config.cutoff`.
            frames: float64 bond frames up to `l_max`.

        Raises:
            ValueError: for an open shell that the network does not cover.
        """
        seen = self.represent(batch, frames.to_dtype(self.dtype))
        return self.energy_readout(
            seen.invariant, seen.element, seen.state[0], seen.pair_type, seen.near, batch.pair[0]
        )


def _check(config: NetworkConfig, widths: list[int]) -> None:
    """Refuses what would fail somewhere inside."""
    least = {"natural": 1, "unnatural": 0, "layers": 0, "product": 0, "radial": 1, "n_radial": 2}
    for name, value in least.items():
        if getattr(config, name) < value:
            raise ValueError(f"network: {name}={getattr(config, name)} must be {value} at least")
    if min(config.bond) < 0:
        raise ValueError(f"network: bond={list(config.bond)} must hold numbers of channels, none of them negative")
    for name in ("cutoff", "reach", "neighbours"):
        if not getattr(config, name) > 0:
            raise ValueError(f"network: {name}={getattr(config, name)} must be positive")
    if config.product > min(widths[2:4], default=config.product):
        raise ValueError(
            f"network: product={config.product} is more than the channels of m = 1 and m = 2, {widths[2:4]}: make it "
            "smaller, or `bond` wider"
        )
