"""Errors of predictions against labels: molecule by molecule, then averaged over molecules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlsemi.units import DIPOLE_AU_IN_DEBYE, HARTREE_IN_EV, HARTREE_IN_KCAL_PER_MOL

Row = dict[str, float | int | str]
"""Numbers of one molecule in atomic units, by name."""

_NOISE = 1e-9
"""True energy errors below this [Eh] are rounding of the labels: no ratio is taken with them."""


@dataclass(frozen=True)
class State:
    """One state of one molecule, without padding.

    Attributes:
        fock: Fock matrix [Eh], shape (ao, ao).
        mo_energy: orbital energies [Eh], shape (mo,).
        mo_coeff: orbitals, shape (ao, mo).
    """

    fock: np.ndarray
    mo_energy: np.ndarray
    mo_coeff: np.ndarray


def state_errors(found: State, reference: State, overlap: np.ndarray, n_occupied: int) -> Row:
    """Errors of a state, all in atomic units.

    Args:
        found: the prediction.
        reference: the label.
        overlap: overlap matrix, shape (ao, ao).
        n_occupied: number of occupied orbitals.

    Returns:
        `h_mae`, `h_rms`, `h_max`: of the AO elements of F, all n^2 of them. `h_orth_mae`: of S^-1/2 dF S^-1/2.
        `occupied_mae`: of the occupied orbital energies. `homo`, `lumo`, `gap`: predicted minus reference (nan without
        a virtual orbital). `similarity`: mean over the occupied orbitals of |<predicted|reference>| = |C^T S C|.
        `cosine`: the same of the bare coefficient vectors, as in the literature. `subspace`: overlap of the occupied
        spaces Tr[D S D' S] / (2 n_electrons), which does not mind degenerate orbitals.
    """
    error = found.fock - reference.fock
    values, vectors = np.linalg.eigh(overlap)
    root = (vectors / np.sqrt(values)) @ vectors.T
    occupied, occupied_ref = found.mo_coeff[:, :n_occupied], reference.mo_coeff[:, :n_occupied]
    shift = found.mo_energy - reference.mo_energy
    has_lumo = n_occupied < len(shift)
    between = occupied.T @ overlap @ occupied_ref
    norms = np.linalg.norm(occupied, axis=0) * np.linalg.norm(occupied_ref, axis=0)
    row: Row = {
        "h_mae": float(np.abs(error).mean()),
        "h_rms": float(np.sqrt((error**2).mean())),
        "h_max": float(np.abs(error).max()),
        "h_orth_mae": float(np.abs(root @ error @ root).mean()),
        "occupied_mae": float(np.abs(shift[:n_occupied]).mean()),
        "homo": float(shift[n_occupied - 1]),
        "lumo": float(shift[n_occupied]) if has_lumo else float("nan"),
        "gap": float(shift[n_occupied] - shift[n_occupied - 1]) if has_lumo else float("nan"),
        "similarity": float(np.abs(np.diag(between)).mean()),
        "cosine": float((np.abs((occupied * occupied_ref).sum(0)) / norms).mean()),
        "subspace": float((between**2).sum() / n_occupied),
    }
    return row


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
    Metric("dipole_mae_au", "dipole, |difference|: MAE", "dipole_error", _mean, 1.0, "e bohr"),
    Metric("dipole_mae_D", "dipole, |difference|: MAE", "dipole_error", _mean, DIPOLE_AU_IN_DEBYE, "D"),
    Metric("dipole_norm_mae_D", "dipole, magnitude: MAE", "dipole_norm_error", _mean, DIPOLE_AU_IN_DEBYE, "D"),
)
BRIEF = ("h_mae_uEh", "gap_mae_eV", "energy_fast_mae_kcal_per_mol", "energy_variational_mae_kcal_per_mol")
"""The metrics that are given for classes of molecules."""


def column(rows: Iterable[Row], name: str) -> np.ndarray:
    """Finite values of a column; rows without it are left out."""
    values = np.array([row[name] for row in rows if name in row], dtype=float)
    return values[np.isfinite(values)]


def average(rows: Sequence[Row]) -> dict[str, float]:
    """Every metric that the rows have, by its key."""
    out: dict[str, float] = {}
    for metric in METRICS:
        values = column(rows, metric.column)
        if len(values):
            out[metric.key] = metric.factor * metric.combine(values)
    return out | estimate_quality(rows)


def estimate_quality(rows: Sequence[Row]) -> dict[str, float]:
    """How the error estimate of the variational energy compares with the true error.

    Returns:
        `error_estimate_median_ratio`: median of estimate / error. `error_estimate_rank_correlation`: Spearman's, where
        there are three molecules or more. Nothing without estimates.
    """
    from scipy.stats import rankdata

    pairs = [(row.get("error_estimate"), row.get("energy_variational_error")) for row in rows]
    table = np.array([(a, b) for a, b in pairs if a is not None and b is not None], dtype=float).reshape(-1, 2)
    table = table[np.isfinite(table).all(1) & (np.abs(table[:, 1]) > _NOISE)]
    if not len(table):
        return {}
    out = {"error_estimate_median_ratio": float(np.median(table[:, 0] / np.abs(table[:, 1])))}
    ranks = np.array([rankdata(table[:, 0]), rankdata(np.abs(table[:, 1]))])
    if len(table) > 2 and (np.ptp(ranks, axis=1) > 0).all():
        out["error_estimate_rank_correlation"] = float(np.corrcoef(ranks)[0, 1])
    return out


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
