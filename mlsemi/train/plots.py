"""Pictures of a training run and of an evaluation."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlsemi.calibration import NOISE, Interval, stored_interval
from mlsemi.files import written_whole
from mlsemi.train.evaluate import Evaluation
from mlsemi.train.metrics import ESTIMATED_MODES, Row, column, paired
from mlsemi.units import DIPOLE_AU_IN_DEBYE, HARTREE_IN_EV, HARTREE_IN_KCAL_PER_MOL

_TERMS = {
    "ao_meh": "F, AO elements: MAE",
    "orthonormal_meh": "F, orthonormal basis: MAE",
    "occupied_virtual_meh": "F, occupied-virtual block: rms",
    "energy_meh": "energy: MAE (repulsive part per atom, in training on F)",
    "fast_meh": "fast energy per atom, to first order: MAE",
    "gradient_meh_per_bohr": "gradient: MAE",
    "dipole_mebohr": "dipole: MAE",
    "ionization_meh": "ionization energy: MAE",
    "fock_meh": "F, change against the model before: MAE",
}
_UNITS = {"meh": "mEh", "meh_per_bohr": "mEh/bohr", "mebohr": "1e-3 e bohr"}
_CORE = -3.0
"""Orbital energies below this [Eh] are those of cores of the second row and later: they would squeeze all others."""
_TRAIN, _VALIDATION = "#8a8a8a", "#b03a2e"
_GROUPS = ("#2e6f9e", _VALIDATION, "#5a9e6f")


def plot_curves(table: str | Path, picture: str | Path) -> bool:
    """Draws the curves of a training run, one panel for each term of the loss.

    Args:
        table: `curves.csv` of the run.
        picture: PNG to write; an existing one is replaced.

    Returns:
        False if there is nothing to draw yet.
    """
    path = Path(table)
    if not path.is_file():
        return False
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if None not in row.values()]
    if not rows:
        return False
    shown = [term for term in _TERMS if f"validation_{term}" in rows[0]]
    n_columns = min(len(shown), 3)
    n_rows = -(-len(shown) // n_columns)
    figure, axes = _figure(n_rows, n_columns, (5 * n_columns, 3.5 * n_rows))
    steps = [int(row["step"]) for row in rows]
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    for axis, term in zip(axes, shown, strict=False):
        unit = next(text for key, text in _UNITS.items() if term.endswith("_" + key))
        for part, colour in (("train", _TRAIN), ("validation", _VALIDATION)):
            values = [float(row.get(f"{part}_{term}") or "nan") for row in rows]
            # training errors are means over the steps since the row before, of the weights as they moved
            axis.plot(steps, values, "o-", color=colour, label=part, markersize=3, linewidth=1.2)
        axis.set(title=_TERMS[term], xlabel="step", ylabel=unit, yscale="log")
        axis.grid(True, which="both", alpha=0.2)
        axis.legend(frameon=False)
    _save(figure, Path(picture))
    return True


def plot_parity(evaluation: Evaluation, picture: str | Path, *, title: str) -> None:
    """Draws predictions against labels.

    Args:
        evaluation: from `evaluate`.
        picture: PNG to write; an existing one is replaced.
        title: headline.
    """
    figure, axes = _figure(2, 3, (14, 8.5))
    parity = evaluation.parity
    _hexbin(axes[0], _joined(parity.fock), "elements of F", "Eh")
    orbitals = _joined(parity.mo_energy)
    _hexbin(axes[1], orbitals[:, orbitals[0] > _CORE], "orbitals, valence to LUMO", "Eh")
    _scatter(axes[2], {"": _joined(parity.gap) * HARTREE_IN_EV}, "gap", "eV")
    modes = {mode: _relative(evaluation.rows, f"energy_{mode}") for mode in ("fast", "variational", "composite")}
    _scatter(axes[3], modes, "energy minus the mean of its formula", "kcal/mol")
    _scatter(axes[4], {"": _joined(parity.dipole) * DIPOLE_AU_IN_DEBYE}, "dipole components", "D")
    _errors(axes[5], evaluation.rows)
    figure.suptitle(title)
    _save(figure, Path(picture))


def _figure(n_rows: int, n_columns: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(np.atleast_1d(figure.subplots(n_rows, n_columns)).ravel())


def _save(figure: Any, path: Path) -> None:
    with written_whole(path) as beside:
        figure.savefig(beside, format="png", dpi=120)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Pairs side by side, shape (2, n)."""
    return np.concatenate(parts, axis=1) if parts else np.zeros((2, 0))


def _relative(rows: Sequence[Row], name: str) -> np.ndarray:
    """Reference and predicted energies minus the mean reference of their formula [kcal/mol], shape (2, n)."""
    # without an error the energy is of another method than the label
    used = [row for row in rows if np.isfinite(float(row.get(f"{name}_error", np.nan)))]
    mean = {
        formula: np.mean([float(row["energy"]) for row in used if row["formula"] == formula])
        for formula in {str(row["formula"]) for row in used}
    }
    table = [[float(row[key]) - mean[str(row["formula"])] for row in used] for key in ("energy", name)]
    return np.array(table) * HARTREE_IN_KCAL_PER_MOL


def _diagonal(axis: Any, pairs: np.ndarray, title: str, unit: str) -> None:
    low, high = float(pairs.min()), float(pairs.max())
    axis.plot([low, high], [low, high], color="black", linewidth=0.6, zorder=0)
    axis.set(title=title, xlabel=f"reference [{unit}]", ylabel=f"predicted [{unit}]")


def _hexbin(axis: Any, pairs: np.ndarray, title: str, unit: str) -> None:
    if not pairs.size:
        axis.set(title=f"{title}: none")
        return
    drawn = axis.hexbin(pairs[0], pairs[1], gridsize=80, bins="log", cmap="viridis", mincnt=1, linewidths=0.1)
    axis.figure.colorbar(drawn, ax=axis, label="count")
    _diagonal(axis, pairs, f"{title}: MAE {_amount(pairs, unit)}", unit)


def _scatter(axis: Any, groups: dict[str, np.ndarray], title: str, unit: str) -> None:
    present = {name: pairs for name, pairs in groups.items() if pairs.size}
    if not present:
        axis.set(title=f"{title}: none")
        return
    for (name, pairs), colour in zip(present.items(), _GROUPS[: len(present)], strict=True):
        label = f"{name} MAE {_amount(pairs, unit)}".strip()
        axis.plot(pairs[0], pairs[1], "o", markersize=3, alpha=0.6, color=colour, label=label)
    _diagonal(axis, np.concatenate(list(present.values()), axis=1), title, unit)
    axis.legend(frameon=False)


def _amount(pairs: np.ndarray, unit: str) -> str:
    error = float(np.abs(pairs[1] - pairs[0]).mean())
    return f"{error * 1e6:.3g} uEh" if unit == "Eh" else f"{error:.3g} {unit}"


def plot_estimates(rows: Sequence[Row], picture: str | Path, *, title: str, calibration: Mapping[str, Any]) -> bool:
    """Draws error estimates against true errors, and the share of errors within each multiple of the estimate.

    Args:
        rows: from `evaluate`.
        picture: PNG to write; an existing one is replaced.
        title: headline.
        calibration: that of the model: its intervals are drawn.

    Returns:
        False if no energy has an estimate.
    """
    found = {mode: paired(rows, f"energy_{mode}_error", f"energy_{mode}_estimate") for mode in ESTIMATED_MODES}
    found = {mode: pair for mode, pair in found.items() if (np.isfinite(pair).all(0) & (pair[1] > NOISE)).any()}
    if not found:
        return False
    figure, axes = _figure(2, len(found), (5 * len(found), 9))
    for k, (mode, (errors, estimates)) in enumerate(found.items()):
        used = np.isfinite(errors) & np.isfinite(estimates) & (estimates > NOISE) & (np.abs(errors) > NOISE)
        true, estimate = np.abs(errors[used]), estimates[used]
        _estimates(axes[k], mode, true, estimate, stored_interval(calibration, mode))
        _coverage(axes[len(found) + k], true / estimate, stored_interval(calibration, mode))
    figure.suptitle(title)
    _save(figure, Path(picture))
    return True


def _estimates(axis: Any, mode: str, true: np.ndarray, estimate: np.ndarray, interval: Interval | None) -> None:
    true, estimate = true * HARTREE_IN_KCAL_PER_MOL, estimate * HARTREE_IN_KCAL_PER_MOL
    axis.loglog(estimate, true, "o", markersize=3, alpha=0.5, color="#2e6f9e")
    ends = np.array([estimate.min(), estimate.max()])
    scales = {"estimate": 1.0} if interval is None else {"68 %": interval.scale_68, "95 %": interval.scale_95}
    for (name, scale), style in zip(scales.items(), ("-", "--"), strict=False):
        axis.plot(ends, scale * ends, style, color="black", linewidth=0.8, label=name)
    axis.set(title=f"{mode} energy", xlabel="estimate [kcal/mol]", ylabel="true error [kcal/mol]")
    axis.legend(frameon=False)


def _coverage(axis: Any, ratio: np.ndarray, interval: Interval | None) -> None:
    ratio = np.sort(ratio)
    axis.semilogx(ratio, np.arange(1, len(ratio) + 1) / len(ratio), color="#2e6f9e")
    if interval is not None:
        for scale, share in ((interval.scale_68, 0.68), (interval.scale_95, 0.95)):
            axis.plot([scale], [share], "o", color=_VALIDATION)
            axis.annotate(f"{share:.0%}", (scale, share), textcoords="offset points", xytext=(6, -10))
    axis.set(xlabel="true error / estimate", ylabel="share of molecules below", ylim=(0, 1.02))
    axis.grid(True, which="both", alpha=0.2)


def _errors(axis: Any, rows: Sequence[Row]) -> None:
    """H MAE of the molecules."""
    values = column(rows, "h_mae") * 1e6
    if not len(values):
        axis.set(title="F, AO elements: none")
        return
    axis.hist(values, bins=min(40, max(5, len(values) // 5)), color="#2e6f9e")
    axis.set(title="F, AO elements: MAE of each molecule", xlabel="uEh", ylabel="molecules")
