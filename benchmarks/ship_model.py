"""Puts a trained checkpoint among the shipped models, with its measured held-out errors in the header.

Usage: python benchmarks/ship_model.py MODEL METRICS [--name NAME] [--into mlsemi/weights]

METRICS is the metrics.json that `mlsemi evaluate MODEL TEST_LABELS` wrote; it must be of this very checkpoint (its
SHA-256 is compared). The model card NAME.md beside the weights is written by hand.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

from mlsemi import checkpoint
from mlsemi.files import sha256_of

SHOWN = {
    "h_mae_uEh": "H MAE [uEh]",
    "h_rms_uEh": "H rms [uEh]",
    "h_max_uEh": "H maximum [uEh]",
    "occupied_energies_mae_uEh": "occupied orbital energies MAE [uEh]",
    "gap_mae_eV": "gap MAE [eV]",
    "energy_fast_mae_kcal_per_mol": "fast energy MAE [kcal/mol]",
    "energy_variational_mae_kcal_per_mol": "variational energy MAE [kcal/mol]",
    "energy_corrected_mae_kcal_per_mol": "corrected energy MAE [kcal/mol]",
    "energy_composite_mae_kcal_per_mol": "composite energy MAE [kcal/mol]",
    "dipole_mae_D": "dipole MAE [D]",
    "ionization_mae_eV": "ionization energy MAE [eV]",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("metrics", type=Path)
    parser.add_argument("--name", help="name among the shipped models; default: that of the header")
    parser.add_argument("--into", type=Path, default=Path("mlsemi/weights"))
    arguments = parser.parse_args()
    found = json.loads(arguments.metrics.read_text())
    digest = sha256_of(arguments.model)
    if found["model"]["sha256"] != digest:
        raise SystemExit(f"error: {arguments.metrics} is of another checkpoint than {arguments.model}")
    header = checkpoint.read_header(arguments.model)
    errors = {text: float(f"{found['metrics'][key]:.4g}") for key, text in SHOWN.items() if key in found["metrics"]}
    errors |= {
        "molecules": found["molecules"],
        "labels": ", ".join(labels["file"] for labels in found["labels"]),
        "split": found["split"],
    }
    name = arguments.name or header.name
    arguments.into.mkdir(parents=True, exist_ok=True)
    path = arguments.into / f"{name}.safetensors"
    checkpoint.save(path, replace(header, name=name, errors=errors), load_file(arguments.model))
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {errors}")


if __name__ == "__main__":
    main()
