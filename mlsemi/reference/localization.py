"""Localized orbitals: Boys, Pipek-Mezey and intrinsic bond orbitals (IBO), by PySCF, of any state.

All three maximize L = sum_i sum_A (Q^A_ii)^k over rotations of a set of orbitals: Q^A are the coordinates and k = 2
(Foster and Boys, Rev. Mod. Phys. 32, 300 (1960)), the populations of atoms and k = 2 (Pipek and Mezey, J. Chem. Phys.
90, 4916 (1989), with PySCF's meta-Loewdin populations), or those in intrinsic atomic orbitals and k = 4 (Knizia, J.
Chem. Theory Comput. 9, 4834 (2013)). PySCF's second-order solver starts from projected atomic orbitals and from
rotations of a fixed seed; sweeps of 2 x 2 rotations through all angles end each search, so that no result is a saddle
point of a pair (from its default start PySCF stops at one in NH3, with all three functionals). The best of them is
taken, and the same input gives the same result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from pyscf import gto, lo
from pyscf.data.elements import chemcore

from mlsemi.basis import Basis
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule, symbol_of
from mlsemi.observables import Observables
from mlsemi.reference.mean_field import to_pyscf_mole
from mlsemi.state import ElectronicState

LocalizationMethod = Literal["boys", "pipek-mezey", "ibo"]
OrbitalSpace = Literal["occupied", "valence-virtual", "virtual"]

ONE_CENTRE = 0.1
"""An orbital with less than this of its population on a second atom is named after one atom."""

_MAX_SWEEPS = 200
_ANGLES = 32
_SAME = 1e-6
"""Two searches with functionals this close have found the same maximum, or one that is as good."""


@dataclass(frozen=True, eq=False)
class LocalizedOrbitals:
    """Localized orbitals of one spin.

    Attributes:
        coefficients: in mlsemi's AO order, orthonormal, shape (ao, orbital); each set by rising energy, core first.
        energies: expectation values <i|F|i> [Eh], shape (orbital,).
        occupations: electrons in each: 2, or 1 in an unrestricted state, or 0, shape (orbital,).
        centres: <i|r|i> [bohr], shape (orbital, 3).
        populations: share of each atom, in IAOs (in Loewdin's orthogonalized AOs for all virtual orbitals), shape
            (orbital, atom).
        labels: what they are by these shares, such as 'core O3', 'lone pair O3', 'bond C1-O3', 'antibond C1-H4'; atoms
            are counted from 1.
        functional: value of the functional that was maximized, without the core.
        unique: whether all searches that came as far found the same orbitals (True if there was only one). If not, they
            are a matter of choice, as the turn of the three bonds of N2 about its axis is.
    """

    coefficients: np.ndarray
    energies: np.ndarray
    occupations: np.ndarray
    centres: np.ndarray
    populations: np.ndarray
    labels: tuple[str, ...]
    functional: float
    unique: bool


def localize(
    state: Observables | ElectronicState,
    molecule: Molecule,
    basis: Basis,
    *,
    method: LocalizationMethod = "ibo",
    space: OrbitalSpace = "occupied",
    spin: int = 0,
    starts: int = 3,
) -> LocalizedOrbitals:
    """Localizes the orbitals of one spin.

    Core and valence orbitals are localized apart.

    Args:
        state: a state with orbitals and Fock matrix: Observables, or an ElectronicState of a batch of one.
        molecule: its molecule.
        basis: its basis.
        method: 'boys', 'pipek-mezey' or 'ibo'.
        space: 'occupied'; 'valence-virtual', the antibonds, the part of the virtual orbitals that IAOs span; or all
            'virtual' ones.
        spin: 0 for the orbitals of a closed shell or the alpha ones, 1 for beta.
        starts: number of searches; more than one says whether the orbitals are unique.

    Raises:
        ValueError: for options or shapes that do not fit, fractional occupations, an empty space, or 'ibo' of all
            virtual orbitals, which IAOs do not span.
    """
    _check_choice("method", method, get_args(LocalizationMethod))
    _check_choice("space", space, get_args(OrbitalSpace))
    if method == "ibo" and space == "virtual":
        raise ValueError("method='ibo' needs orbitals that IAOs span: take space='valence-virtual', or method='boys'")
    if starts < 1:
        raise ValueError(f"starts={starts} must be at least 1")
    case = Case(state, molecule, basis, spin)
    core, valence = case.orbitals(space)
    if core.shape[1] + valence.shape[1] == 0:
        raise ValueError(f"{molecule.name or molecule.formula} has no {space} orbitals of spin {spin} to localize")
    parts, functional, unique = [], 0.0, True
    for part in (core, valence):
        found, functional, same = _best(case, part, method, space, starts)
        unique &= same
        energies = np.einsum("mi,mn,ni->i", found, case.fock, found)
        parts.append(found[:, np.argsort(energies, kind="stable")])
    return case.describe(np.concatenate(parts, 1), core.shape[1], space, functional, unique)


def of_state(state: ElectronicState, member: int = 0) -> Observables:
    """What localization needs of a member of a batch: matrices and orbitals without padding, detached."""
    n = int(state.ao_mask[member].sum())

    def cut(x, axes: int) -> np.ndarray:  # noqa: ANN001
        index = (member, ...) + (slice(0, n),) * axes
        return x[index].detach().cpu().numpy()

    return Observables(
        fock=cut(state.fock, 2),
        overlap=cut(state.overlap, 2),
        density=cut(state.density, 2),
        mo_energy=cut(state.mo_energy, 1),
        mo_coeff=cut(state.mo_coeff, 2),
        mo_occ=cut(state.mo_occ, 1),
    )


class Case:
    """One spin of a state in PySCF's order, with what describes its orbitals.

    Attributes:
        mol: PySCF's molecule.
        layout: the AO order.
        overlap, fock: matrices, shape (ao, ao).
        occupied, virtual: canonical orbitals, shape (ao, mo).
        n_core: number of core orbitals of this spin.
        electrons: electrons in an occupied orbital, 2 or 1.
        iaos: orthonormal intrinsic atomic orbitals, shape (ao, iao).
        iao_atom: atom of each, shape (iao,).
    """

    def __init__(self, state: Observables | ElectronicState, molecule: Molecule, basis: Basis, spin: int) -> None:
        if isinstance(state, ElectronicState):
            if len(state.density) != 1:
                raise ValueError(f"the state is of {len(state.density)} molecules; take one with of_state(state, k)")
            state = of_state(state)
        if state.mo_coeff is None or state.mo_occ is None or state.fock is None:
            raise ValueError("localized orbitals need mo_coeff, mo_occ and fock, and the observables lack one of them")
        self.layout = AOLayout(basis, molecule.numbers)
        n_spins, n_ao = state.mo_coeff.shape[:2]
        if n_ao != self.layout.n_ao:
            raise ValueError(
                f"the orbitals have {n_ao} AOs, but {molecule.name or molecule.formula} has {self.layout.n_ao} in "
                f"{basis.name}: are molecule and basis those of the state?"
            )
        if spin not in range(n_spins):
            raise ValueError(f"spin={spin} must be {'0' if n_spins == 1 else '0 (alpha) or 1 (beta)'} for this state")
        occupations = state.mo_occ[spin]
        self.electrons = 2.0 if n_spins == 1 else 1.0
        filled = np.abs(occupations - self.electrons) < 1e-8
        if not (filled | (np.abs(occupations) < 1e-8)).all():
            raise ValueError("fractional occupations: localized orbitals are those of one determinant")
        self.molecule = molecule
        self.mol = to_pyscf_mole(molecule, basis)
        self.overlap = self.mol.intor_symmetric("int1e_ovlp")
        self.fock = self.layout.to_pyscf(state.fock[spin])
        coefficients = self.layout.to_pyscf(state.mo_coeff[spin], axes=(-2,))
        self.occupied, self.virtual = coefficients[:, filled], coefficients[:, ~filled]
        self.n_core = min(chemcore(self.mol), self.occupied.shape[1])
        self.iaos, self.iao_atom = intrinsic(self.mol, self.occupied, self.overlap)

    def orbitals(self, space: OrbitalSpace) -> tuple[np.ndarray, np.ndarray]:
        """Core and other orbitals of a space, shape (ao, mo)."""
        nothing = self.occupied[:, :0]
        if space == "occupied":
            return self.occupied[:, : self.n_core], self.occupied[:, self.n_core :]
        if space == "virtual":
            return nothing, self.virtual
        # the IAOs span the occupied orbitals exactly; what they hold besides is of this many dimensions
        n = max(self.iaos.shape[1] - self.occupied.shape[1], 0)
        left, _, _ = np.linalg.svd(self.virtual.T @ self.overlap @ self.iaos, full_matrices=False)
        return nothing, self.virtual @ left[:, :n]

    def populations(self, orbitals: np.ndarray, space: OrbitalSpace) -> np.ndarray:
        """Population matrices of atoms in a set of orbitals, shape (atom, mo, mo)."""
        if space == "virtual":
            root, atom = (
                lo.orth.lowdin(np.linalg.inv(self.overlap)),
                np.array([k for k, *_ in self.mol.ao_labels(fmt=None)]),
            )
            inside = root @ orbitals
        else:
            inside, atom = self.iaos.T @ self.overlap @ orbitals, self.iao_atom
        return np.stack([inside[atom == k].T @ inside[atom == k] for k in range(self.mol.natm)])

    def positions(self, orbitals: np.ndarray) -> np.ndarray:
        """<i|r|j> [bohr], shape (3, mo, mo)."""
        with self.mol.with_common_orig((0.0, 0.0, 0.0)):
            return np.einsum("xmn,mi,nj->xij", self.mol.intor_symmetric("int1e_r", comp=3), orbitals, orbitals)

    def describe(
        self, orbitals: np.ndarray, n_core: int, space: OrbitalSpace, functional: float, unique: bool
    ) -> LocalizedOrbitals:
        """Energies, centres and labels of localized orbitals, and they themselves in mlsemi's order."""
        shares = np.einsum("aii->ia", self.populations(orbitals, space))
        kinds = [("core", "core")] * n_core
        kinds += [("lone pair", "bond") if space == "occupied" else ("empty", "antibond")] * (len(shares) - n_core)
        labels = [label(self.molecule, share, kinds=kind) for share, kind in zip(shares, kinds, strict=True)]
        n = orbitals.shape[1]
        return LocalizedOrbitals(
            coefficients=self.layout.from_pyscf(orbitals, axes=(-2,)),
            energies=np.einsum("mi,mn,ni->i", orbitals, self.fock, orbitals),
            occupations=np.full(n, self.electrons if space == "occupied" else 0.0),
            centres=np.einsum("xii->ix", self.positions(orbitals)),
            populations=shares,
            labels=tuple(labels),
            functional=functional,
            unique=unique,
        )


def intrinsic(mol: gto.Mole, occupied: np.ndarray, overlap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal IAOs (ao, iao) in PySCF's order, and the atom of each.

    Raises:
        ValueError: if the minimal basis lacks an element, or has fewer functions than there are occupied orbitals.
    """
    try:
        reference = lo.iao.reference_mol(mol)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"there is no minimal basis for IAOs of {mol.elements}: {error}") from error
    if reference.nao < occupied.shape[1]:
        raise ValueError(
            f"{occupied.shape[1]} occupied orbitals, but the minimal basis has only {reference.nao}: no IAOs span them"
        )
    iaos = lo.orth.vec_lowdin(lo.iao.iao(mol, occupied), overlap)
    return iaos, np.array([atom for atom, *_ in reference.ao_labels(fmt=None)])


def label(molecule: Molecule, shares: np.ndarray, *, kinds: tuple[str, str]) -> str:
    """Name of an orbital by the share of each atom; `kinds` are those of one centre and of two or more."""
    order = np.argsort(-shares, kind="stable")
    atoms = [k for k in order.tolist() if shares[k] >= ONE_CENTRE] or [int(order[0])]
    names = [f"{symbol_of(int(molecule.numbers[k]))}{k + 1}" for k in sorted(atoms)]
    return f"{kinds[0] if len(names) == 1 else kinds[1]} {'-'.join(names)}"


def _best(
    case: Case, orbitals: np.ndarray, method: LocalizationMethod, space: OrbitalSpace, starts: int
) -> tuple[np.ndarray, float, bool]:
    """The best of several searches, the value of its functional, and whether the others found the same."""
    if orbitals.shape[1] < 2:
        return orbitals, 0.0, True
    found = []
    generator = np.random.default_rng(7)
    for k in range(starts):
        rotation = np.linalg.qr(generator.normal(size=(orbitals.shape[1],) * 2))[0] if k else None
        localizer = _localizer(case, orbitals, method)
        start = localizer.kernel(None if rotation is None else orbitals @ rotation)
        matrices = case.positions(start) if method == "boys" else localizer.atomic_pops(case.mol, start)
        power = 4 if method == "ibo" else 2
        turn, value = sweep(matrices, power)
        found.append((start @ turn, value))
    best, value = max(found, key=lambda item: item[1])
    same = [_permutes(best.T @ case.overlap @ other) for other, v in found if abs(v - value) < _SAME * abs(value)]
    return best, value, all(same)


def _localizer(case: Case, orbitals: np.ndarray, method: LocalizationMethod) -> Any:
    """PySCF's localizer of a set of orbitals."""
    if method == "boys":
        localizer = lo.Boys(case.mol, orbitals)
    elif method == "pipek-mezey":
        localizer = lo.PipekMezey(case.mol, orbitals)
    else:
        localizer = lo.ibo.PipekMezey(case.mol, orbitals, case.iaos, case.overlap, exponent=4)
    localizer.verbose = 0
    return localizer


def sweep(matrices: np.ndarray, power: int) -> tuple[np.ndarray, float]:
    """Maximizes sum_A sum_i (Q^A_ii)^power by rotations of pairs, each to the best of all angles.

    Args:
        matrices: Q^A, symmetric, shape (a, mo, mo).
        power: an even power.

    Returns:
        Rotation (mo, mo) of the orbitals, and the value at the maximum.
    """
    q = np.array(matrices)
    n = q.shape[1]
    turn = np.eye(n)
    for _ in range(_MAX_SWEEPS):
        gained = 0.0
        for i in range(n):
            for j in range(i):
                angle, gain = _best_angle(q[:, i, i], q[:, j, j], q[:, i, j], power)
                if gain <= 1e-13:
                    continue
                gained += gain
                c, s = np.cos(angle), np.sin(angle)
                two = np.array([[c, -s], [s, c]])
                turn[:, [i, j]] = turn[:, [i, j]] @ two
                q[:, :, [i, j]] = q[:, :, [i, j]] @ two
                q[:, [i, j], :] = two.T @ q[:, [i, j], :]
        if gained < 1e-12 * (q[:, range(n), range(n)] ** power).sum():
            break
    return turn, float((np.einsum("aii->ai", q) ** power).sum())


def _best_angle(ii: np.ndarray, jj: np.ndarray, ij: np.ndarray, power: int) -> tuple[float, float]:
    """Angle of the best rotation of a pair, and what it gains.

    The functional has period pi / 2 in the angle; on a grid of angles the best is found, Newton's method does the rest.
    """
    mean, half = (ii + jj)[:, None] / 2, (ii - jj)[:, None] / 2

    def parts(angle: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Value and first two derivatives at some angles."""
        d = half * np.cos(2 * angle) + ij[:, None] * np.sin(2 * angle)
        d1 = 2 * (ij[:, None] * np.cos(2 * angle) - half * np.sin(2 * angle))
        up, down = mean + d, mean - d
        k = power
        value = (up**k + down**k).sum(0)
        slope = (k * (up ** (k - 1) - down ** (k - 1)) * d1).sum(0)
        bend = (k * (k - 1) * (up ** (k - 2) + down ** (k - 2)) * d1**2).sum(0)
        return value, slope, bend - (4 * k * (up ** (k - 1) - down ** (k - 1)) * d).sum(0)

    grid = np.arange(_ANGLES) * (np.pi / 2 / _ANGLES)
    values = parts(grid)[0]
    angle = grid[[int(np.argmax(values))]]
    for _ in range(4):
        _, slope, bend = parts(angle)
        if bend[0] >= 0:
            break
        angle = angle - np.clip(slope / bend, -0.05, 0.05)
    return float(angle[0]), float(parts(angle)[0][0] - values[0])


def _permutes(overlap: np.ndarray) -> bool:
    """Whether two sets of orbitals are the same but for order and sign."""
    return bool((np.abs(overlap).max(0) > 1 - 1e-3).all() and (np.abs(overlap).max(1) > 1 - 1e-3).all())


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(choices)}")
