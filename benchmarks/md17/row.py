"""One row of the table from its geometries: labels, their check, training, tests.

    python benchmarks/md17/row.py ethanol FRAMES [--model ethanol-pbe-def2svp] [--jobs 2] [--show]

FRAMES is the folder with the frames, see README.md. It runs the commands that --show prints, one after the other, and
stops at the first that fails. Run it again to go on: labels, trainings and forces resume where they were, tests of the
same model and labels are kept. With --model nothing is trained and that model is tested. What was found goes to --out,
beside the rows of other molecules.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlsemi.files import sha256_of, written_whole
from mlsemi.model import find_model
from mlsemi.units import HARTREE_IN_KCAL_PER_MOL

ROOT = Path(__file__).resolve().parents[2]
LABELS = Path("runs") / "md17"
RESULTS = ROOT / "benchmarks" / "results" / "md17_rows.json"
LEVEL = ("--method", "pbe", "--basis", "def2-svp")
TEST_GRADIENTS = 100
"""Test labels with gradients, of either test."""
TESTS = ("test", "untouched")
"""The second one are the frames after those of the first one, which nothing has been looked at with before."""


@dataclass(frozen=True)
class Row:
    """What makes a row.

    Attributes:
        parts: configurations in their order, below `benchmarks`; each starts from the model of the one before.
        labels: to train and to validate on; 0 if they are in the repository.
        test: labels to test on.
        untouched: labels to test on, the frames after these.
        forces: gradients of the labels too, to train on and for a test of forces.
        frames: names of the files of the frames, with {molecule} and {part}, "train" or "test".
        checked: the frames come with energies of another program, with which those of the labels are compared.
    """

    parts: tuple[str, ...]
    labels: int = 1000
    test: int = 300
    untouched: int = 300
    forces: bool = False
    frames: str = "rmd17_{molecule}_{part}01.npz"
    checked: bool = True


ROWS = {
    "water": Row(("water/water",), labels=0, test=500, untouched=0, frames="water_500K_{part}.npz", checked=False),
    "ethanol": Row(("md17/ethanol", "md17/ethanol_forces"), forces=True),
    "malonaldehyde": Row(("md17/malonaldehyde", "md17/malonaldehyde_energies")),
    "uracil": Row(("md17/uracil", "md17/uracil_energies")),
}


def frame_files(molecule: str, frames: Path) -> dict[str, Path]:
    """Files of the frames that a row reads, by part."""
    row = ROWS[molecule]
    parts = ("train", "test") if row.labels else ("test",)
    return {part: frames / row.frames.format(molecule=molecule, part=part) for part in parts}


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        command: program and arguments, to be run in the root of the repository.
        tested: model and labels of a test whose folder is `results`, or None for a command that resumes by itself.
        results: folder of a test, below the root.
    """

    command: list[str]
    tested: tuple[str, Path] | None = None
    results: Path = Path()

    def done(self) -> bool:
        """Whether there are results of the same model and labels."""
        file = ROOT / self.results / "metrics.json"
        if self.tested is None or not file.is_file():
            return False
        found, (model, labels) = json.loads(file.read_text()), self.tested
        of = (found["model"]["sha256"], *(label["sha256"] for label in found["labels"]))
        return of == (sha256_of(ROOT / find_model(model)), sha256_of(ROOT / labels))


def steps(molecule: str, frames: Path, jobs: int, model: str | None) -> list[Step]:
    """All commands of a row.

    Args:
        molecule: one of `ROWS`.
        frames: folder of the npz files.
        jobs: processes that label and test.
        model: shipped model or checkpoint to test; None trains one.
    """
    row, files, many = ROWS[molecule], frame_files(molecule, frames), ["--jobs", str(jobs)]
    python, program, benchmarks = sys.executable, [sys.executable, "-m", "mlsemi"], Path("benchmarks")
    # name, part of the frames, the first of these, how many, with gradients
    labels = [("train", "train", 0, 0 if model else row.labels, row.forces)]
    first = 0
    for name, count in zip(TESTS, (row.test, row.untouched), strict=True):
        labels += [(name, "test", first, count, False)]
        labels += [(f"{name}_gradients", "test", first, TEST_GRADIENTS, True)] if row.forces else []
        first += count
    found = []
    for name, part, skip, count, with_gradients in labels:
        if not count:
            continue
        source, out = str(files[part]), str(LABELS / f"{molecule}_{name}.h5")
        which = [*(["--skip", str(skip)] if skip else []), "--limit", str(count)]
        more = ["--gradient"] if with_gradients else []
        found.append(Step([*program, "label", source, "-o", out, *LEVEL, *which, *more, *many]))
        if row.checked:
            check = ["-o", str(LABELS / f"{molecule}_{name}_check.json")]
            found.append(Step([python, str(benchmarks / "md17" / "check_labels.py"), source, out, *check]))
    if model is None:
        start: list[str] = []
        for part in row.parts:
            config = benchmarks / f"{part}.toml"
            found.append(Step([*program, "train", str(config), *start]))
            output = (ROOT / config).parent / tomllib.loads((ROOT / config).read_text())["output"]
            start = ["--from", str(output.resolve().relative_to(ROOT) / "model.safetensors")]
        model = start[1]
    for name, count in zip(TESTS, (row.test, row.untouched), strict=True):
        if not count:
            continue
        file, results = LABELS / f"{molecule}_{name}.h5", LABELS / f"{molecule}_{name}"
        test = [*program, "evaluate", model, str(file), "--variational", *many, "-o", str(results)]
        found.append(Step(test, (model, file), results))
        if row.forces:
            gradients, out = LABELS / f"{molecule}_{name}_gradients.h5", LABELS / f"{molecule}_{name}_forces.json"
            script = str(benchmarks / "md17" / "evaluate_forces.py")
            found.append(Step([python, script, model, str(gradients), "-o", str(out)]))
    return found


def standard_errors(path: Path) -> dict[str, float]:
    """Standard errors of the means over the molecules of a per_molecule.csv."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    columns = {
        "h_mae_uEh": ("h_mae", 1e6),
        "occupied_energies_mae_uEh": ("occupied_mae", 1e6),
        "energy_fast_mae_kcal_per_mol": ("energy_fast_error", HARTREE_IN_KCAL_PER_MOL),
        "energy_variational_mae_kcal_per_mol": ("energy_variational_error", HARTREE_IN_KCAL_PER_MOL),
    }
    found = {}
    for name, (column, unit) in columns.items():
        values = unit * np.abs([float(row[column]) for row in rows])
        found[name] = float(values.std(ddof=1) / np.sqrt(len(values)))
    return found


def gathered(molecule: str) -> dict[str, Any]:
    """What the commands of a row found: tests with their standard errors, forces, labels against rMD17."""
    found: dict[str, Any] = {}
    for name in TESTS:
        results = ROOT / LABELS / f"{molecule}_{name}"
        if not (results / "metrics.json").is_file():
            continue
        test = json.loads((results / "metrics.json").read_text())
        kept = {key: test[key] for key in ("model", "labels", "versions", "molecules", "metrics")}
        found[name] = kept | {"standard_errors": standard_errors(results / "per_molecule.csv")}
        forces = ROOT / LABELS / f"{molecule}_{name}_forces.json"
        if forces.is_file():
            of_forces = json.loads(forces.read_text())
            found[name]["forces"] = {key: value for key, value in of_forces.items() if key != "rows"}
    checks = sorted((ROOT / LABELS).glob(f"{molecule}_*_check.json"))
    return found | {"labels_minus_rmd17": {file.stem: json.loads(file.read_text()) for file in checks}}


def table(row: dict[str, Any]) -> str:
    """The tests side by side, Markdown; means with their standard errors."""
    tests = {name: row[name] for name in TESTS if name in row}
    titles = [f"{name}, {test['molecules']} frames" for name, test in tests.items()]
    lines = [f"| | {' | '.join(titles)} |"]
    lines.append(f"|{'---|' * (len(tests) + 1)}")
    for key in next(iter(tests.values()))["metrics"]:
        cells = []
        for test in tests.values():
            error = test["standard_errors"].get(key)
            cells.append(f"{test['metrics'][key]:.4g}" + ("" if error is None else f" +- {error:.2g}"))
        lines.append(f"| {key} | {' | '.join(cells)} |")
    for mode in next(iter(tests.values())).get("forces", {}).get("summary", {}):
        for key in ("force_mae_meV_per_angstrom", "force_rms_meV_per_angstrom", "force_max_meV_per_angstrom"):
            cells = [f"{test['forces']['summary'][mode][key]:.3g}" for test in tests.values()]
            lines.append(f"| {mode}: {key} | {' | '.join(cells)} |")
    return "\n".join(lines)


def finished(command: Sequence[str]) -> int:
    """Exit status of a command, which gets a Ctrl-C too and is left the time to save what it has."""
    with subprocess.Popen(command, cwd=ROOT) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                print("waiting for it to end", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Shows or runs the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("molecule", choices=list(ROWS))
    parser.add_argument(
        "frames",
        type=Path,
        metavar="FRAMES",
        help="folder of rmd17_MOLECULE_train01.npz and _test01.npz; water: of water_500K_test.npz",
    )
    parser.add_argument("--model", help="test this shipped model or checkpoint and train nothing")
    parser.add_argument("--jobs", type=int, default=1, help="processes that label and test (default 1)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file (default: that of the repository)")
    parser.add_argument("--show", action="store_true", help="print the commands and do nothing")
    arguments = parser.parse_args(argv)
    if arguments.jobs < 1:
        parser.error(f"--jobs {arguments.jobs} must be 1 at least")
    frames = arguments.frames.resolve()
    for file in frame_files(arguments.molecule, frames).values():
        if not file.is_file():
            parser.error(f"no such file: {file}; README.md here says where the frames come from")
    if arguments.model is not None:
        if Path(arguments.model).is_file():
            arguments.model = str(Path(arguments.model).resolve())  # the commands run in the root of the repository
        try:
            find_model(arguments.model)
        except (ValueError, OSError) as error:
            parser.error(str(error))
    if not arguments.show:
        (ROOT / LABELS).mkdir(parents=True, exist_ok=True)
    for step in steps(arguments.molecule, frames, arguments.jobs, arguments.model):
        print(f"$ {shlex.join(step.command)}", flush=True)
        if arguments.show:
            continue
        if step.done():
            print(f"done before: {step.results}", flush=True)
        elif status := finished(step.command):
            sys.exit(f"that ended with status {status}; run the same command again to go on")
    if not arguments.show:
        rows = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
        rows[arguments.molecule] = gathered(arguments.molecule)
        with written_whole(arguments.out) as beside:
            beside.write_text(json.dumps(rows, indent=1) + "\n")
        print(f"\n{table(rows[arguments.molecule])}\n\n{arguments.out}")


if __name__ == "__main__":
    main()
