"""`mlsemi calibrate`: what the error estimates of a model are worth."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from mlsemi.cli.evaluate import SplitName
from mlsemi.files import refuse_unwritable


def calibrate(
    model: Annotated[str, typer.Argument(help="Checkpoint of `mlsemi train`, or a shipped model.")],
    labels: Annotated[list[Path], typer.Argument(help="Label files that hold validation molecules.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write.")],
    member: Annotated[
        list[Path] | None,
        typer.Option(help="Checkpoint of an independently trained, possibly smaller model; give several."),
    ] = None,
    split: Annotated[
        SplitName, typer.Option(help="Part of the split by molecule; all for labels that were not trained on at all.")
    ] = SplitName.validation,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes for the variational energies.")] = 1,
) -> None:
    """Calibrate error estimates on validation molecules.

    Compares estimates with true errors: the spread of the members in the fast mode, the residual of one Fock build in
    the others. Writes the model with its members, the intervals within which 68 and 95 % of the errors lie, and the
    factor of the corrected mode.
    """
    from safetensors import SafetensorError

    from mlsemi import checkpoint
    from mlsemi.cli.display import Display
    from mlsemi.data.store import LabelStore
    from mlsemi.model import find_model
    from mlsemi.train.calibrate import calibrate as run
    from mlsemi.train.calibrate import with_members

    try:
        refuse_unwritable(output)
        header, engine = with_members(find_model(model), member or [])
        with ExitStack() as stack, Display({"predict": "molecules", "variational": "molecules"}) as display:
            stores = [stack.enter_context(LabelStore.open(path)) for path in labels]
            header = run(header, engine, stores, split=split.value, jobs=jobs, report=display.show)
        checkpoint.save(output, header, engine.state_dict())
    except KeyboardInterrupt:
        typer.echo("interrupted: nothing was written", err=True)
        raise typer.Exit(130) from None
    except (ValueError, OSError, RuntimeError, ImportError, SafetensorError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from error
    found = header.calibration
    typer.echo(f"{found['labels']} labels of {found['molecules']} molecules, {len(header.members)} members")
    for mode in ("fast", "variational", "corrected"):
        if mode in found:
            interval = found[mode]
            typer.echo(
                f"{mode:12} 68 % of the errors below {interval['scale_68']:.3f}, 95 % below "
                f"{interval['scale_95']:.3f} times the estimate"
            )
    typer.echo(f"correction   E[D] - {found['correction']['factor']:.3f} dE2")
    typer.echo(f"written: {output}")
