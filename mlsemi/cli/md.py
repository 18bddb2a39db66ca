"""`mlsemi md`: dynamics of a molecule."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mlsemi.cli import options
from mlsemi.cli.options import DeviceName, ModeName, PrecisionName, limit_threads, told
from mlsemi.cli.single import files_of_run, meter, read_one


class EnsembleName(StrEnum):
    """Values of --ensemble."""

    nve = "nve"
    nvt = "nvt"


def md(
    file: options.GeometryFile,
    output: Annotated[Path, typer.Option("-o", "--output", help="Frames: extended xyz with momenta and results.")],
    model: options.Model = None,
    mode: Annotated[ModeName, typer.Option(help="Energy whose forces act, as of `mlsemi predict`.")] = ModeName.fast,
    temperature: Annotated[float, typer.Option(help="Of the first velocities, and of the bath [K].")] = 300.0,
    timestep: Annotated[float, typer.Option(help="Time step [fs].")] = 0.5,
    steps: Annotated[int, typer.Option(min=0, help="Steps, over all restarts.")] = 1000,
    ensemble: Annotated[EnsembleName, typer.Option(help="nve: velocity Verlet; nvt: Langevin.")] = EnsembleName.nve,
    friction: Annotated[float, typer.Option(help="nvt: friction [1/ps].")] = 10.0,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same trajectory.")] = 0,
    every: Annotated[int, typer.Option(min=1, help="Steps from frame to frame.")] = 10,
    restart: Annotated[
        bool, typer.Option("--restart", help="Go on with a run that was ended: same FILE, same options but --steps.")
    ] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate/--no-estimate", help="fast: estimate errors of the energy, in twice the time.")
    ] = False,
    charge: options.Charge = None,
    spin: options.Spin = None,
    frame: options.Frame = None,
    dispersion: options.Dispersion = False,
    device: options.Device = DeviceName.cpu,
    threads: options.Threads = None,
    precision: options.Precision = PrecisionName.float32,
) -> None:
    """Run molecular dynamics of a molecule.

    OUT.log has a line for every frame. OUT.restart keeps the state: with
    --restart a run that was ended goes on, and so does a longer one. The files
    are then those of a run that was never ended.
    """
    limit_threads(threads)
    with told(f"{output} has whole frames; --restart goes on"):
        log, state = files_of_run(output, trajectory=None, source=file)
        molecule = read_one(file, frame=frame, charge=charge, spin=spin)
        from mlsemi.cli.display import Display
        from mlsemi.interop.ase.calculator import MlsemiCalculator
        from mlsemi.interop.ase.dynamics import Dynamics, run
        from mlsemi.model import DEFAULT_MODEL

        settings = Dynamics(
            ensemble=ensemble.value,
            temperature=temperature,
            timestep=timestep,
            friction=friction,
            seed=seed,
            every=every,
        )
        calculator = MlsemiCalculator(
            model or DEFAULT_MODEL,
            mode=mode.value,
            dispersion=dispersion,
            estimate=estimate,
            device=device.value,
            precision=precision.value,
        )
        with Display({"md": "steps"}) as display:
            rate = meter()

            def show(step: int, energy: float, kelvin: float) -> None:
                note = f"{step * timestep:.1f} fs, {energy:.6f} Eh, {kelvin:.0f} K"
                display.show("md", step, steps, rate(step), note)

            found = run(
                molecule,
                calculator,
                steps=steps,
                trajectory=output,
                state=state,
                log=log,
                settings=settings,
                restart=restart,
                on_step=show,
            )
        assert calculator.observables is not None
        for text in calculator.observables.warnings:
            typer.echo(f"warning: last step: {text}", err=True)
        typer.echo(f"{molecule.formula}: {found.steps} steps, {found.steps * timestep:g} fs, {found.frames} frames")
        typer.echo(f"total energy      {found.total_energy:.6f} Eh")
        typer.echo(f"mean temperature  {found.temperature:.0f} K over the frames of this run")
        typer.echo(f"written: {output}", err=True)
