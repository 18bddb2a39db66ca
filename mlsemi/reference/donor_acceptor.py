"""Donor-acceptor (hyperconjugation) energies: second-order perturbation between the orbitals of a Lewis structure.

Localized occupied orbitals are rotations of the occupied ones: between them and any virtual orbital F is zero, and so
would be every E(2). What interacts are the strictly localized orbitals of a Lewis structure, and these are made here:

1. The intrinsic atomic orbitals (IAOs) span the occupied orbitals exactly; F and the density in them are exact.
2. Each intrinsic bond orbital says what it is: core, lone pair (one atom) or bond (its two main atoms). Where an atom
   has more of them than valence orbitals, those of which it has least are lone pairs of the other atom, such as that
   of nitrogen in an amide. It is cut to these atoms; what is left of it on an atom is a hybrid.
3. The hybrids of an atom are made orthogonal to its core and symmetrically among themselves; lone pairs of an atom are
   those that diagonalize F among them.
4. Bond and antibond are the two combinations of its hybrids that diagonalize the density. What an atom has left over is
   an empty valence orbital, as in BH3.

All orbitals are orthonormal and of one atom or two; the energy of a donor i with n electrons in an acceptor j is

    E(2) = -n F_ij^2 / (e_j - e_i),   e = <i|F|i>.

The form is that of natural bond orbital (NBO) analysis (Reed, Curtiss, Weinhold, Chem. Rev. 88, 899 (1988)), but these
are not NBOs: atoms are represented by IAOs instead of natural atomic orbitals, the Lewis structure comes from IBOs
instead of a search through the density, hybrids are weighted alike, and there are no Rydberg acceptors, which IAOs do
not span. The energies are not NBO's: compare them among molecules and states, not with those of another analysis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlsemi.basis import Basis
from mlsemi.molecule import Molecule, symbol_of
from mlsemi.observables import Observables
from mlsemi.reference.localization import ONE_CENTRE, Case, localize
from mlsemi.state import ElectronicState

_DEPENDENT = 0.05
"""Least eigenvalue of the overlap of the hybrids of an atom: below it there are more bonds than directions for them."""

_ALIKE = 0.01
"""Shares of an atom in two orbitals that differ by less than this do not tell a bond from a lone pair."""


@dataclass(frozen=True, eq=False)
class LewisOrbitals:
    """Strictly localized orbitals of one spin, occupied ones first; orthonormal, together they span the IAOs.

    Attributes:
        coefficients: in mlsemi's AO order, shape (ao, orbital).
        atoms: one atom, or two, of each.
        labels: such as 'core O3', 'lone pair O3 (2)', 'bond C1-O3', 'antibond C1-O3', 'empty B1'; atoms count from 1,
            what has the same name by rising energy.
        kinds: the first part of the labels.
        n_occupied: number of orbitals of the Lewis structure.
        electrons: electrons that an occupied orbital holds at most, 2 or 1.
        occupations: electrons in each: near `electrons` in a good Lewis structure, near 0 for acceptors.
        fock: F between them [Eh], shape (orbital, orbital).
        unique: whether the underlying intrinsic bond orbitals are unique.
    """

    coefficients: np.ndarray
    atoms: tuple[tuple[int, ...], ...]
    labels: tuple[str, ...]
    kinds: tuple[str, ...]
    n_occupied: int
    electrons: float
    occupations: np.ndarray
    fock: np.ndarray
    unique: bool

    @property
    def energies(self) -> np.ndarray:
        """<i|F|i> [Eh], shape (orbital,)."""
        return np.diag(self.fock)

    @property
    def lewis_share(self) -> float:
        """Share of the electrons that the Lewis structure holds; below about 0.98 it says little."""
        return float(self.occupations[: self.n_occupied].sum() / self.occupations.sum())


@dataclass(frozen=True)
class Interaction:
    """A donor and an acceptor.

    Attributes:
        donor, acceptor: their labels.
        energy: E(2) [Eh], negative; nan if the acceptor does not lie above the donor, where there is no perturbation.
        coupling: <donor| F |acceptor> [Eh], of a sign that is a matter of phases.
        gap: energy of the acceptor less that of the donor [Eh].
        geminal: whether they share an atom; else they are vicinal or remote.
        spin: 0 (alpha, or both spins) or 1 (beta).
    """

    donor: str
    acceptor: str
    energy: float
    coupling: float
    gap: float
    geminal: bool
    spin: int


def interactions(
    state: Observables | ElectronicState,
    molecule: Molecule,
    basis: Basis,
    *,
    threshold: float = 2e-4,
    geminal: bool = True,
) -> list[Interaction]:
    """All donor-acceptor energies above a threshold, the strongest first; those of both spins in an open shell.

    Args:
        state: a state with orbitals and Fock matrix.
        molecule: its molecule.
        basis: its basis.
        threshold: least -E(2) [Eh].
        geminal: also those of a donor and an acceptor that share an atom.

    Raises:
        ValueError: as `lewis_orbitals`, or for a negative threshold.
    """
    if threshold < 0:
        raise ValueError(f"threshold={threshold:g} must not be negative")
    coefficients = state.mo_coeff
    if coefficients is None:
        raise ValueError("donor-acceptor energies need mo_coeff, mo_occ and fock, and the observables lack them")
    n_spins = coefficients.shape[-3]
    found = []
    for spin in range(n_spins):
        orbitals = lewis_orbitals(state, molecule, basis, spin=spin)
        found += [i for i in _of_spin(orbitals, spin) if (geminal or not i.geminal) and not i.energy > -threshold]
    return sorted(found, key=lambda i: (np.isnan(i.energy), i.energy, i.donor, i.acceptor))


def lewis_orbitals(
    state: Observables | ElectronicState, molecule: Molecule, basis: Basis, *, spin: int = 0
) -> LewisOrbitals:
    """The orbitals of the Lewis structure that the intrinsic bond orbitals of one spin say.

    Raises:
        ValueError: for what `localize` refuses, or a state without a Lewis structure of two-centre bonds: more bonds
            and lone pairs at an atom than valence orbitals.
    """
    case = Case(state, molecule, basis, spin)
    if case.occupied.shape[1] == 0:
        raise ValueError(f"{molecule.name or molecule.formula} has no electrons of spin {spin}")
    local = localize(state, molecule, basis, spin=spin)
    project = case.iaos.T @ case.overlap
    inside = project @ case.layout.to_pyscf(local.coefficients, axes=(-2,))
    fock = case.iaos.T @ case.fock @ case.iaos
    occupied = project @ case.occupied
    density = occupied @ occupied.T
    structure = _Structure(molecule, case.iao_atom, fock, density)
    for i, atoms in enumerate(_atoms_of(local.populations, case.n_core, np.bincount(case.iao_atom))):
        structure.add(inside[:, i], atoms, core=i < case.n_core)
    orbitals, atoms, kinds = structure.orbitals()
    names = ["-".join(f"{symbol_of(int(molecule.numbers[a]))}{a + 1}" for a in sorted(member)) for member in atoms]
    matrix = orbitals.T @ fock @ orbitals
    labels = _numbered([f"{kind} {name}" for kind, name in zip(kinds, names, strict=True)], np.diag(matrix))
    return LewisOrbitals(
        coefficients=case.layout.from_pyscf(case.iaos @ orbitals, axes=(-2,)),
        atoms=tuple(atoms),
        labels=labels,
        kinds=tuple(kinds),
        n_occupied=inside.shape[1],
        electrons=case.electrons,
        occupations=case.electrons * np.einsum("mi,mn,ni->i", orbitals, density, orbitals),
        fock=matrix,
        unique=local.unique,
    )


def _atoms_of(shares: np.ndarray, n_core: int, room: np.ndarray) -> list[tuple[int, ...]]:
    """Atoms of each intrinsic bond orbital: one, or two if the second has a share worth the name, and room for it.

    Args:
        shares: of the atoms in each orbital, core orbitals first, shape (orbital, atom).
        n_core: number of core orbitals.
        room: number of minimal orbitals of each atom, shape (atom,).
    """
    order = np.argsort(-shares, axis=1, kind="stable")
    found = []
    for i, (first, *rest) in enumerate(order.tolist()):
        two = i >= n_core and rest and shares[i, rest[0]] >= ONE_CENTRE
        found.append((first, rest[0]) if two else (first,))
    for atom, most in enumerate(room.tolist()):
        excess = sum(atom in atoms for atoms in found) - most
        lesser = sorted((shares[i, atom], i) for i, atoms in enumerate(found) if atoms[1:] == (atom,))
        # which of equal ones are bonds would be a matter of choice: such a molecule has no Lewis structure
        if 0 < excess <= len(lesser) and (excess == len(lesser) or lesser[excess][0] - lesser[excess - 1][0] > _ALIKE):
            for _, i in lesser[:excess]:
                found[i] = found[i][:1]
    return found


def _numbered(names: list[str], energies: np.ndarray) -> tuple[str, ...]:
    """Names that are all different: those that occur more than once get a number, by rising energy."""
    out = list(names)
    for name in set(names):
        members = [k for k, other in enumerate(names) if other == name]
        for n, k in enumerate(sorted(members, key=lambda k: energies[k]), start=1):
            out[k] = f"{name} ({n})" if len(members) > 1 else name
    return tuple(out)


def _of_spin(orbitals: LewisOrbitals, spin: int) -> list[Interaction]:
    """All pairs of an occupied orbital that is not core and an empty one of other atoms."""
    found = []
    energies = orbitals.energies
    for i in range(orbitals.n_occupied):
        for j in range(orbitals.n_occupied, len(energies)):
            shared = set(orbitals.atoms[i]) & set(orbitals.atoms[j])
            if orbitals.kinds[i] == "core" or set(orbitals.atoms[i]) == set(orbitals.atoms[j]):
                continue
            gap, coupling = float(energies[j] - energies[i]), float(orbitals.fock[i, j])
            energy = -orbitals.electrons * coupling**2 / gap if gap > 0 else float("nan")
            found.append(Interaction(orbitals.labels[i], orbitals.labels[j], energy, coupling, gap, bool(shared), spin))
    return found


class _Structure:
    """A Lewis structure while it is put together, in orthonormal IAOs."""

    def __init__(self, molecule: Molecule, iao_atom: np.ndarray, fock: np.ndarray, density: np.ndarray) -> None:
        self.molecule, self.iao_atom, self.fock, self.density = molecule, iao_atom, fock, density
        self.kinds: list[str] = []
        self.members: list[tuple[int, ...]] = []
        self.hybrids: dict[int, list[np.ndarray]] = {k: [] for k in range(molecule.n_atoms)}
        self.owners: dict[int, list[int]] = {k: [] for k in range(molecule.n_atoms)}

    def add(self, orbital: np.ndarray, atoms: tuple[int, ...], *, core: bool) -> None:
        """Cuts an intrinsic bond orbital to its atoms."""
        for a in atoms:
            hybrid = np.where(self.iao_atom == a, orbital, 0.0)
            self.hybrids[a].append(hybrid / np.linalg.norm(hybrid))
            self.owners[a].append(len(self.kinds))
        self.kinds.append("core" if core else "bond" if len(atoms) == 2 else "lone pair")
        self.members.append(atoms)

    def orbitals(self) -> tuple[np.ndarray, list[tuple[int, ...]], list[str]]:
        """Orbitals (iao, orbital), their atoms and kinds: those of the structure, then antibonds and empty ones."""
        own: list[list[np.ndarray]] = [[] for _ in self.kinds]
        empty: list[tuple[np.ndarray, int]] = []
        for a, hybrids in self.hybrids.items():
            orthogonal, rest = self._on_atom(a, hybrids)
            for owner, hybrid in zip(self.owners[a], orthogonal.T, strict=True):
                own[owner].append(hybrid)
            empty += [(column, a) for column in rest.T]
        filled, anti = [], []
        for k, hybrids in enumerate(own):
            pair = np.stack(hybrids, axis=1)
            _, vectors = np.linalg.eigh(pair.T @ self.density @ pair)
            filled.append(pair @ vectors[:, -1])
            if len(hybrids) == 2:
                anti.append((pair @ vectors[:, 0], self.members[k], "antibond"))
        anti += [(column, (a,), "empty") for column, a in empty]
        columns = np.stack([*filled, *(column for column, _, _ in anti)], axis=1)
        return columns, [*self.members, *(m for _, m, _ in anti)], [*self.kinds, *(kind for _, _, kind in anti)]

    def _on_atom(self, atom: int, hybrids: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Orthonormal hybrids of an atom, and the orbitals that are left over by rising energy."""
        space = np.eye(len(self.iao_atom))[:, self.iao_atom == atom]
        if not hybrids:
            return space[:, :0], self._canonical(space)
        where = f"{symbol_of(int(self.molecule.numbers[atom]))}{atom + 1}"
        kinds = [self.kinds[owner] for owner in self.owners[atom]]
        core, lone = ([k for k, kind in enumerate(kinds) if kind == name] for name in ("core", "lone pair"))
        matrix = np.stack(hybrids, axis=1)
        inner = np.linalg.qr(matrix[:, core])[0]
        outer = [k for k in range(len(kinds)) if k not in core]
        matrix[:, outer] -= inner @ (inner.T @ matrix[:, outer])
        values, vectors = np.linalg.eigh(matrix.T @ matrix)
        if matrix.shape[1] > space.shape[1] or values[0] < _DEPENDENT:
            raise ValueError(
                f"{self.molecule.name or self.molecule.formula} has no Lewis structure of two-centre bonds: atom "
                f"{where} has {matrix.shape[1]} cores, lone pairs and bonds, and its {space.shape[1]} minimal orbitals "
                "do not hold them apart"
            )
        matrix = matrix @ (vectors / np.sqrt(values)) @ vectors.T
        matrix[:, lone] = self._canonical(matrix[:, lone])
        left, _, _ = np.linalg.svd(space.T @ matrix)
        return matrix, self._canonical(space @ left[:, matrix.shape[1] :])

    def _canonical(self, orbitals: np.ndarray) -> np.ndarray:
        """The rotation of some orbitals that diagonalizes F."""
        return orbitals @ np.linalg.eigh(orbitals.T @ self.fock @ orbitals)[1]
