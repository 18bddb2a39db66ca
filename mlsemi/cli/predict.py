"""`mlsemi predict`: molecules of the user, by a trained model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlsemi.cli import options
from mlsemi.cli.options import DeviceName, ModeName, PrecisionName, check_outputs, limit_threads, read_files, told

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from mlsemi.layout import AOLayout
    from mlsemi.model import Model
    from mlsemi.molecule import Molecule
    from mlsemi.observables import Observables

IN_FULL = 3
"""So many frames are printed in full, more with one line each."""


def predict(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Geometries: xyz [angstrom] or whatever ASE reads.")
    ],
    model: options.Model = None,
    mode: Annotated[
        ModeName,
        typer.Option(
            help="variational: one Fock build by PySCF, with an error estimate; corrected: less what that says; "
            "composite: plus a learned difference to another method; scf: to convergence."
        ),
    ] = ModeName.fast,
    charge: Annotated[int | None, typer.Option(help="Total charge; default: what the frames say, else 0.")] = None,
    spin: Annotated[
        int | None, typer.Option(help="Unpaired electrons, 2S; default: what the frames say, else 0.")
    ] = None,
    forces: Annotated[bool, typer.Option("--forces", help="Forces too; in JSON the gradient.")] = False,
    dispersion: options.Dispersion = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="scf: PySCF's default guess too; the lower solution counts.")
    ] = False,
    estimate: Annotated[
        bool,
        typer.Option("--estimate/--no-estimate", help="fast: estimate the error of the energy, in twice the time."),
    ] = True,
    conv_tol: Annotated[float, typer.Option(help="scf: error of the energy that is accepted [Eh].")] = 1e-9,
    json_out: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="OUT",
            help="Write QCSchema AtomicResults (FailedOperation where one failed), as a list for several frames.",
        ),
    ] = None,
    matrices: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write OUT-0000.npz...: F, S, D, C in PySCF's AO order.")
    ] = None,
    device: options.Device = DeviceName.cpu,
    threads: options.Threads = None,
    precision: options.Precision = PrecisionName.float32,
) -> None:
    """Predict energy, orbitals, dipole moment and charges of molecules, without SCF but in the scf mode."""
    start = time.perf_counter()
    limit_threads(threads)
    failed = 0
    with told("no JSON was written; matrices that were written are whole"):
        check_outputs(json_out, matrices, files)
        molecules = read_files(files, charge, spin)
        from mlsemi.model import DEFAULT_MODEL, load

        loaded = load(model or DEFAULT_MODEL, device=device.value, precision=precision.value)
        _check_options(mode, compare=compare, conv_tol=conv_tol)
        loaded.check(molecules, mode=mode.value, forces=forces, dispersion=dispersion)
        printer = _Printer(loaded, mode.value, molecules, forces=forces)
        how = {"forces": forces, "dispersion": dispersion, "compare": compare, "conv_tol": conv_tol}
        how["estimate"] = estimate
        run = _Run(loaded, molecules, mode.value, how, json_out, matrices)
        for index, observables in run.results():
            printer.add(index, observables)
        run.write_json()
        failed = printer.finish(time.perf_counter() - start)
        if json_out is not None:
            typer.echo(f"written: {json_out}", err=True)
        if matrices is not None and run.with_matrices:
            first, last = min(run.with_matrices), max(run.with_matrices)
            more = f" ... {run.matrix_path(last)}" if last > first else ""
            typer.echo(f"written: {run.matrix_path(first)}{more}", err=True)
    if failed:
        raise typer.Exit(1)


def _check_options(mode: ModeName, *, compare: bool, conv_tol: float) -> None:
    """Refuses options of the scf mode in another one."""
    if mode is ModeName.scf:
        if not conv_tol > 0:
            raise ValueError(f"--conv-tol {conv_tol:g} must be a positive energy [Eh]")
        return
    for name, given in (("--compare", compare), ("--conv-tol", conv_tol != 1e-9)):
        if given:
            raise ValueError(f"{name} is an option of --mode scf, and the mode is {mode.value}")


@dataclass
class _Run:
    """Results as they come: matrices go to their files at once, and what goes into the JSON file is kept.

    A frame that fails has no matrices, and spoils no other.
    """

    model: Model
    molecules: list[Molecule]
    mode: Any
    options: dict[str, Any]
    json_out: Path | None
    matrices: Path | None

    def __post_init__(self) -> None:
        self._records: dict[int, dict[str, Any]] = {}
        self._layouts: dict[tuple[int, ...], AOLayout] = {}
        self.with_matrices: set[int] = set()

    def results(self) -> Iterator[tuple[int, Observables]]:
        """Index and observables of each frame, batch by batch."""
        from mlsemi.interop.matrices import write_matrices

        for index, observables in self.model.stream(self.molecules, mode=self.mode, errors="mark", **self.options):
            if self.matrices is not None and observables.failure is None:
                write_matrices(self.matrix_path(index), observables, self._layout(self.molecules[index]))
                self.with_matrices.add(index)
            if self.json_out is not None:
                self._records[index] = self._record(self.molecules[index], observables)
            yield index, observables

    def _record(self, molecule: Molecule, observables: Observables) -> dict[str, Any]:
        """What the JSON file has of a frame."""
        from mlsemi.interop.qcschema import atomic_result, failed_operation

        header = self.model.header
        names: dict[str, Any] = {"method": header.method, "basis_name": header.basis.name}
        names |= {"model_name": self.model.name, "mode": str(self.mode)}
        if observables.failure is None:
            return atomic_result(molecule, observables, level=header.level(self.mode), **names)
        driver = "gradient" if self.options["forces"] else "energy"
        return failed_operation(molecule, observables.failure, driver=driver, **names)

    def matrix_path(self, index: int) -> Path:
        """File of the matrices of a frame."""
        from mlsemi.interop.matrices import frame_path

        assert self.matrices is not None
        return frame_path(self.matrices, index)

    def write_json(self) -> None:
        """Writes the JSON file, where one is wanted."""
        from mlsemi.interop.qcschema import write_json

        if self.json_out is not None:
            write_json(self.json_out, [self._records[k] for k in range(len(self.molecules))])

    def _layout(self, molecule: Molecule) -> AOLayout:
        from mlsemi.layout import AOLayout

        numbers = tuple(molecule.numbers.tolist())
        if numbers not in self._layouts:
            self._layouts[numbers] = AOLayout(self.model.header.basis, numbers)
        return self._layouts[numbers]


class _Printer:
    """Prints results in the order of the frames, each as soon as all before it are there."""

    def __init__(self, model: Model, mode: str, molecules: list[Molecule], *, forces: bool) -> None:
        self._model, self._mode, self._molecules, self._forces = model, mode, molecules, forces
        self._waiting: dict[int, Observables] = {}
        self._next = 0
        self._warnings: dict[str, list[str]] = {}
        self._failed: list[str] = []
        self._titled = False
        self._width = max(5, *(len(m.name) for m in molecules))
        self._in_full = len(molecules) <= IN_FULL
        self._spins = any(m.spin for m in molecules)

    def add(self, index: int, observables: Observables) -> None:
        """Takes a result."""
        self._waiting[index] = observables
        while self._next in self._waiting:
            self._print(self._molecules[self._next], self._waiting.pop(self._next))
            self._next += 1

    def finish(self, seconds: float) -> int:
        """Prints warnings, the same ones together, how long it took, and what failed; the number of those frames."""
        for text, names in self._warnings.items():
            where = names[0] if len(names) == 1 else f"{len(names)} frames, the first is {names[0]}"
            typer.echo(f"warning: {where}: {text}", err=True)
        if not self._in_full:
            typer.echo(f"{len(self._molecules)} frames in {seconds:.1f} s, start-up included", err=True)
        if self._failed:
            total = len(self._molecules)
            which = f"{len(self._failed)} of {total} frames failed, the first: " if total > 1 else ""
            typer.echo(f"error: {which}{self._failed[0]}", err=True)
        return len(self._failed)

    def _print(self, molecule: Molecule, observables: Observables) -> None:
        if observables.failure is not None:
            reason = " ".join(observables.failure.split())
            self._failed.append(reason)
            self._print_title()
            if len(self._molecules) > 1:
                name = f"{molecule.name:{self._width}}  {molecule.formula:12}" if not self._in_full else "\n"
                typer.echo(f"{name}failed: {reason}")
            return
        for text in observables.warnings:
            self._warnings.setdefault(text, []).append(molecule.name or molecule.formula)
        if self._in_full:
            from rich.console import Console

            console = Console(highlight=False, markup=False)
            for table in full_tables(molecule, observables, model=self._model, mode=self._mode):
                console.print(table)
            return
        self._print_title()
        typer.echo(_line(self._width, molecule, observables, spins=self._spins))

    def _print_title(self) -> None:
        """The head of the table of many frames, once."""
        if self._in_full or self._titled:
            return
        header = self._model.header
        typer.echo(f"{self._model.name}, {self._mode}, {header.level(self._mode)}")
        typer.echo(_line_titles(self._width, forces=self._forces, spins=self._spins))
        self._titled = True


def _line_titles(width: int, *, forces: bool, spins: bool) -> str:
    return (
        f"{'frame':{width}}  {'formula':12}{'energy/Eh':>16}{'error/mEh':>11}{'HOMO/eV':>10}{'LUMO/eV':>10}"
        f"{'gap/eV':>10}{'dipole/D':>10}{'<S^2>' if spins else '':>{8 * spins}}{'time/ms':>10}"
        + (f"{'max. |gradient|/au':>20}" if forces else "")
    )


def _line(width: int, molecule: Molecule, o: Observables, *, spins: bool) -> str:
    from mlsemi.units import DIPOLE_AU_IN_DEBYE, HARTREE_IN_EV

    estimate = f"{'-' if o.energy_error_estimate is None else format(1e3 * o.energy_error_estimate, '.4f'):>11}"
    orbitals = "".join(
        f"{'-' if value is None else format(value * HARTREE_IN_EV, '.4f'):>10}" for value in (o.homo, o.lumo, o.gap)
    )
    assert o.dipole is not None and o.seconds is not None
    size = float((o.dipole @ o.dipole) ** 0.5) * DIPOLE_AU_IN_DEBYE
    spin = f"{'-' if o.spin_square is None else format(o.spin_square, '.4f'):>8}" if spins else ""
    return (
        f"{molecule.name:{width}}  {molecule.formula:12}{o.energy:16.6f}{estimate}{orbitals}{size:10.4f}{spin}"
        f"{1e3 * o.seconds:10.1f}" + (f"{abs(o.gradient).max():20.6f}" if o.gradient is not None else "")
    )


def full_tables(molecule: Molecule, o: Observables, *, model: Model, mode: str) -> list[Table | str]:
    """A title, a table of the molecule and one of its atoms."""
    from rich.table import Table

    from mlsemi.molecule import symbol_of
    from mlsemi.units import DIPOLE_AU_IN_DEBYE, HARTREE_IN_EV, HARTREE_IN_KCAL_PER_MOL

    header = model.header
    title = f"\n{molecule.name or molecule.formula}: {molecule.formula}, charge {molecule.charge}, spin {molecule.spin}"
    whole = Table(show_header=False, box=None, padding=(0, 2))
    for _ in range(3):
        whole.add_column(justify="right")
    whole.columns[0].justify = "left"
    whole.add_row("model", model.name)
    whole.add_row("mode", mode)
    whole.add_row("method/basis", header.level(mode))
    whole.add_row("energy", f"{o.energy:.6f} Eh")
    if o.energy_error_estimate is not None:
        limits = {"error estimate": o.energy_error_estimate, "95 % are below": o.energy_error_95}
        for name, value in limits.items():
            if value is not None:
                whole.add_row(name, f"{value:.2e} Eh", f"{value * HARTREE_IN_KCAL_PER_MOL:.2g} kcal/mol")
    elif mode != "fast":
        whole.add_row("error estimate", "none")
    for name, value in (("HOMO", o.homo), ("LUMO", o.lumo), ("HOMO-LUMO gap", o.gap)):
        whole.add_row(name, *("none",) if value is None else (f"{value:.6f} Eh", f"{value * HARTREE_IN_EV:.4f} eV"))
    assert o.dipole is not None and o.seconds is not None
    size = float((o.dipole @ o.dipole) ** 0.5)
    whole.add_row("dipole moment", f"{size:.5f} au", f"{size * DIPOLE_AU_IN_DEBYE:.4f} D")
    if molecule.charge:
        whole.add_row("", "about the origin of coordinates")
    unpaired: tuple[np.ndarray, ...] = ()
    if molecule.spin and o.spin_square is not None:
        pure = molecule.spin / 2 * (molecule.spin / 2 + 1)
        whole.add_row("<S^2>", f"{o.spin_square:.4f}", f"{pure:.2f} if pure")
        assert o.spins_mulliken is not None and o.spins_loewdin is not None
        unpaired = (o.spins_mulliken, o.spins_loewdin)
    whole.add_row("time", f"{o.seconds:.3f} s")
    atoms = Table(box=None, padding=(0, 2))
    titles = ["atom", "", "Mulliken/e", "Loewdin/e"]
    for column in titles + (["Fx/au", "Fy/au", "Fz/au"] if o.gradient is not None else []):
        atoms.add_column(column, justify="right")
    assert o.charges_mulliken is not None and o.charges_loewdin is not None
    for k, z in enumerate(molecule.numbers.tolist()):
        # 0.0 - 0.0 has no minus sign, -0.0 has
        row = [str(k), symbol_of(z), f"{o.charges_mulliken[k]:+.4f}", f"{o.charges_loewdin[k]:+.4f}"]
        atoms.add_row(*row, *(f"{0.0 - round(x, 6):.6f}" for x in (o.gradient[k] if o.gradient is not None else ())))
    return [title, whole, *o.notes, atoms, *([_spin_table(molecule, unpaired)] if unpaired else [])]


def _spin_table(molecule: Molecule, unpaired: tuple[np.ndarray, ...]) -> Table:
    """Unpaired electrons of the atoms: by themselves, since eighty columns do not hold forces as well."""
    from rich.table import Table

    from mlsemi.molecule import symbol_of

    table = Table(box=None, padding=(0, 2))
    for column in ("atom", "", "spin Mulliken", "spin Loewdin"):
        table.add_column(column, justify="right")
    for k, z in enumerate(molecule.numbers.tolist()):
        table.add_row(str(k), symbol_of(z), *(f"{spins[k]:+.4f}" for spins in unpaired))
    return table
