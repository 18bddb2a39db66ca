"""One row of the table from its geometries: labels, their check, training, test.

    python benchmarks/md17/row.py ethanol RMD17 [--jobs 2] [--show]

RMD17 is the folder with the frames, see README.md. It runs the commands that --show prints, one after the other, and
stops at the first that fails. Run it again to go on: labels and trainings resume where they were.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
LABELS = Path("runs") / "md17"
LEVEL = ("--method", "pbe", "--basis", "def2-svp")
TEST, TEST_GRADIENTS = 300, 100
"""Test labels, and those of them with gradients."""


@dataclass(frozen=True)
class Row:
    """What makes a row.

    Attributes:
        labels: to train and to validate on.
        parts: configurations in their order; each starts from the model of the one before.
        forces: gradients of the labels too, to train on and for a test of forces.
    """

    labels: int
    parts: tuple[str, ...]
    forces: bool = False


ROWS = {
    "ethanol": Row(1000, ("ethanol", "ethanol_forces"), forces=True),
    "malonaldehyde": Row(1000, tuple(f"malonaldehyde{part}" for part in ("", "_2", "_3", "_4", "_energies"))),
}


def commands(molecule: str, frames: Path, jobs: int) -> list[list[str]]:
    """All commands of a row, to be run in the root of the repository.

    Args:
        molecule: one of `ROWS`.
        frames: folder of the npz files.
        jobs: processes that label and evaluate.
    """
    row, many = ROWS[molecule], ["--jobs", str(jobs)]
    python, program, scripts = sys.executable, [sys.executable, "-m", "mlsemi"], Path("benchmarks") / "md17"
    labels = {"train": ("train", row.labels, row.forces), "test": ("test", TEST, False)}
    if row.forces:
        labels["test_gradients"] = ("test", TEST_GRADIENTS, True)
    found = []
    for name, (part, count, gradient) in labels.items():
        source, out = str(frames / f"rmd17_{molecule}_{part}01.npz"), str(LABELS / f"{molecule}_{name}.h5")
        more = ["--gradient"] if gradient else []
        found.append([*program, "label", source, "-o", out, *LEVEL, "--limit", str(count), *more, *many])
        found.append([python, str(scripts / "check_labels.py"), source, out])
    start: list[str] = []
    for part in row.parts:
        config = scripts / f"{part}.toml"
        found.append([*program, "train", str(config), *start])
        output = (ROOT / config).parent / tomllib.loads((ROOT / config).read_text())["output"]
        start = ["--from", str(output.resolve().relative_to(ROOT) / "model.safetensors")]
    model = start[1]
    found.append([*program, "evaluate", model, str(LABELS / f"{molecule}_test.h5"), "--variational", *many])
    if row.forces:
        gradients = str(LABELS / f"{molecule}_test_gradients.h5")
        found.append([python, str(scripts / "evaluate_forces.py"), model, gradients])
    return found


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
        "frames", type=Path, metavar="RMD17", help="folder of rmd17_MOLECULE_train01.npz and _test01.npz"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes that label and evaluate (default 1)")
    parser.add_argument("--show", action="store_true", help="print the commands and do nothing")
    arguments = parser.parse_args(argv)
    frames = arguments.frames.resolve()
    for part in ("train", "test"):
        file = frames / f"rmd17_{arguments.molecule}_{part}01.npz"
        if not file.is_file():
            parser.error(f"no such file: {file}; README.md here says how to make it from the public archive")
    (ROOT / LABELS).mkdir(parents=True, exist_ok=True)
    for command in commands(arguments.molecule, frames, arguments.jobs):
        print(f"$ {shlex.join(command)}", flush=True)
        if not arguments.show and (status := finished(command)):
            sys.exit(f"that ended with status {status}; run the same command again to go on")


if __name__ == "__main__":
    main()
