"""One row of the table from its geometries: labels, their check, training, test.

    python benchmarks/md17/row.py ethanol FRAMES [--jobs 2] [--show]

FRAMES is the folder with the frames, see README.md. It runs the commands that --show prints, one after the other, and
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

ROOT = Path(__file__).resolve().parents[2]
LABELS = Path("runs") / "md17"
LEVEL = ("--method", "pbe", "--basis", "def2-svp")
TEST_GRADIENTS = 100
"""Test labels with gradients."""


@dataclass(frozen=True)
class Row:
    """What makes a row.

    Attributes:
        parts: configurations in their order, below `benchmarks`; each starts from the model of the one before.
        labels: to train and to validate on; 0 if they are in the repository.
        test: labels to test on.
        forces: gradients of the labels too, to train on and for a test of forces.
        frames: names of the files of the frames, with {molecule} and {part}, "train" or "test".
        checked: the frames come with energies of another program, with which those of the labels are compared.
    """

    parts: tuple[str, ...]
    labels: int = 1000
    test: int = 300
    forces: bool = False
    frames: str = "rmd17_{molecule}_{part}01.npz"
    checked: bool = True


ROWS = {
    "water": Row(("water/water",), labels=0, test=500, frames="water_500K_{part}.npz", checked=False),
    "ethanol": Row(("md17/ethanol", "md17/ethanol_forces"), forces=True),
    "malonaldehyde": Row(("md17/malonaldehyde", "md17/malonaldehyde_energies")),
    "uracil": Row(("md17/uracil", "md17/uracil_energies")),
}


def frame_files(molecule: str, frames: Path) -> dict[str, Path]:
    """Files of the frames that a row reads, by part."""
    row = ROWS[molecule]
    parts = ("train", "test") if row.labels else ("test",)
    return {part: frames / row.frames.format(molecule=molecule, part=part) for part in parts}


def commands(molecule: str, frames: Path, jobs: int) -> list[list[str]]:
    """All commands of a row, to be run in the root of the repository.

    Args:
        molecule: one of `ROWS`.
        frames: folder of the npz files.
        jobs: processes that label and evaluate.
    """
    row, files, many = ROWS[molecule], frame_files(molecule, frames), ["--jobs", str(jobs)]
    python, program, benchmarks = sys.executable, [sys.executable, "-m", "mlsemi"], Path("benchmarks")
    labels = {"train": ("train", row.labels, row.forces), "test": ("test", row.test, False)}
    if row.forces:
        labels["test_gradients"] = ("test", TEST_GRADIENTS, True)
    found = []
    for name, (part, count, gradient) in labels.items():
        if not count:
            continue
        source, out = str(files[part]), str(LABELS / f"{molecule}_{name}.h5")
        more = ["--gradient"] if gradient else []
        found.append([*program, "label", source, "-o", out, *LEVEL, "--limit", str(count), *more, *many])
        if row.checked:
            found.append([python, str(benchmarks / "md17" / "check_labels.py"), source, out])
    start: list[str] = []
    for part in row.parts:
        config = benchmarks / f"{part}.toml"
        found.append([*program, "train", str(config), *start])
        output = (ROOT / config).parent / tomllib.loads((ROOT / config).read_text())["output"]
        start = ["--from", str(output.resolve().relative_to(ROOT) / "model.safetensors")]
    model = start[1]
    found.append([*program, "evaluate", model, str(LABELS / f"{molecule}_test.h5"), "--variational", *many])
    if row.forces:
        gradients = str(LABELS / f"{molecule}_test_gradients.h5")
        found.append([python, str(benchmarks / "md17" / "evaluate_forces.py"), model, gradients])
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
        "frames",
        type=Path,
        metavar="FRAMES",
        help="folder of rmd17_MOLECULE_train01.npz and _test01.npz; water: of water_500K_test.npz",
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes that label and evaluate (default 1)")
    parser.add_argument("--show", action="store_true", help="print the commands and do nothing")
    arguments = parser.parse_args(argv)
    if arguments.jobs < 1:
        parser.error(f"--jobs {arguments.jobs} must be 1 at least")
    frames = arguments.frames.resolve()
    for file in frame_files(arguments.molecule, frames).values():
        if not file.is_file():
            parser.error(f"no such file: {file}; README.md here says where the frames come from")
    if not arguments.show:
        (ROOT / LABELS).mkdir(parents=True, exist_ok=True)
    for command in commands(arguments.molecule, frames, arguments.jobs):
        print(f"$ {shlex.join(command)}", flush=True)
        if not arguments.show and (status := finished(command)):
            sys.exit(f"that ended with status {status}; run the same command again to go on")


if __name__ == "__main__":
    main()
