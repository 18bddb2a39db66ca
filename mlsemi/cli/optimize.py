"""`mlsemi optimize`: the minimum of a molecule."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlsemi.cli.options import DeviceName, ModeName, PrecisionName, limit_threads
from mlsemi.cli.single import beside, check_output, meter, read_one, told

if TYPE_CHECKING:
    from mlsemi.interop.ase.optimize import Optimized


class OptimizerName(StrEnum):
    """Values of --optimizer."""

    bfgs = "bfgs"
    fire = "fire"
    lbfgs = "lbfgs"


def optimize(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Geometry: xyz [angstrom] or whatever ASE reads.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Last geometry, extended xyz with its results.")],
    model: Annotated[
        str | None,
        typer.Option(help="Shipped model (see `mlsemi models`) or checkpoint; default: organic-b3lyp-def2svp."),
    ] = None,
    mode: Annotated[ModeName, typer.Option(help="Energy that is minimized, as of `mlsemi predict`.")] = ModeName.fast,
    fmax: Annotated[float, typer.Option(help="Largest force of an atom at the end [eV/angstrom].")] = 0.01,
    steps: Annotated[int, typer.Option(min=0, help="Most steps, over all restarts.")] = 500,
    optimizer: Annotated[OptimizerName, typer.Option(help="Optimizer of ASE.")] = OptimizerName.bfgs,
    trajectory: Annotated[Path | None, typer.Option(help="Write all steps, extended xyz.")] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Go on with a run that was ended: same FILE, same options.")
    ] = False,
    charge: Annotated[int | None, typer.Option(help="Total charge; default: what the frame says, else 0.")] = None,
    spin: Annotated[
        int | None, typer.Option(help="Unpaired electrons, 2S; default: what the frame says, else 0.")
    ] = None,
    frame: Annotated[int | None, typer.Option(help="Frame of FILE, from 0, where it has several.")] = None,
    dispersion: Annotated[bool, typer.Option("--dispersion", help="Add D4 dispersion (needs dftd4).")] = False,
    device: Annotated[DeviceName, typer.Option(help="Where to compute.")] = DeviceName.cpu,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: as torch chooses.")] = None,
    precision: Annotated[
        PrecisionName, typer.Option(help="Of the network; all else is float64.")
    ] = PrecisionName.float32,
) -> None:
    """Minimize the energy of a molecule.

    OUT.log has a line for every step. OUT.restart keeps the state until the
    optimization has converged: with --restart it goes on from there.
    """
    limit_threads(threads)
    with told("the state after the last whole step is kept; --restart goes on from there"):
        check_output(output, file)
        molecule = read_one(file, frame=frame, charge=charge, spin=spin)
        from mlsemi.cli.display import Display
        from mlsemi.interop.ase import optimize as engine
        from mlsemi.interop.ase.calculator import MlsemiCalculator
        from mlsemi.interop.atomic_write import written_whole
        from mlsemi.interop.extxyz import frame_text
        from mlsemi.model import DEFAULT_MODEL

        calculator = MlsemiCalculator(
            model or DEFAULT_MODEL,
            mode=mode.value,
            dispersion=dispersion,
            device=device.value,
            precision=precision.value,
        )
        with Display({"optimize": "steps"}) as display:
            rate = meter()

            def show(step: int, energy: float, force: float) -> None:
                display.show("optimize", step, steps, rate(step), f"{energy:.6f} Eh, fmax {force:.4f} eV/A")

            found = engine.optimize(
                molecule,
                calculator,
                state=beside(output, ".restart"),
                optimizer=optimizer.value,
                fmax=fmax,
                steps=steps,
                trajectory=trajectory,
                log=beside(output, ".log"),
                restart=restart,
                on_step=show,
            )
        with written_whole(output) as part:
            info = {"step": found.steps, "converged": found.converged}
            part.write_text(frame_text(found.molecule, found.observables, info=info), encoding="utf-8")
        _tell(found, output)
    if not found.converged:
        typer.echo(
            f"error: not converged after {found.steps} steps (fmax {fmax:g} eV/A): --restart with more --steps goes on",
            err=True,
        )
        raise typer.Exit(1)


def _tell(found: Optimized, output: Path) -> None:
    """The result in a few lines."""
    o = found.observables
    for text in o.warnings:
        typer.echo(f"warning: {text}", err=True)
    estimate = "" if o.energy_error_estimate is None else f" (error estimate {o.energy_error_estimate:.1e} Eh)"
    typer.echo(f"{found.molecule.formula}: {'converged' if found.converged else 'stopped'} after {found.steps} steps")
    typer.echo(f"energy         {o.energy:.6f} Eh{estimate}")
    typer.echo(f"largest force  {found.fmax:.4f} eV/A")
    typer.echo(f"written: {output}", err=True)
