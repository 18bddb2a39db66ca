"""PySCF: a prediction as a mean-field object, as the start of an SCF, and mean-field objects as results of ours.

What PySCF computes after an SCF (TDDFT, MP2, CCSD, NMR, analysis, cubes) goes on from the object that `to_pyscf` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyscf import dft, gto, scf

from mlsemi.basis import Basis, Shell
from mlsemi.batch import Batch
from mlsemi.integrals import one_electron, plan
from mlsemi.molecule import Molecule, symbol_of
from mlsemi.observables import Observables
from mlsemi.properties.multipoles import dipole
from mlsemi.properties.populations import (
    loewdin_charges,
    loewdin_populations,
    mulliken_charges,
    mulliken_populations,
)
from mlsemi.properties.spin import spin_square
from mlsemi.reference.mean_field import to_pyscf_mole
from mlsemi.state import ElectronicState

if TYPE_CHECKING:
    from mlsemi.model import Mode, Model

_SAME = 1e-6
"""Exponents (relatively) and coefficients that differ by less are those of the same function: PySCF's table of STO-3G
has 7 digits where that of the Basis Set Exchange has 10."""


@dataclass(frozen=True, eq=False)
class AOMap:
    """How the AOs of a PySCF Mole and those of a basis of ours correspond: PySCF's AO i is sign[i] times ours order[i].

    Attributes:
        order: our index of each of PySCF's AOs, shape (ao,).
        sign: 1 or -1, shape (ao,): some tables of PySCF have functions of the opposite sign.
    """

    order: np.ndarray
    sign: np.ndarray

    @classmethod
    def of(cls, mol: gto.Mole, basis: Basis) -> AOMap:
        """The map of the AOs of a Mole to those of a basis, found by comparing functions, not names.

        Raises:
            ValueError: if an atom of the Mole does not have exactly the functions of the basis.
        """
        orders, signs = [], []
        start = 0  # of the atom, the same in both since the atoms are
        for atom, theirs in enumerate(_shells_of_atoms(mol)):
            ours = basis.shells(gto.charge(mol.atom_symbol(atom)))
            try:
                order, sign = _match(ours, theirs)
            except ValueError as error:
                raise ValueError(
                    f"atom {atom} ({mol.atom_symbol(atom)}) of mol {error} the basis {basis.name!r}; build mol in it"
                ) from error
            orders.append(start + order)
            signs.append(sign)
            start += len(order)
        return cls(np.concatenate(orders), np.concatenate(signs))

    def to_pyscf(self, array: np.ndarray, axes: Sequence[int] = (-2, -1)) -> np.ndarray:
        """An array with its AO axes (of coefficients of AOs, or of matrices over them) brought to PySCF's AOs."""
        for axis in axes:
            array = np.take(array, self.order, axis=axis) * self._along(array, axis)
        return array

    def from_pyscf(self, array: np.ndarray, axes: Sequence[int] = (-2, -1)) -> np.ndarray:
        """Inverse of `to_pyscf`."""
        inverse = np.argsort(self.order)
        for axis in axes:
            array = np.take(array * self._along(array, axis), inverse, axis=axis)
        return array

    def _along(self, array: np.ndarray, axis: int) -> np.ndarray:
        return np.expand_dims(self.sign, tuple(range(1, array.ndim - axis % array.ndim)))


def _match(ours: Sequence[Shell], theirs: Sequence[Shell]) -> tuple[np.ndarray, np.ndarray]:
    """Order and sign, as in `AOMap`, of the AOs of one atom."""
    begins = np.cumsum([0] + [2 * s.l + 1 for s in ours])
    free = list(range(len(ours)))
    order, sign = [], []
    for shell in theirs:
        found = [(k, factor) for k in free if (factor := _same(ours[k], shell))]
        if not found:
            exponents = ", ".join(f"{a:g}" for a in shell.exponents[:4])
            raise ValueError(f"has a shell of l={shell.l} with exponents {exponents}, which is not one of")
        k, factor = found[0]
        free.remove(k)
        m = [2, 0, 1] if shell.l == 1 else list(range(2 * shell.l + 1))  # PySCF has x, y, z; we have y, z, x
        order += [int(begins[k]) + i for i in m]
        sign += [float(factor)] * len(m)
    if free:
        raise ValueError(f"lacks {len(free)} shells of")
    return np.array(order), np.array(sign)


def _same(ours: Shell, theirs: Shell) -> int:
    """1 if two shells are the same, -1 if one is the negative of the other, 0 if they are different."""
    if ours.l != theirs.l or len(ours.exponents) != len(theirs.exponents):
        return 0
    a, b = (np.array(sorted(zip(s.exponents, s.coefficients, strict=True))).T for s in (ours, theirs))
    if not np.allclose(a[0], b[0], rtol=_SAME, atol=0.0):
        return 0
    return next((s for s in (1, -1) if np.allclose(a[1], s * b[1], rtol=0.0, atol=_SAME)), 0)


def _shells_of_atoms(mol: gto.Mole) -> list[list[Shell]]:
    """Shells of each atom in the order of PySCF's AOs, general contractions taken apart."""
    shells: list[list[Shell]] = [[] for _ in range(mol.natm)]
    for k in range(mol.nbas):
        for coefficients in mol.bas_ctr_coeff(k).T:
            shells[mol.bas_atom(k)].append(Shell.normalized(mol.bas_angular(k), mol.bas_exp(k), coefficients))
    return shells


def to_molecule(mol: gto.Mole, *, name: str = "") -> Molecule:
    """A Mole as a Molecule.

    Raises:
        ValueError: for what is not a built Mole of a molecule, ghost atoms, core potentials or Cartesian functions.
    """
    if not isinstance(mol, gto.Mole):
        raise ValueError(f"mol must be a pyscf.gto.Mole, got {type(mol).__name__}")
    if hasattr(mol, "lattice_vectors"):
        raise ValueError("mol is a periodic cell; mlsemi is for molecules")
    if not mol._built:
        raise ValueError("mol is not built; call mol.build() first")
    if mol.has_ecp():
        raise ValueError("mol has effective core potentials; mlsemi is for all-electron basis sets")
    if mol.cart and any(mol.bas_angular(k) > 1 for k in range(mol.nbas)):
        raise ValueError("mol has Cartesian functions (cart=True); build it with cart=False")
    charges = mol.atom_charges()
    if (charges == 0).any():
        raise ValueError(f"atom {int(np.argmin(charges))} of mol is a ghost atom; mlsemi has none")
    return Molecule(charges, mol.atom_coords(), charge=mol.charge, spin=mol.spin, name=name)


def to_basis(mol: gto.Mole) -> Basis:
    """The basis set of a Mole.

    Raises:
        ValueError: if two atoms of an element have different functions, or there are functions beyond f.
    """
    elements: dict[int, tuple[Shell, ...]] = {}
    for atom, shells in enumerate(_shells_of_atoms(mol)):
        ours = tuple(sorted(shells, key=lambda s: s.l))
        z = gto.charge(mol.atom_symbol(atom))
        if ours and ours[-1].l > 3:
            raise ValueError(f"atom {atom} of mol has functions of l={ours[-1].l}; mlsemi has none beyond l=3 (f)")
        if elements.setdefault(z, ours) != ours:
            raise ValueError(f"atoms of {symbol_of(z)} in mol have different basis sets; mlsemi has one for an element")
    return Basis(mol.basis.lower() if isinstance(mol.basis, str) else "of pyscf", elements)


def to_pyscf(model: Model, molecule: Molecule | gto.Mole, *, mode: Mode = "fast") -> Any:
    """A prediction as PySCF's mean-field object of the model's method.

    Args:
        model: the model.
        molecule: a molecule, or a Mole in the basis of the model; its verbosity and memory limit are kept.
        mode: mode of the prediction; `scf` for orbitals that are converged.

    Returns:
        RHF or RKS for closed shells, UHF or UKS for open ones, with mo_coeff, mo_energy, mo_occ and e_tot in PySCF's
        conventions. `converged` is True in the scf mode only, so that PySCF's methods treat other orbitals as what they
        are. e_tot is the energy of the mode, which in the fast and composite modes of a fine-tuned model is of another
        method than the object. For Hartree-Fock based methods from a Kohn-Sham model take `.to_hf()` of it.

    Raises:
        ValueError: for what the model does not cover, or a Mole that is in another basis, symmetric, Cartesian,
            periodic, with ghost atoms or core potentials.
    """
    ours, mol = _both(model, molecule)
    found = model.predict(ours, mode=mode, estimate=False)
    return orbitals_to_pyscf(mol, model.header.basis, found, method=model.header.method, converged=mode == "scf")


def orbitals_to_pyscf(
    molecule: Molecule | gto.Mole, basis: Basis, observables: Observables, *, method: str, converged: bool = False
) -> Any:
    """Orbitals of any result as PySCF's mean-field object.

    Args:
        molecule: a molecule, or a Mole in this basis.
        basis: basis set of the result.
        observables: with mo_coeff, mo_energy and mo_occ.
        method: 'hf' or a functional in PySCF's notation.
        converged: whether the orbitals are self-consistent.

    Raises:
        ValueError: if the result has no orbitals, or the Mole is one that `to_pyscf` refuses.
    """
    coeff, energy, occ = observables.mo_coeff, observables.mo_energy, observables.mo_occ
    if coeff is None or energy is None or occ is None:
        raise ValueError("observables have no orbitals (mo_coeff, mo_energy, mo_occ) to hand to PySCF")
    mol: Any = to_pyscf_mole(molecule, basis) if isinstance(molecule, Molecule) else molecule
    if mol.symmetry:
        raise ValueError("mol has point group symmetry, but the orbitals have none; build it with symmetry=False")
    coeff = AOMap.of(mol, basis).to_pyscf(coeff, axes=(-2,))
    closed = len(coeff) == 1
    if closed and mol.spin:
        raise ValueError(f"observables have one set of orbitals, but the molecule has spin (2S) {mol.spin}")
    if method.strip().lower() == "hf":
        field = scf.RHF(mol) if closed else scf.UHF(mol)
    else:
        field = dft.RKS(mol, xc=method) if closed else dft.UKS(mol, xc=method)
    field.mo_coeff, field.mo_energy, field.mo_occ = (x[0].copy() if closed else x.copy() for x in (coeff, energy, occ))
    field.converged = converged
    if observables.energy is not None:
        field.e_tot = observables.energy
    return field


def initial_guess(model: Model, molecule: Molecule | gto.Mole, *, unrestricted: bool | None = None) -> np.ndarray:
    """The predicted density as the start of PySCF's SCF: `mf.kernel(dm0=initial_guess(model, mf.mol))`.

    Args:
        model: the model; any method in its basis can be started.
        molecule: a molecule, or a Mole in the basis of the model.
        unrestricted: two densities, alpha and beta; by default for open shells only.

    Returns:
        Density in PySCF's AOs, shape (ao, ao) for RHF and RKS, or (2, ao, ao) for the others.

    Raises:
        ValueError: for what the model does not cover, a Mole that `to_molecule` refuses or that is in another basis, or
            an open shell with unrestricted=False.
    """
    ours, mol = _both(model, molecule)
    if ours.spin and unrestricted is False:
        raise ValueError(f"unrestricted=False: the molecule has spin (2S) {ours.spin}, which takes two densities")
    density = model.predict(ours, estimate=False).density
    assert density is not None
    density = AOMap.of(mol, model.header.basis).to_pyscf(density)
    if len(density) == 2:
        return density
    return np.stack([density[0] / 2] * 2) if unrestricted else density[0]


def _both(model: Model, molecule: Molecule | gto.Mole) -> tuple[Molecule, gto.Mole]:
    """The molecule as ours and as PySCF's, which a model covers; its basis is compared before anything is computed."""
    if isinstance(molecule, Molecule):
        model.check([molecule])
        return molecule, to_pyscf_mole(molecule, model.header.basis)
    ours = to_molecule(molecule)
    model.check([ours])
    AOMap.of(molecule, model.header.basis)
    return ours, molecule


@dataclass(frozen=True, eq=False)
class MeanField:
    """A mean-field object of PySCF in our terms.

    Attributes:
        molecule: the molecule.
        basis: its basis set.
        observables: energy, orbitals, density, Fock matrix, dipole, charges in our AO order.
        method: 'hf' or the functional.
    """

    molecule: Molecule
    basis: Basis
    observables: Observables
    method: str

    @cached_property
    def batch(self) -> Batch:
        """The molecule as a batch, which the functions of `mlsemi.properties` take."""
        return Batch.of([self.molecule], self.basis)

    @cached_property
    def state(self) -> ElectronicState:
        """The state, without derivatives; orbitals that PySCF removed are of infinite energy and zero."""
        o = self.observables
        assert o.mo_coeff is not None and o.mo_energy is not None and o.mo_occ is not None
        assert o.fock is not None and o.overlap is not None and o.density is not None
        lacking = ((0, 0), (0, o.mo_coeff.shape[1] - o.mo_coeff.shape[2]))
        energy = np.pad(o.mo_energy, lacking, constant_values=np.inf)
        gaps = [
            e[n == 0].min() - e[n > 0].max() if (n == 0).any() and (n > 0).any() else np.inf
            for e, n in zip(o.mo_energy, o.mo_occ, strict=True)
        ]
        arrays = (o.fock, o.overlap, o.density, energy, np.pad(o.mo_coeff, ((0, 0), *lacking)))
        arrays += (np.pad(o.mo_occ, lacking), np.array(gaps))
        tensors = (torch.from_numpy(np.ascontiguousarray(x)).unsqueeze(0) for x in arrays)
        return ElectronicState(*tensors, ao_mask=self.batch.ao_mask)


def from_pyscf(field: Any, *, basis: Basis | None = None, build_fock: bool = False) -> MeanField:
    """A mean-field object of PySCF as a molecule, a basis, and observables.

    Args:
        field: RHF, UHF, RKS, UKS or ROHF, ROKS after `kernel` (or with orbitals that were set).
        basis: basis set whose functions those of the Mole are; by default it is made from the Mole.
        build_fock: build the Fock matrix of the density, and its residual; otherwise it is the one whose eigenvectors
            the orbitals are, S C e C^T S, which is the same for what is converged and costs nothing. Always so for
            ROHF, whose orbitals belong to no Fock matrix of one spin.

    Raises:
        ValueError: if it is periodic, complex, generalized or without orbitals, or has a Mole that `to_molecule`
            refuses, or that is not in `basis`.
    """
    coeff, energy, occ = _orbitals(field)
    mol = field.mol
    molecule = to_molecule(mol)
    basis = basis or to_basis(mol)
    mapping = AOMap.of(mol, basis)
    batch = Batch.of([molecule], basis)
    overlap = mapping.from_pyscf(np.asarray(field.get_ovlp()))
    coeff = mapping.from_pyscf(coeff, axes=(-2,))
    density = (coeff * occ[:, None, :]) @ coeff.swapaxes(-1, -2)
    restricted_open = isinstance(field, scf.rohf.ROHF)
    residual, warnings = None, ()
    if build_fock or restricted_open:
        fock = mapping.from_pyscf(_fock(field))
        commutator = fock @ density @ overlap
        residual = None if restricted_open else float(np.abs(commutator - commutator.swapaxes(-1, -2)).max())
    else:
        half = overlap @ coeff
        fock = (half * energy[:, None, :]) @ half.swapaxes(-1, -2)
    if restricted_open:
        warnings += ("orbitals of ROHF: the same for both spins, and eigenvectors of neither Fock matrix",)
    if not field.converged:
        warnings += ("the SCF of PySCF is not converged",)
    observables = Observables(
        energy=float(field.e_tot) if field.e_tot else None,
        fock=fock,
        overlap=overlap,
        density=density,
        mo_energy=energy,
        mo_coeff=coeff,
        mo_occ=occ,
        residual=residual,
        warnings=warnings,
        **_properties(density, overlap, batch),
    )
    return MeanField(molecule, basis, observables, getattr(field, "xc", "hf"))


def _orbitals(field: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients, energies [Eh] and occupations with a spin axis, in PySCF's AOs."""
    if not isinstance(field, scf.hf.SCF):
        raise ValueError(f"field must be a mean-field object of PySCF, got {type(field).__name__}")
    if hasattr(field.mol, "lattice_vectors") or isinstance(field, scf.ghf.GHF | scf.dhf.DHF):
        raise ValueError(f"field is a {type(field).__name__}: only molecular RHF, ROHF, UHF and their Kohn-Sham kin go")
    if field.mo_coeff is None or field.mo_energy is None or field.mo_occ is None:
        raise ValueError("field has no orbitals; call its kernel() first")
    coeff, energy, occ = (np.asarray(x) for x in (field.mo_coeff, field.mo_energy, field.mo_occ))
    if np.iscomplexobj(coeff):
        raise ValueError("field has complex orbitals; mlsemi has real ones")
    if isinstance(field, scf.rohf.ROHF):
        energies = [getattr(field.mo_energy, name, energy) for name in ("mo_ea", "mo_eb")]
        return np.stack([coeff] * 2), np.stack(energies), np.stack([occ > 0, occ == 2]).astype(float)
    return (coeff, energy, occ) if coeff.ndim == 3 else (coeff[None], energy[None], occ[None])


def _fock(field: Any) -> np.ndarray:
    """Fock matrices of the density with a spin axis [Eh], in PySCF's AOs."""
    density = field.make_rdm1()
    fock = np.asarray(field.get_hcore() + field.get_veff(field.mol, density))
    return fock if fock.ndim == 3 else fock[None]


def _properties(density: np.ndarray, overlap: np.ndarray, batch: Batch) -> dict[str, Any]:
    """Dipole, charges and spins of a density."""
    d, s = torch.from_numpy(density).unsqueeze(0), torch.from_numpy(overlap).unsqueeze(0)
    total, unpaired = d.sum(1), d[:, 0] - d[:, -1]
    moments = one_electron(batch, plan(batch), with_dipole=True)[2]
    assert moments is not None
    return {
        "dipole": dipole(total, moments, batch)[0].numpy(),
        "charges_mulliken": mulliken_charges(total, s, batch).numpy(),
        "charges_loewdin": loewdin_charges(total, s, batch).numpy(),
        "spins_mulliken": mulliken_populations(unpaired, s, batch).numpy(),
        "spins_loewdin": loewdin_populations(unpaired, s, batch).numpy(),
        "spin_square": float(spin_square(d, s, batch)[0]) if len(density) == 2 else 0.0,
    }
