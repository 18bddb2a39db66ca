"""`mlsemi properties`: charges, bond orders, moments and reactivity of molecules of the user, by a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlsemi.cli import options
from mlsemi.cli.options import ModeName, check_outputs, limit_threads, read_files, told

if TYPE_CHECKING:
    from rich.table import Table

    from mlsemi.analysis import Analysis
    from mlsemi.model import Model
    from mlsemi.molecule import Molecule
    from mlsemi.observables import Observables

BOND = 0.2
"""Bond orders above this are printed."""


def properties(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Geometries: xyz [angstrom] or whatever ASE reads.")
    ],
    model: options.Model = None,
    mode: Annotated[
        ModeName,
        typer.Option(help="scf: of PySCF's self-consistent density; all others: of the predicted one."),
    ] = ModeName.fast,
    charge: options.Charge = None,
    spin: options.Spin = None,
    bonds: Annotated[float, typer.Option(help="Print bonds of a Mayer or Wiberg order above this.")] = BOND,
    json_out: Annotated[
        Path | None,
        typer.Option("--json", metavar="OUT", help="Write everything in atomic units; a list for several frames."),
    ] = None,
    threads: options.Threads = None,
) -> None:
    """Charges, spins, bond orders, dipole and quadrupole, frontier orbitals and Fukui functions of molecules."""
    limit_threads(threads)
    with told("no JSON was written"):
        check_outputs(json_out, None, files)
        molecules = read_files(files, charge, spin)
        from mlsemi.interop.qcschema import write_json
        from mlsemi.model import DEFAULT_MODEL, load

        loaded = load(model or DEFAULT_MODEL)
        loaded.check(molecules, mode=mode.value)
        records = _run(loaded, molecules, mode.value, bonds, keep=json_out is not None)
        if json_out is not None:
            write_json(json_out, records)
    if json_out is not None:
        typer.echo(f"written: {json_out}", err=True)


def _run(model: Model, molecules: list[Molecule], mode: Any, bonds: float, *, keep: bool) -> list[dict[str, Any]]:
    """Predicts, prints in the order of the frames, each as soon as all before it are there, and returns records."""
    from rich.console import Console

    from mlsemi.analysis import analyze

    console = Console(highlight=False, markup=False)
    waiting: dict[int, tuple[Observables, Analysis]] = {}
    records: list[dict[str, Any]] = []
    following = 0
    for index, observables in model.stream(molecules, mode=mode, estimate=False):
        analysis = analyze(molecules[index], observables, model.header.basis)
        waiting[index] = _slim(observables), analysis
        while following in waiting:
            molecule, (o, a) = molecules[following], waiting.pop(following)
            for table in tables(molecule, o, a, model=model, mode=mode, bonds=bonds):
                console.print(table)
            for text in o.warnings + a.notes:
                typer.echo(f"warning: {molecule.name or molecule.formula}: {text}", err=True)
            if keep:
                records.append(_record(molecule, o, a, model, mode))
            following += 1
    return records


def _slim(observables: Observables) -> Observables:
    """Without the matrices, so that a frame that waits for its turn takes little memory."""
    from dataclasses import replace

    return replace(observables, fock=None, overlap=None, density=None, mo_coeff=None)


def _record(molecule: Molecule, o: Observables, a: Analysis, model: Model, mode: str) -> dict[str, Any]:
    """Everything of a frame as plain data, in atomic units."""
    from mlsemi.molecule import symbol_of

    header = model.header
    return {
        "name": molecule.name or molecule.formula,
        "symbols": [symbol_of(z) for z in molecule.numbers.tolist()],
        "positions": molecule.positions.tolist(),
        "charge": molecule.charge,
        "spin": molecule.spin,
        "model": model.name,
        "mode": mode,
        "method": header.method,
        "basis": header.basis.name,
        "units": "atomic units; moments about the origin of coordinates",
        "level": header.level(mode),
        "energy": o.energy,
        "properties": a.to_dict(),
        "warnings": list(o.warnings),
    }


def tables(
    molecule: Molecule, o: Observables, a: Analysis, *, model: Model, mode: str, bonds: float = BOND
) -> list[Table | str]:
    """A title and the tables of one molecule."""
    title = f"\n{molecule.name or molecule.formula}: {molecule.formula}, charge {molecule.charge}, spin {molecule.spin}"
    parts: list[Table | str] = [title, _whole(molecule, o, a, model, mode), *o.notes]
    parts += ["\nmoments about the origin of coordinates", _moments(a), "\natoms", _atoms(molecule, a)]
    if molecule.spin:
        parts += ["\nunpaired electrons", _spins(molecule, a)]
    if a.fukui_mulliken is not None:
        parts += [_fukui_title(a), _fukui(molecule, a)]
    return [*parts, f"\nbonds of an order above {bonds:g}", _bonds(molecule, a, bonds)]


def _table(titles: tuple[str, ...]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2), pad_edge=False)
    for column in titles:
        table.add_column(column, justify="right")
    return table


def _whole(molecule: Molecule, o: Observables, a: Analysis, model: Model, mode: str) -> Table:
    """What the molecule has as a whole."""
    from mlsemi.units import HARTREE_IN_EV

    table = _table(("", "", ""))
    table.show_header = False
    table.columns[0].justify = "left"
    table.add_row("model", model.name)
    table.add_row("mode", mode)
    table.add_row("method/basis", model.header.level(mode))
    if o.energy is not None:
        table.add_row("energy", f"{o.energy:.6f} Eh")
    names = ("HOMO", "LUMO", "HOMO-LUMO gap", "hardness (I-A)/2", "electronegativity", "electrophilicity")
    values = (a.homo, a.lumo, a.gap, a.hardness, a.electronegativity, a.electrophilicity)
    for name, value in zip(names, values, strict=True):
        table.add_row(name, *("none",) if value is None else (f"{value:.6f} Eh", f"{value * HARTREE_IN_EV:.4f} eV"))
    if molecule.spin:
        pure = molecule.spin / 2 * (molecule.spin / 2 + 1)
        table.add_row("<S^2>", f"{a.spin_square:.4f}", f"{pure:.2f} if pure")
    return table


def _moments(a: Analysis) -> Table:
    """Dipole and traceless quadrupole moment."""
    from mlsemi.units import BOHR_IN_ANGSTROM, DIPOLE_AU_IN_DEBYE

    table = _table(("", "x", "y", "z", "size"))
    table.columns[0].justify = "left"
    for unit, factor in (("au", 1.0), ("D", DIPOLE_AU_IN_DEBYE)):
        values = (*a.dipole.tolist(), float((a.dipole @ a.dipole) ** 0.5))
        table.add_row(f"dipole/{unit}", *(_fixed(factor * v, 4) for v in values))
    for row, name in enumerate("xyz"):
        label = "quadrupole/(D angstrom)" if not row else ""
        factor = DIPOLE_AU_IN_DEBYE * BOHR_IN_ANGSTROM
        table.add_row(f"{label:24}{name}", *(_fixed(factor * v, 4) for v in a.quadrupole[row].tolist()))
    return table


def _fixed(value: float, digits: int) -> str:
    """With so many decimals, and without a minus sign of zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _rows(molecule: Molecule, table: Table, columns: list[Any], *, signed: int | None = None) -> Table:
    """Adds a row for each atom: number, symbol and values, the first (or all) with a sign, a dash for None."""
    from mlsemi.molecule import symbol_of

    for k, z in enumerate(molecule.numbers.tolist()):
        values = ["-" if c is None else f"{round(float(c[k]), 4) + 0.0:+.4f}" for c in columns]
        plain = [v.removeprefix("+") for v in values[len(values) if signed is None else signed :]]
        table.add_row(str(k), symbol_of(z), *values[: len(values) - len(plain)], *plain)
    return table


def _atoms(molecule: Molecule, a: Analysis) -> Table:
    titles = ("atom", "", "Mulliken/e", "Loewdin/e", "IAO/e", "valence", "free valence")
    columns = [a.charges_mulliken, a.charges_loewdin, a.charges_iao, a.valences, a.free_valences]
    n = len(columns) if molecule.spin else len(columns) - 1  # a closed shell has no free valences
    return _rows(molecule, _table(titles[: n + 2]), columns[:n], signed=3)


def _spins(molecule: Molecule, a: Analysis) -> Table:
    table = _table(("atom", "", "Mulliken", "Loewdin", "IAO"))
    return _rows(molecule, table, [a.spins_mulliken, a.spins_loewdin, a.spins_iao])


def _fukui_title(a: Analysis) -> str:
    sets = [
        f"{name} of {n} orbitals" for name, n in (("HOMO", a.homo_degeneracy), ("LUMO", a.lumo_degeneracy)) if n != 1
    ]
    return "\nFukui functions: Mulliken, then Loewdin" + (f" (average: {', '.join(sets)})" if sets else "")


def _fukui(molecule: Molecule, a: Analysis) -> Table:
    assert a.fukui_mulliken is not None and a.fukui_loewdin is not None
    columns = [getattr(f, name) for f in (a.fukui_mulliken, a.fukui_loewdin) for name in ("minus", "plus", "zero")]
    return _rows(molecule, _table(("atom", "", *("f-", "f+", "f0") * 2)), columns)


def _bonds(molecule: Molecule, a: Analysis, least: float) -> Table:
    import numpy as np

    from mlsemi.molecule import symbol_of

    table = _table(("bond", "", "length/angstrom", "Mayer", "Wiberg"))
    largest = np.maximum(a.bond_orders_mayer, a.bond_orders_wiberg)
    names = [symbol_of(z) for z in molecule.numbers.tolist()]
    for i, j in np.argwhere(np.triu(largest > least, 1)).tolist():
        length = float(np.linalg.norm(molecule.positions_angstrom[i] - molecule.positions_angstrom[j]))
        orders = (f"{x[i, j]:.4f}" for x in (a.bond_orders_mayer, a.bond_orders_wiberg))
        table.add_row(f"{i}-{j}", f"{names[i]}-{names[j]}", f"{length:.4f}", *orders)
    return table
