"""`mlsemi md`: dynamics of a molecule."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mlsemi.cli.options import DeviceName, ModeName, PrecisionName, limit_threads
from mlsemi.cli.single import beside, check_output, meter, read_one, told


class EnsembleName(StrEnum):
    """Values of --ensemble."""

    nve = "nve"
    nvt = "nvt"


def md(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Geometry: xyz [angstrom] or whatever ASE reads.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Frames: extended xyz with momenta and results.")],
    model: Annotated[
        str | None,
        typer.Option(help="Shipped model (see `mlsemi models`) or checkpoint; default: organic-b3lyp-def2svp."),
    ] = None,
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
    """Run molecular dynamics of a molecule.

    OUT.log has a line for every frame. OUT.restart keeps the state: with
    --restart a run that was ended goes on, and so does a longer one. The files
    are then those of a run that was never ended.
    """
    limit_threads(threads)
    with told(f"{output} has whole frames; --restart goes on"):
        check_output(output, file)
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
                state=beside(output, ".restart"),
                log=beside(output, ".log"),
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
