"""Analysis: all static electronic properties of one molecule, from the matrices of any result in mlsemi's AO order.

`analyze(molecule, model.predict(molecule), model.header.basis)` gives those of a prediction; the same goes for labels,
and for a mean field of PySCF that was brought to our order.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from mlsemi.basis import Basis
from mlsemi.batch import Batch
from mlsemi.integrals import one_electron, plan, second_moments
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables
from mlsemi.properties.bond_orders import mayer_bond_orders, mayer_valences, wiberg_bond_orders
from mlsemi.properties.intrinsic import iao_populations, minimal_overlaps
from mlsemi.properties.multipoles import dipole, second_moment, traceless
from mlsemi.properties.populations import PopulationKind, loewdin_populations, mulliken_populations
from mlsemi.properties.reactivity import DEGENERATE, frontier, frontier_densities, fukui
from mlsemi.properties.spin import spin_square

DETERMINANT = 1e-4
"""Largest element of D S D - D of one spin up to which a density is that of a determinant."""

OVERLAP_TOLERANCE = 1e-5
"""A given overlap differs by less than this from that of molecule and basis; another AO order differs by far more."""

_EDGES = ("homo", "lumo", "gap", "hardness", "electronegativity", "electrophilicity")


@dataclass(frozen=True, eq=False)
class CondensedFukui:
    """Condensed Fukui functions of the atoms, of frozen frontier orbitals; each of shape (atom,), adds up to one.

    Attributes:
        minus: f-, for attack by electrophiles.
        plus: f+, for attack by nucleophiles.
        zero: f0, for attack by radicals.
    """

    minus: np.ndarray
    plus: np.ndarray
    zero: np.ndarray


@dataclass(frozen=True, eq=False)
class Analysis:
    """Static electronic properties of one molecule in atomic units; definitions in `mlsemi.properties`.

    A field is None where the result has no orbitals, or there is no such orbital; charges and spins of IAOs are None
    without a minimal basis for an element, or for a density that is not that of a determinant; `notes` says which.

    Attributes:
        dipole: dipole moment about the origin of coordinates [e bohr], shape (3,).
        second_moment: second moment of the charge about the origin [e bohr^2], shape (3, 3).
        quadrupole: traceless quadrupole moment (Buckingham) about the origin [e bohr^2], shape (3, 3).
        charges_mulliken: Mulliken charges [e], shape (atom,).
        charges_loewdin: Loewdin charges [e], shape (atom,).
        charges_iao: charges of the intrinsic atomic orbitals [e], shape (atom,).
        spins_mulliken: alpha minus beta electrons on each atom after Mulliken, shape (atom,).
        spins_loewdin: the same after Loewdin.
        spins_iao: the same of the intrinsic atomic orbitals.
        spin_square: <S^2> of the determinant.
        bond_orders_mayer: Mayer bond orders, zero diagonal, shape (atom, atom).
        bond_orders_wiberg: Wiberg bond orders in the AOs after Loewdin, zero diagonal, shape (atom, atom).
        valences: total valence of each atom after Mayer, shape (atom,).
        free_valences: what of it is not in bonds, shape (atom,).
        homo: energy of the highest occupied orbital of either spin [Eh].
        lumo: energy of the lowest empty orbital of either spin [Eh].
        gap: LUMO minus HOMO [Eh].
        hardness: (I - A) / 2 with I = -HOMO and A = -LUMO [Eh].
        electronegativity: (I + A) / 2 [Eh].
        electrophilicity: electronegativity squared over 2 (I - A) [Eh]; None without a gap.
        fukui_mulliken: condensed Fukui functions by Mulliken populations.
        fukui_loewdin: condensed Fukui functions by Loewdin populations.
        homo_degeneracy: number of orbitals in the set of the HOMO, over which the Fukui functions are averaged.
        lumo_degeneracy: the same of the LUMO.
        notes: what is missing, and why.
    """

    dipole: np.ndarray
    second_moment: np.ndarray
    quadrupole: np.ndarray
    charges_mulliken: np.ndarray
    charges_loewdin: np.ndarray
    charges_iao: np.ndarray | None
    spins_mulliken: np.ndarray
    spins_loewdin: np.ndarray
    spins_iao: np.ndarray | None
    spin_square: float
    bond_orders_mayer: np.ndarray
    bond_orders_wiberg: np.ndarray
    valences: np.ndarray
    free_valences: np.ndarray
    homo: float | None = None
    lumo: float | None = None
    gap: float | None = None
    hardness: float | None = None
    electronegativity: float | None = None
    electrophilicity: float | None = None
    fukui_mulliken: CondensedFukui | None = None
    fukui_loewdin: CondensedFukui | None = None
    homo_degeneracy: int | None = None
    lumo_degeneracy: int | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """As plain data: lists, numbers and None."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


def analyze(molecule: Molecule, observables: Observables, basis: Basis) -> Analysis:
    """All static electronic properties of a result, whichever method or mode it is of.

    Args:
        molecule: its geometry, charge and spin.
        observables: density needed, orbitals wanted, in mlsemi's AO order; of one or two spins.
        basis: basis set of the AOs.

    Returns:
        The properties; time and memory are those of a few matrix products and integrals.

    Raises:
        ValueError: for observables without a density, or matrices that do not fit molecule and basis.
    """
    density, given, orbitals = _tensors(molecule, observables, basis)
    batch = Batch.of([molecule], basis, cutoff=0.0)
    with torch.no_grad():
        tables = plan(batch)
        overlap, _, dipoles = one_electron(batch, tables, with_dipole=True)
        assert dipoles is not None
        if given is not None:
            _check_overlap(given, overlap, basis)
            overlap = given
        seconds = second_moments(batch, tables)
        found = _of_density(density, overlap, dipoles, seconds, batch)
        found |= _intrinsic(density, overlap, batch)
        notes = found.pop("notes")
        if orbitals is None:
            notes += ("the result has no orbital energies, coefficients and occupations: nothing of frontier orbitals",)
        else:
            found |= _of_orbitals(*orbitals, overlap, batch)
    return Analysis(**found, notes=notes)


def _tensors(
    molecule: Molecule, o: Observables, basis: Basis
) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor, Tensor] | None]:
    """Density, overlap, and energies, coefficients and occupations of orbitals, each as a batch of one."""
    n = sum(basis.n_ao(z) for z in molecule.numbers.tolist())
    if o.density is None:
        raise ValueError("observables hold no density, which all of these properties need")
    for name, axes in (("density", 2), ("overlap", 2), ("mo_coeff", 1)):
        array = getattr(o, name)
        if array is None:
            continue
        if array.ndim < 2 or array.shape[-2:][:axes] != (n,) * axes:
            raise ValueError(
                f"{name} has shape {array.shape}, but {molecule.formula} in {basis.name} has {n} AOs: are molecule and "
                "basis those of the result?"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds values that are not finite")
    if o.density.ndim != 3 or o.density.shape[0] not in (1, 2):
        raise ValueError(f"density must have shape (spin, ao, ao) with one or two spins, got {o.density.shape}")

    def one(array: np.ndarray) -> Tensor:
        return torch.tensor(array, dtype=torch.float64).unsqueeze(0)

    complete = o.mo_energy is not None and o.mo_coeff is not None and o.mo_occ is not None
    orbitals = (one(o.mo_energy), one(o.mo_coeff), one(o.mo_occ)) if complete else None  # type: ignore[arg-type]
    return one(o.density), None if o.overlap is None else one(o.overlap), orbitals


def _check_overlap(given: Tensor, computed: Tensor, basis: Basis) -> None:
    worst = float((given - computed).abs().max())
    if worst > OVERLAP_TOLERANCE:
        raise ValueError(
            f"overlap of the observables differs by up to {worst:.1e} from that of the molecule in {basis.name}: "
            "another geometry, basis or AO order (see mlsemi.layout.AOLayout.from_pyscf)"
        )


def _of_density(density: Tensor, overlap: Tensor, dipoles: Tensor, seconds: Tensor, batch: Batch) -> dict:
    """What needs the density only."""
    total = density.sum(1)
    unpaired = density[:, 0] - density[:, 1] if density.shape[1] == 2 else torch.zeros_like(total)
    second = second_moment(total, seconds, batch)
    valences = mayer_valences(density, overlap, batch)
    return {
        "dipole": _array(dipole(total, dipoles, batch)[0]),
        "second_moment": _array(second[0]),
        "quadrupole": _array(traceless(second)[0]),
        "charges_mulliken": _array(batch.numbers - mulliken_populations(total, overlap, batch)),
        "charges_loewdin": _array(batch.numbers - loewdin_populations(total, overlap, batch)),
        "spins_mulliken": _array(mulliken_populations(unpaired, overlap, batch)),
        "spins_loewdin": _array(loewdin_populations(unpaired, overlap, batch)),
        "spin_square": float(spin_square(density, overlap, batch)[0]),
        "bond_orders_mayer": _array(mayer_bond_orders(density, overlap, batch)[0]),
        "bond_orders_wiberg": _array(wiberg_bond_orders(density, overlap, batch)[0]),
        "valences": _array(valences.total),
        "free_valences": _array(valences.free),
    }


def _intrinsic(density: Tensor, overlap: Tensor, batch: Batch) -> dict:
    """Charges and spins of intrinsic atomic orbitals, or why there are none."""
    d = density * (density.shape[1] / 2)
    if float((d @ overlap.unsqueeze(1) @ d - d).abs().max()) > DETERMINANT:
        why = "the density is not that of a determinant"
    else:
        try:
            electrons = iao_populations(density, overlap, minimal_overlaps(batch), batch)
        except ValueError as error:
            why = str(error)
        else:
            spins = electrons[0] - electrons[1] if len(electrons) == 2 else torch.zeros_like(electrons[0])
            charges = batch.numbers - electrons.sum(0)
            return {"charges_iao": _array(charges), "spins_iao": _array(spins), "notes": ()}
    return {"charges_iao": None, "spins_iao": None, "notes": (f"no charges of intrinsic atomic orbitals: {why}",)}


def _of_orbitals(mo_energy: Tensor, mo_coeff: Tensor, mo_occ: Tensor, overlap: Tensor, batch: Batch) -> dict:
    """What needs orbitals."""
    edges = frontier(mo_energy, mo_occ, batch)
    found: dict = {name: _number(getattr(edges, name)) for name in _EDGES}
    if found["gap"] is None:
        return found
    near = (mo_energy - edges.homo).abs() <= DEGENERATE, (mo_energy - edges.lumo).abs() <= DEGENERATE
    found["homo_degeneracy"] = int((near[0] & (mo_occ > 0)).sum())
    found["lumo_degeneracy"] = int((near[1] & (mo_occ == 0)).sum())
    densities = frontier_densities(mo_energy, mo_coeff, mo_occ, batch)
    kinds: tuple[PopulationKind, ...] = ("mulliken", "loewdin")
    for kind in kinds:
        found[f"fukui_{kind}"] = CondensedFukui(*map(_array, fukui(densities, overlap, batch, kind=kind)))
    return found


def _array(x: Tensor) -> np.ndarray:
    return x.numpy().copy()


def _number(x: Tensor) -> float | None:
    value = float(x[0])
    return value if np.isfinite(value) else None


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, CondensedFukui):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return list(value) if isinstance(value, tuple) else value
