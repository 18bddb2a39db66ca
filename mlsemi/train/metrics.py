"""Errors of predictions against labels: molecule by molecule, then averaged over molecules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlsemi.calibration import agreement, stored_interval
from mlsemi.units import DIPOLE_AU_IN_DEBYE, HARTREE_IN_EV, HARTREE_IN_KCAL_PER_MOL

Row = dict[str, float | int | str]
"""Numbers of one molecule in atomic units, by name."""

Report = Callable[[str, int, int, float], None]
"""Stage ("predict" or "variational"), molecules done, of how many, molecules per second."""

ESTIMATED_MODES = ("fast", "variational", "corrected")
"""Modes whose energies come with an estimate of their error."""


@dataclass(frozen=True)
class State:
    """One state of one molecule, without padding; one spin if restricted, else alpha and beta.

    Attributes:
        fock: Fock matrices [Eh], shape (spin, ao, ao).
        mo_energy: orbital energies [Eh], shape (spin, mo).
        mo_coeff: orbitals, shape (spin, ao, mo).
    """

    fock: np.ndarray
    mo_energy: np.ndarray
    mo_coeff: np.ndarray

    def frontier(self, n_occupied: Sequence[int]) -> tuple[float, float]:
        """HOMO and LUMO [Eh] over both spins, as in `Observables`; nan where there is none."""
        pairs = list(zip(self.mo_energy, n_occupied, strict=True))
        homo = max((float(energy[n - 1]) for energy, n in pairs if n), default=float("nan"))
        return homo, min((float(energy[n]) for energy, n in pairs if n < len(energy)), default=float("nan"))


def state_errors(found: State, reference: State, overlap: np.ndarray, n_occupied: Sequence[int]) -> Row:
    """Errors of a state, all in atomic units.

    Args:
        found: the prediction.
        reference: the label.
        overlap: overlap matrix, shape (ao, ao).
        n_occupied: number of occupied orbitals of each spin.

    Returns:
        `h_mae`, `h_rms`, `h_max`: of the AO elements of F, all n^2 of them, of both spins. `h_orth_mae`: of
        S^-1/2 dF S^-1/2. `occupied_mae`: of the occupied orbital energies of both spins. `homo`, `lumo`, `gap`:
        predicted minus reference, over both spins (nan without a virtual orbital). `similarity`: mean over the occupied
        orbitals of |<predicted|reference>| = |C^T S C|. `cosine`: the same of the bare coefficient vectors, as in the
        literature. `subspace`: overlap of the occupied spaces, the sum over spins of Tr[D S D' S] divided by the number
        of electrons (of one spin, if restricted), which does not mind degenerate orbitals. `s2`: <S^2>, predicted minus
        reference, of open shells.
    """
    error = found.fock - reference.fock
    values, vectors = np.linalg.eigh(overlap)
    root = (vectors / np.sqrt(values)) @ vectors.T
    shift = found.mo_energy - reference.mo_energy
    homo, lumo = (a - b for a, b in zip(found.frontier(n_occupied), reference.frontier(n_occupied), strict=True))
    similarity, cosine, shared, shifts = [], [], 0.0, []
    for s, n in enumerate(n_occupied):
        occupied, occupied_ref = found.mo_coeff[s, :, :n], reference.mo_coeff[s, :, :n]
        between = occupied.T @ overlap @ occupied_ref
        norms = np.linalg.norm(occupied, axis=0) * np.linalg.norm(occupied_ref, axis=0)
        similarity.append(np.abs(np.diag(between)))
        cosine.append(np.abs((occupied * occupied_ref).sum(0)) / norms)
        shared += float((between**2).sum())
        shifts.append(np.abs(shift[s, :n]))
    row: Row = {
        "h_mae": float(np.abs(error).mean()),
        "h_rms": float(np.sqrt((error**2).mean())),
        "h_max": float(np.abs(error).max()),
        "h_orth_mae": float(np.abs(root @ error @ root).mean()),
        "occupied_mae": float(np.concatenate(shifts).mean()),
        "homo": homo,
        "lumo": lumo,
        "gap": lumo - homo,
        "similarity": float(np.concatenate(similarity).mean()),
        "cosine": float(np.concatenate(cosine).mean()),
        "subspace": shared / sum(n_occupied),
    }
    if len(n_occupied) == 2:
        row["s2"] = _shared(reference, overlap, n_occupied) - _shared(found, overlap, n_occupied)
    return row


def _shared(state: State, overlap: np.ndarray, n_occupied: Sequence[int]) -> float:
    """Sum of |S_ij|^2 over occupied alpha i and beta j, which <S^2> lacks; all else is the same for all states."""
    alpha, beta = (c[:, :n] for c, n in zip(state.mo_coeff, n_occupied, strict=True))
    return float(((alpha.T @ overlap @ beta) ** 2).sum())


def _mean(x: np.ndarray) -> float:
    return float(np.abs(x).mean())


def _root_mean_square(x: np.ndarray) -> float:
    return float(np.sqrt((x**2).mean()))


def _largest(x: np.ndarray) -> float:
    return float(np.abs(x).max())


@dataclass(frozen=True)
class Metric:
    """One number of the report.

    Attributes:
        key: its name in metrics.json, which ends with its unit.
        text: what it is.
        column: column of the rows that it is made of.
        combine: how molecules are put together.
        factor: from atomic units.
        unit: its unit.
    """

    key: str
    text: str
    column: str
    combine: Callable[[np.ndarray], float]
    factor: float = 1.0
    unit: str = ""


_MICRO, _MILLI = 1e6, 1e3
_KCAL = HARTREE_IN_KCAL_PER_MOL

METRICS = (
    Metric("h_mae_uEh", "H, AO elements: MAE", "h_mae", _mean, _MICRO, "uEh"),
    Metric("h_rms_uEh", "H, AO elements: rms", "h_rms", _root_mean_square, _MICRO, "uEh"),
    Metric("h_max_uEh", "H, AO elements: maximum", "h_max", _largest, _MICRO, "uEh"),
    Metric("h_orthonormal_mae_uEh", "H, orthonormal basis: MAE", "h_orth_mae", _mean, _MICRO, "uEh"),
    Metric("baseline_h_mae_uEh", "F0, AO elements: MAE", "baseline_h_mae", _mean, _MICRO, "uEh"),
    Metric("occupied_energies_mae_uEh", "occupied orbital energies: MAE", "occupied_mae", _mean, _MICRO, "uEh"),
    Metric("homo_mae_uEh", "HOMO: MAE", "homo", _mean, _MICRO, "uEh"),
    Metric("homo_mae_eV", "HOMO: MAE", "homo", _mean, HARTREE_IN_EV, "eV"),
    Metric("lumo_mae_uEh", "LUMO: MAE", "lumo", _mean, _MICRO, "uEh"),
    Metric("lumo_mae_eV", "LUMO: MAE", "lumo", _mean, HARTREE_IN_EV, "eV"),
    Metric("gap_mae_uEh", "gap: MAE", "gap", _mean, _MICRO, "uEh"),
    Metric("gap_mae_eV", "gap: MAE", "gap", _mean, HARTREE_IN_EV, "eV"),
    Metric("coefficient_similarity", "occupied orbitals: |C' S C| diagonal", "similarity", _mean),
    Metric("coefficient_cosine", "occupied coefficients: cosine", "cosine", _mean),
    Metric("occupied_subspace_overlap", "occupied subspace: overlap", "subspace", _mean),
    Metric("s2_mae", "<S^2> of open shells: MAE", "s2", _mean, 1.0, "1"),
    Metric("energy_fast_mae_mEh", "energy, fast: MAE", "energy_fast_error", _mean, _MILLI, "mEh"),
    Metric("energy_fast_mae_kcal_per_mol", "energy, fast: MAE", "energy_fast_error", _mean, _KCAL, "kcal/mol"),
    Metric("energy_fast_max_kcal_per_mol", "energy, fast: maximum", "energy_fast_error", _largest, _KCAL, "kcal/mol"),
    Metric("energy_variational_mae_uEh", "energy, variational: MAE", "energy_variational_error", _mean, _MICRO, "uEh"),
    Metric(
        "energy_variational_mae_kcal_per_mol",
        "energy, variational: MAE",
        "energy_variational_error",
        _mean,
        _KCAL,
        "kcal/mol",
    ),
    Metric(
        "energy_variational_max_kcal_per_mol",
        "energy, variational: maximum",
        "energy_variational_error",
        _largest,
        _KCAL,
        "kcal/mol",
    ),
    Metric(
        "energy_corrected_mae_kcal_per_mol",
        "energy, corrected: MAE",
        "energy_corrected_error",
        _mean,
        _KCAL,
        "kcal/mol",
    ),
    Metric(
        "energy_corrected_max_kcal_per_mol",
        "energy, corrected: maximum",
        "energy_corrected_error",
        _largest,
        _KCAL,
        "kcal/mol",
    ),
    Metric(
        "energy_composite_mae_kcal_per_mol",
        "energy, composite: MAE",
        "energy_composite_error",
        _mean,
        _KCAL,
        "kcal/mol",
    ),
    Metric(
        "energy_composite_max_kcal_per_mol",
        "energy, composite: maximum",
        "energy_composite_error",
        _largest,
        _KCAL,
        "kcal/mol",
    ),
    Metric("gradient_mae_uEh_per_bohr", "gradient, fast, components: MAE", "gradient_mae", _mean, _MICRO, "uEh/bohr"),
    Metric("ionization_mae_eV", "ionization energy: MAE", "ionization_error", _mean, HARTREE_IN_EV, "eV"),
    Metric("dipole_mae_au", "dipole, |difference|: MAE", "dipole_error", _mean, 1.0, "e bohr"),
    Metric("dipole_mae_D", "dipole, |difference|: MAE", "dipole_error", _mean, DIPOLE_AU_IN_DEBYE, "D"),
    Metric("dipole_norm_mae_D", "dipole, magnitude: MAE", "dipole_norm_error", _mean, DIPOLE_AU_IN_DEBYE, "D"),
)
BRIEF = (
    "h_mae_uEh",
    "gap_mae_eV",
    "energy_fast_mae_kcal_per_mol",
    "energy_variational_mae_kcal_per_mol",
    "energy_composite_mae_kcal_per_mol",
)
"""The metrics that are given for classes of molecules."""


def column(rows: Iterable[Row], name: str) -> np.ndarray:
    """Finite values of a column; rows without it are left out."""
    values = np.array([row[name] for row in rows if name in row], dtype=float)
    return values[np.isfinite(values)]


def average(rows: Sequence[Row], calibration: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Every metric that the rows have, by its key.

    Args:
        rows: numbers of the molecules.
        calibration: that of the model, for the coverage of its intervals.
    """
    out: dict[str, float] = {}
    for metric in METRICS:
        values = column(rows, metric.column)
        if len(values):
            out[metric.key] = metric.factor * metric.combine(values)
    return out | estimate_quality(rows, calibration)


def estimate_quality(rows: Sequence[Row], calibration: Mapping[str, Any] | None = None) -> dict[str, float]:
    """How the error estimates of the energies compare with the true errors, see `mlsemi.calibration.agreement`.

    Returns:
        `estimate_MODE_...` for each mode that has estimates. Nothing without.
    """
    out: dict[str, float] = {}
    for mode in ESTIMATED_MODES:
        errors, estimates = paired(rows, f"energy_{mode}_error", f"energy_{mode}_estimate")
        interval = stored_interval(calibration or {}, mode)
        out |= {f"estimate_{mode}_{key}": value for key, value in agreement(errors, estimates, interval).items()}
    return out


def paired(rows: Iterable[Row], first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """Two columns of the rows that have both."""
    table = [(row[first], row[second]) for row in rows if first in row and second in row]
    both = np.array(table, dtype=float).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def by_class(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Brief metrics by number of heavy atoms; empty if all molecules have one formula."""
    if len({row["formula"] for row in rows}) < 2:
        return {}
    out: dict[str, dict[str, float]] = {}
    for n in sorted({int(row["n_heavy"]) for row in rows}):
        members = [row for row in rows if row["n_heavy"] == n]
        found: Mapping[str, float] = average(members)
        out[str(n)] = {"count": len(members)} | {key: found[key] for key in BRIEF if key in found}
    return out


GROUPS: dict[str, Callable[[Row], bool]] = {
    "closed shells": lambda row: not row["spin"],
    "open shells": lambda row: bool(row["spin"]),
    "neutral": lambda row: not row["charge"],
    "charged": lambda row: bool(row["charge"]),
}
"""Kinds of molecules, two by two."""


def by_group(rows: Sequence[Row], calibration: Mapping[str, Any] | None = None) -> dict[str, dict[str, float]]:
    """All metrics of closed and open shells, and of neutral and charged molecules, where there are both."""
    out: dict[str, dict[str, float]] = {}
    names = list(GROUPS)
    for pair in (names[:2], names[2:]):
        members = {name: [row for row in rows if GROUPS[name](row)] for name in pair}
        if all(members.values()):
            out |= {name: {"count": len(found)} | average(found, calibration) for name, found in members.items()}
    return out
