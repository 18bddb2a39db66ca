"""`mlsemi export`: results as files that other programs open."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlsemi.cli import options
from mlsemi.cli.options import DeviceName, ModeName, PrecisionName, check_writable, limit_threads, told
from mlsemi.cli.single import read_frames
from mlsemi.files import written_whole

if TYPE_CHECKING:
    from mlsemi.model import Model
    from mlsemi.molecule import Molecule
    from mlsemi.observables import Observables
    from mlsemi.properties.grids import BoxGrid


class FormatName(StrEnum):
    """Values of --format."""

    molden = "molden"
    cube = "cube"
    qcschema = "qcschema"
    trexio = "trexio"
    npz = "npz"
    extxyz = "extxyz"


class SpinName(StrEnum):
    """Values of --orbital-spin."""

    alpha = "alpha"
    beta = "beta"


SUFFIXES = {
    ".molden": FormatName.molden,
    ".cube": FormatName.cube,
    ".cub": FormatName.cube,
    ".json": FormatName.qcschema,
    ".h5": FormatName.trexio,
    ".hdf5": FormatName.trexio,
    ".trexio": FormatName.trexio,
    ".npz": FormatName.npz,
    ".xyz": FormatName.extxyz,
    ".extxyz": FormatName.extxyz,
}
"""Format by the name of the output."""

OF_MANY = (FormatName.qcschema, FormatName.extxyz)
"""Formats that hold several frames."""


@dataclass(frozen=True)
class CubeOptions:
    """What a cube holds: exactly one of orbital and quantity."""

    orbital: str | None
    quantity: str | None
    spin: str | None
    step: float | None
    margin: float | None

    def __post_init__(self) -> None:
        if (self.orbital is None) == (self.quantity is None):
            raise ValueError("a cube is of one of --orbital NAME, --density, --spin-density, --potential")
        if self.spin is not None and self.orbital is None:
            raise ValueError("--orbital-spin goes with --orbital")
        if self.orbital is not None:
            from mlsemi.interop.orbitals import check_orbital_name

            check_orbital_name(self.orbital)
        for name, value in (("--step", self.step), ("--margin", self.margin)):
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} {value:g} must be a positive length [bohr]")


def export(
    file: options.GeometryFile,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")],
    format: Annotated[
        FormatName | None, typer.Option(help="Default: by the name of the output (.json is qcschema, .h5 trexio).")
    ] = None,
    orbital: Annotated[
        str | None, typer.Option(metavar="NAME", help="cube: homo, lumo, homo-1 ... or a number from 1.")
    ] = None,
    orbital_spin: Annotated[SpinName | None, typer.Option(help="cube: spin of the orbital of an open shell.")] = None,
    density: Annotated[bool, typer.Option("--density", help="cube: electron density.")] = False,
    spin_density: Annotated[bool, typer.Option("--spin-density", help="cube: alpha less beta density.")] = False,
    potential: Annotated[bool, typer.Option("--potential", help="cube: electrostatic potential.")] = False,
    step: Annotated[
        float | None, typer.Option(help="cube: distance of points [bohr]; default 0.25, of the potential 0.5.")
    ] = None,
    margin: Annotated[float | None, typer.Option(help="cube: space around the nuclei [bohr]; default 6.")] = None,
    model: options.Model = None,
    mode: Annotated[ModeName, typer.Option(help="As of `mlsemi predict`.")] = ModeName.fast,
    charge: options.Charge = None,
    spin: options.Spin = None,
    frame: options.Frame = None,
    forces: Annotated[bool, typer.Option("--forces", help="qcschema, extxyz: forces too.")] = False,
    dispersion: options.Dispersion = False,
    device: options.Device = DeviceName.cpu,
    threads: options.Threads = None,
    precision: options.Precision = PrecisionName.float32,
) -> None:
    """Write orbitals, densities, matrices or results in the format of another program.

    molden: orbitals and basis. cube: one orbital, density or potential on a
    grid. qcschema: AtomicResult with its wavefunction. trexio: orbitals and
    basis (HDF5). npz: matrices in PySCF's AO order. extxyz: results by atom.
    """
    limit_threads(threads)
    with told(f"{output} was not written"):
        check_writable({"--output": output}, [file])
        kind = format or _by_name(output)
        quantities = {"density": density, "spin": spin_density, "potential": potential}
        cube = _cube(kind, orbital, orbital_spin, quantities, step, margin)
        if forces and kind not in OF_MANY:
            raise ValueError(f"--forces: the format {kind.value} has no forces; take qcschema or extxyz")
        molecules = read_frames(file, frame=frame, charge=charge, spin=spin)
        if len(molecules) > 1 and kind not in OF_MANY:
            raise ValueError(f"{file} has {len(molecules)} frames, and {kind.value} is of one: choose it with --frame")
        if cube is not None:
            _grid(molecules[0], cube)  # refused before anything is computed
        from mlsemi.model import DEFAULT_MODEL, load

        loaded = load(model or DEFAULT_MODEL, device=device.value, precision=precision.value)
        results = loaded.predict(molecules, mode=mode.value, forces=forces, dispersion=dispersion)
        write(kind, output, loaded, molecules, results, mode=mode.value, cube=cube)
    for text in dict.fromkeys(text for found in results for text in found.warnings):
        typer.echo(f"warning: {text}", err=True)
    typer.echo(f"written: {output}", err=True)


def _by_name(output: Path) -> FormatName:
    found = SUFFIXES.get(output.suffix.lower())
    if found is None:
        raise ValueError(
            f"--format is needed: {output.name!r} does not say it (names that do end in {', '.join(SUFFIXES)})"
        )
    return found


def _cube(
    kind: FormatName,
    orbital: str | None,
    spin: SpinName | None,
    quantities: dict[str, bool],
    step: float | None,
    margin: float | None,
) -> CubeOptions | None:
    """Options of a cube, refused in other formats."""
    wanted = [name for name, given in quantities.items() if given]
    if kind is not FormatName.cube:
        given = {"--orbital": orbital, "--orbital-spin": spin, "--step": step, "--margin": margin}
        names = [name for name, value in given.items() if value is not None]
        names += [{"spin": "--spin-density"}.get(name, f"--{name}") for name in wanted]
        if names:
            raise ValueError(f"{names[0]} is an option of --format cube, and the format is {kind.value}")
        return None
    if len(wanted) > 1:
        raise ValueError("a cube is of one of --orbital NAME, --density, --spin-density, --potential")
    return CubeOptions(orbital, wanted[0] if wanted else None, spin.value if spin else None, step, margin)


def write(
    kind: FormatName,
    output: Path,
    model: Model,
    molecules: list[Molecule],
    results: list[Observables],
    *,
    mode: str,
    cube: CubeOptions | None,
) -> None:
    """Writes results in a format; only those `OF_MANY` take more than one."""
    basis = model.header.basis
    molecule, found = molecules[0], results[0]
    if kind is FormatName.cube:
        assert cube is not None
        _write_cube(output, model, molecule, found, cube)
    elif kind is FormatName.molden:
        from mlsemi.interop.molden import write_molden

        write_molden(output, molecule, basis, found)
    elif kind is FormatName.trexio:
        from mlsemi.interop.trexio import write_trexio

        write_trexio(output, molecule, basis, found)
    elif kind is FormatName.npz:
        from mlsemi.interop.matrices import write_matrices
        from mlsemi.layout import AOLayout

        write_matrices(output, found, AOLayout(basis, molecule.numbers))
    elif kind is FormatName.qcschema:
        from mlsemi.interop.qcschema import atomic_result, write_json

        names: dict[str, Any] = {"model_name": model.name, "mode": mode, "method": model.header.method}
        names |= {"basis_name": basis.name, "basis": basis, "level": model.header.level(mode)}
        write_json(output, [atomic_result(m, o, **names) for m, o in zip(molecules, results, strict=True)])
    else:
        from mlsemi.interop.extxyz import frame_text

        info = {"model": model.name, "mode": mode}
        with written_whole(output) as beside:
            frames = (frame_text(m, o, info=info) for m, o in zip(molecules, results, strict=True))
            beside.write_text("".join(frames), encoding="utf-8")


def _grid(molecule: Molecule, cube: CubeOptions) -> BoxGrid:
    from mlsemi.properties.grids import MARGIN, box_grid

    step = cube.step if cube.step is not None else 0.5 if cube.quantity == "potential" else 0.25
    return box_grid(molecule, step=step, margin=MARGIN if cube.margin is None else cube.margin)


def _write_cube(output: Path, model: Model, molecule: Molecule, found: Observables, cube: CubeOptions) -> None:
    from mlsemi.interop.cube import values_on_grid, write_cube

    grid = _grid(molecule, cube)
    values, title = values_on_grid(
        molecule,
        model.header.basis,
        found,
        grid,
        cube.quantity or "orbital",  # pyright: ignore[reportArgumentType]
        orbital=cube.orbital or "homo",
        spin=cube.spin,
    )
    write_cube(output, molecule, grid, values, title=f"{title} ({model.name})")
