"""`mlsemi frequencies`: vibrations, infrared intensities and thermochemistry of molecules of the user."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlsemi.cli import options
from mlsemi.cli.options import DeviceName, ModeName, check_outputs, limit_threads, read_files, told

if TYPE_CHECKING:
    from rich.table import Table

    from mlsemi.model import Model
    from mlsemi.molecule import Molecule
    from mlsemi.properties.thermochemistry import Thermochemistry
    from mlsemi.vibrations import Frequencies


class MassName(StrEnum):
    """Values of --masses."""

    most_abundant = "most-abundant"
    average = "average"


def frequencies(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Geometries: xyz [angstrom] or whatever ASE reads.")],
    model: options.Model = None,
    mode: Annotated[
        ModeName, typer.Option(help="fast: exact derivatives; in the others differences of gradients, by PySCF.")
    ] = ModeName.fast,
    charge: options.Charge = None,
    spin: options.Spin = None,
    optimize: Annotated[bool, typer.Option("--optimize", help="Relax the geometry first, in the same mode.")] = False,
    dispersion: options.Dispersion = False,
    temperature: Annotated[float, typer.Option(help="Of the thermochemistry [K].")] = 298.15,
    pressure: Annotated[float, typer.Option(help="Of the thermochemistry [Pa].")] = 101325.0,
    symmetry_number: Annotated[
        int | None, typer.Option(min=1, help="Of the rotation; default: what the geometry has.")
    ] = None,
    masses: Annotated[MassName, typer.Option(help="Of the most abundant isotopes, or average ones.")] = (
        MassName.most_abundant
    ),
    json_out: Annotated[
        Path | None,
        typer.Option("--json", metavar="OUT", help="Write QCSchema AtomicResults with the Hessian."),
    ] = None,
    device: options.Device = DeviceName.cpu,
    threads: options.Threads = None,
) -> None:
    """Harmonic frequencies, infrared intensities, zero-point energy and thermochemistry (RRHO, ideal gas)."""
    limit_threads(threads)
    with told("no JSON was written"):
        check_outputs(json_out, None, [file])
        _check_conditions(temperature, pressure)
        molecules = read_files([file], charge, spin)
        from mlsemi.model import DEFAULT_MODEL, load
        from mlsemi.vibrations import frequencies as frequencies_of
        from mlsemi.vibrations import relaxed

        loaded = load(model or DEFAULT_MODEL, device=device.value, precision="float64")
        loaded.check(molecules, mode=mode.value, forces=True, dispersion=dispersion)
        records = []
        for molecule in molecules:
            if optimize:
                molecule = relaxed(loaded, molecule, mode=mode.value, dispersion=dispersion)
            found = frequencies_of(loaded, molecule, mode=mode.value, dispersion=dispersion, masses=masses.value)
            gas = found.thermochemistry(temperature=temperature, pressure=pressure, symmetry_number=symmetry_number)
            _print(found, gas, loaded, mode.value)
            records.append(_record(found, gas, loaded, mode.value))
        if json_out is not None:
            from mlsemi.interop.qcschema import write_json

            write_json(json_out, records)
            typer.echo(f"written: {json_out}", err=True)


def _check_conditions(temperature: float, pressure: float) -> None:
    for option, value in (("--temperature", temperature), ("--pressure", pressure)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{option} {value:g} must be positive")


def _print(found: Frequencies, gas: Thermochemistry, model: Model, mode: str) -> None:
    from rich.console import Console

    molecule, header = found.molecule, model.header
    for text in found.warnings:
        typer.echo(f"warning: {molecule.name or molecule.formula}: {text}", err=True)
    console = Console(highlight=False, markup=False)
    console.print(
        f"\n{molecule.name or molecule.formula}: {molecule.formula}, charge {molecule.charge}, spin {molecule.spin}\n"
        f"{model.name}, {mode}, {header.level(mode)}"
    )
    console.print(_geometry(molecule))
    console.print(_modes(found))
    console.print(
        f"ideal gas at {gas.temperature:g} K and {gas.pressure:g} Pa, rigid rotor (symmetry number "
        f"{gas.symmetry_number}), harmonic oscillators"
    )
    console.print(_functions(gas))


def _geometry(molecule: Molecule) -> Table:
    from rich.table import Table

    from mlsemi.molecule import symbol_of

    table = Table(box=None, padding=(0, 2))
    for column in ("atom", "", "x/angstrom", "y/angstrom", "z/angstrom"):
        table.add_column(column, justify="right")
    for k, (z, place) in enumerate(zip(molecule.numbers.tolist(), molecule.positions_angstrom.tolist(), strict=True)):
        table.add_row(str(k), symbol_of(z), *(f"{0.0 + round(x, 6):.6f}" for x in place))
    return table


def _modes(found: Frequencies) -> Table | str:
    from rich.table import Table

    vibrations = found.vibrations
    if not len(vibrations.wavenumbers):
        return "an atom has no vibrations"
    table = Table(box=None, padding=(0, 2))
    for column in ("mode", "wavenumber/cm^-1", "IR/(km/mol)", "reduced mass/u"):
        table.add_column(column, justify="right")
    rows = zip(vibrations.wavenumbers, found.intensities, vibrations.reduced_masses, strict=True)
    for k, (wavenumber, intensity, mass) in enumerate(rows):
        table.add_row(str(k), f"{wavenumber:.2f}", f"{intensity:.2f}", f"{mass:.4f}")
    return table


def _functions(gas: Thermochemistry) -> Table:
    from rich.table import Table

    from mlsemi.units import HARTREE_IN_KCAL_PER_MOL

    table = Table(show_header=False, box=None, padding=(0, 2))
    for _ in range(3):
        table.add_column(justify="right")
    table.columns[0].justify = "left"
    zero = gas.zero_point_energy
    table.add_row("energy", f"{gas.electronic_energy:.6f} Eh")
    table.add_row("zero-point energy", f"{zero:.6f} Eh", f"{zero * HARTREE_IN_KCAL_PER_MOL:.3f} kcal/mol")
    table.add_row("internal energy U", f"{gas.energy:.6f} Eh")
    table.add_row("enthalpy H", f"{gas.enthalpy:.6f} Eh")
    entropy = 1000 * gas.entropy * HARTREE_IN_KCAL_PER_MOL
    table.add_row("entropy S", f"{gas.entropy:.4e} Eh/K", f"{entropy:.3f} cal/(mol K)")
    table.add_row("Gibbs energy G", f"{gas.gibbs_energy:.6f} Eh")
    capacity = 1000 * gas.heat_capacity * HARTREE_IN_KCAL_PER_MOL
    table.add_row("heat capacity C_V", f"{gas.heat_capacity:.4e} Eh/K", f"{capacity:.3f} cal/(mol K)")
    return table


def _record(found: Frequencies, gas: Thermochemistry, model: Model, mode: str) -> dict[str, Any]:
    """A QCSchema AtomicResult of the driver 'hessian'; what the schema has no place for is in the extras."""
    from mlsemi.interop.qcschema import atomic_result

    header, field, vibrations = model.header, found.force_field, found.vibrations
    record = atomic_result(
        found.molecule,
        field.observables,
        model_name=model.name,
        mode=mode,
        method=header.method,
        basis_name=header.basis.name,
        level=header.level(mode),
    )
    second = field.hessian.ravel().tolist()
    record |= {"driver": "hessian", "return_result": second}
    record["properties"]["return_hessian"] = second
    extras = record["extras"]["mlsemi"]
    extras["warnings"] = list(found.warnings)
    extras["vibrations"] = {
        "wavenumbers_per_cm": vibrations.wavenumbers.tolist(),
        "infrared_km_per_mol": found.intensities.tolist(),
        "reduced_masses_u": vibrations.reduced_masses.tolist(),
        "displacements": vibrations.displacements.tolist(),
        "masses_u": vibrations.masses.tolist(),
        "dipole_derivatives_e": field.dipole_derivatives.tolist(),
    }
    extras["thermochemistry"] = {
        "temperature_K": gas.temperature,
        "pressure_Pa": gas.pressure,
        "symmetry_number": gas.symmetry_number,
        "zero_point_energy_Eh": gas.zero_point_energy,
        "internal_energy_Eh": gas.energy,
        "enthalpy_Eh": gas.enthalpy,
        "entropy_Eh_per_K": gas.entropy,
        "gibbs_energy_Eh": gas.gibbs_energy,
        "heat_capacity_cv_Eh_per_K": gas.heat_capacity,
    }
    return record
