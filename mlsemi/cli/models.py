"""`mlsemi models`: what is shipped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mlsemi.checkpoint import Header


def models(
    name: Annotated[str | None, typer.Argument(help="Print the model card of this one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what the checkpoints say as JSON.")] = False,
) -> None:
    """List the shipped models, or print the card of one."""
    from mlsemi.checkpoint import read_header
    from mlsemi.model import shipped_models

    shipped = shipped_models()
    try:
        if name is not None and name not in shipped:
            raise ValueError(f"no shipped model {name!r}; shipped are: {', '.join(shipped) or 'none'}")
        chosen = shipped if name is None else {name: shipped[name]}
        if name is not None and not as_json:
            card = chosen[name].with_suffix(".md")
            typer.echo(card.read_text(encoding="utf-8") if card.is_file() else f"{name} has no model card")
            return
        headers = {key: read_header(path) for key, path in chosen.items()}
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    if as_json:
        rows = [{**summary(key, header), "path": str(chosen[key])} for key, header in headers.items()]
        typer.echo(json.dumps(rows, indent=1))
    elif headers:
        _print_table(headers)
    else:
        typer.echo("no models are shipped with this installation; train one with `mlsemi train`", err=True)


def summary(name: str, header: Header) -> dict[str, Any]:
    """What a user wants to know of a model, as plain data."""
    from mlsemi.molecule import symbol_of

    return {
        "name": name,
        "method": header.method,
        "resolved_functional": header.resolved_functional,
        "basis": header.basis.name,
        "energy_method": header.level(),
        "difference_to": header.difference_to,
        "elements": [symbol_of(z) for z in header.elements],
        "labels": {part: header.training.get(f"labels_{part}") for part in ("train", "validation")},
        "domain": dict(header.domain),
        "errors": dict(header.errors),
    }


def format_errors(errors: Mapping[str, Any]) -> str:
    """Measured errors, one a line: name and value."""
    return "\n".join(f"{key}: {_format(value)}" for key, value in errors.items()) or "not measured"


def _format(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        if "value" in value:
            return f"{_format(value['value'])} {value.get('unit', '')}".strip()
        return ", ".join(f"{key} {_format(inner)}" for key, inner in value.items())
    return str(value)


def _print_table(headers: Mapping[str, Header]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "method/basis", "elements", "labels", "held-out errors")
    table.columns[0].no_wrap = True  # a name that is cut off cannot be typed
    table.columns[0].min_width = max(map(len, headers))
    table.columns[1].overflow = "fold"
    table.columns[1].min_width = max(len(f"{header.method}/{header.basis.name}") for header in headers.values())
    for name, header in headers.items():
        row = summary(name, header)
        labels = sum(n for n in row["labels"].values() if n)
        method = f"{row['method']}/{row['basis']}"
        if row["energy_method"] != method:
            modes = "fast, composite" if header.difference_to == "variational" else "fast"
            method += f"\n{modes}: {row['energy_method']}"
        table.add_row(name, method, " ".join(row["elements"]), str(labels or "?"), format_errors(row["errors"]))
    Console(highlight=False, markup=False).print(table)
