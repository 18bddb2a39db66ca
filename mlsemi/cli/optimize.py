"""`mlsemi optimize`: the minimum of a molecule."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlsemi.cli import options
from mlsemi.cli.options import DeviceName, ModeName, PrecisionName, limit_threads, told
from mlsemi.cli.single import files_of_run, meter, read_one
from mlsemi.files import written_whole

if TYPE_CHECKING:
    from mlsemi.interop.ase.optimize import Optimized


class OptimizerName(StrEnum):
    """Values of --optimizer."""

    bfgs = "bfgs"
    fire = "fire"
    lbfgs = "lbfgs"


def optimize(
    file: options.GeometryFile,
    output: Annotated[Path, typer.Option("-o", "--output", help="Last geometry, extended xyz with its results.")],
    model: options.Model = None,
    mode: Annotated[ModeName, typer.Option(help="Energy that is minimized, as of `mlsemi predict`.")] = ModeName.fast,
    fmax: Annotated[float, typer.Option(help="Largest force of an atom at the end [eV/angstrom].")] = 0.01,
    steps: Annotated[int, typer.Option(min=0, help="Most steps, over all restarts.")] = 500,
    optimizer: Annotated[OptimizerName, typer.Option(help="Optimizer of ASE.")] = OptimizerName.bfgs,
    trajectory: Annotated[Path | None, typer.Option(help="Write all steps, extended xyz.")] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Go on with a run that was ended: same FILE, same options.")
    ] = False,
    charge: options.Charge = None,
    spin: options.Spin = None,
    frame: options.Frame = None,
    dispersion: options.Dispersion = False,
    device: options.Device = DeviceName.cpu,
    threads: options.Threads = None,
    precision: options.Precision = PrecisionName.float32,
) -> None:
    """Minimize the energy of a molecule.

    OUT.log has a line for every step. OUT.restart keeps the state until the
    optimization has converged: with --restart it goes on from there.
    """
    limit_threads(threads)
    with told("the state after the last whole step is kept; --restart goes on from there"):
        log, state = files_of_run(output, trajectory=trajectory, source=file)
        molecule = read_one(file, frame=frame, charge=charge, spin=spin)
        from mlsemi.cli.display import Display
        from mlsemi.interop.ase import optimize as engine
        from mlsemi.interop.ase.calculator import MlsemiCalculator
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
                state=state,
                optimizer=optimizer.value,
                fmax=fmax,
                steps=steps,
                trajectory=trajectory,
                log=log,
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
