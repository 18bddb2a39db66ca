"""`mlsemi label`: reference labels by PySCF."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mlsemi.molecule import Molecule
    from mlsemi.reference.farm import Summary


def label(
    geometries: Annotated[
        Path,
        typer.Argument(help="xyz, extended xyz or whatever ASE reads; npz with coords (angstrom), nuclear_charges."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Label file (HDF5).")],
    method: Annotated[str, typer.Option(help="'hf', any functional of PySCF; 'mp2', 'ccsd', 'ccsd(t)'.")] = "pbe",
    basis: Annotated[str, typer.Option(help="Name, or JSON file in the Basis Set Exchange's schema.")] = "def2-svp",
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes, each with one thread.")] = 1,
    gradient: Annotated[bool, typer.Option("--gradient", help="Nuclear gradients too.")] = False,
    charge: Annotated[int | None, typer.Option(help="Total charge; default: what the frames say, else 0.")] = None,
    spin: Annotated[
        int | None, typer.Option(help="Unpaired electrons, 2S; default: as the frames say, else 0.")
    ] = None,
    skip: Annotated[int, typer.Option(min=0, help="Leave out the first so many geometries.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many geometries, the first after --skip.")] = None,
    residual_tol: Annotated[
        float | None,
        typer.Option(help="Largest |FDS - SDF| that is accepted [Eh]; default: 1e-6, 1e-7 for correlated methods."),
    ] = None,
    guess: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Start each SCF from a model (name or checkpoint); labels stay the same."),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")] = False,
    all_electron: Annotated[
        bool, typer.Option("--all-electron", help="Correlated methods: correlate the core too; default: frozen core.")
    ] = False,
    dipole: Annotated[
        bool, typer.Option("--dipole", help="Correlated methods: dipole of the full level, by finite field.")
    ] = False,
    ip: Annotated[int, typer.Option(min=0, help="CCSD, CCSD(T): lowest ionization energies by IP-EOM-CCSD.")] = 0,
    ea: Annotated[int, typer.Option(min=0, help="CCSD, CCSD(T): highest electron affinities by EA-EOM-CCSD.")] = 0,
    small_basis: Annotated[
        str | None, typer.Option(help="Composite level: MP2 in --basis plus (method - MP2) in this basis.")
    ] = None,
    max_memory: Annotated[
        float | None,
        typer.Option(min=1, help="Memory of each process [MB]; default: 4000, of correlated methods what is free."),
    ] = None,
) -> None:
    """Label geometries by PySCF: Fock matrices, energies and more; correlated methods without Fock matrices.

    Run the same command again to go on after an interruption: nothing is lost and nothing is done twice. Molecules that
    fail are named and left out; the exit status is 1 if the file holds no label of these geometries.
    """
    from mlsemi.basis import load_basis
    from mlsemi.cli.display import Display
    from mlsemi.interop.ase import read_molecules
    from mlsemi.reference.coupled_cluster import is_correlated
    from mlsemi.reference.farm import label as run_farm
    from mlsemi.reference.guess import ModelGuess

    try:
        molecules = read_molecules(geometries, charge=charge, spin=spin)
        if skip >= len(molecules) > 0:
            raise ValueError(f"--skip {skip} leaves none of the {len(molecules)} geometries in {geometries}")
        molecules = molecules[skip:][:limit]
        start = None if guess is None else ModelGuess(_checkpoint(guess))
        extras: dict[str, Any] = {} if max_memory is None else {"max_memory_mb": max_memory}
        correlated = {"all_electron": all_electron, "dipole": dipole, "ip": ip, "ea": ea, "small_basis": small_basis}
        if is_correlated(method):
            extras = _correlated(molecules, method, basis, gradient, jobs, max_memory, **correlated)
        elif given := [f"--{k.replace('_', '-')}" for k, v in correlated.items() if v]:
            raise ValueError(f"{', '.join(given)}: for the methods 'mp2', 'ccsd', 'ccsd(t)' only, not {method!r}")
        with Display({"labels": "labels"}) as display:
            summary = run_farm(
                molecules,
                output,
                method=method,
                basis=load_basis(basis),
                jobs=jobs,
                gradient=gradient,
                residual_tolerance=residual_tol,
                initial_density=start,
                retry_failed=retry_failed,
                report=lambda p: display.show(
                    "labels", p.finished, p.total, p.per_second, f"{p.failed + p.failed_before} failed"
                ),
                **extras,
            )
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    _print_summary(summary, output)
    if summary.interrupted:
        raise typer.Exit(130)
    if not summary.progress.done and not summary.progress.before:
        raise typer.Exit(1)


def _correlated(
    molecules: list[Molecule],
    method: str,
    basis: str,
    gradient: bool,
    jobs: int,
    max_memory: float | None,
    *,
    all_electron: bool,
    dipole: bool,
    ip: int,
    ea: int,
    small_basis: str | None,
) -> dict[str, Any]:
    """Options of the farm for a correlated method; says what it is going to cost."""
    from mlsemi.basis import load_basis
    from mlsemi.memory import available_bytes
    from mlsemi.reference.coupled_cluster import Correlation, level_name
    from mlsemi.reference.farm import plan

    small = None if small_basis is None else load_basis(small_basis)
    correlation = Correlation(frozen_core=not all_electron, dipole=dipole, ip=ip, ea=ea, small_basis=small)
    large = load_basis(basis)
    cost, largest, seconds = plan(molecules, large, method=method, correlation=correlation, gradient=gradient)
    jobs = min(jobs, len(molecules))
    limit = 0.9 * available_bytes() / 1e6 / jobs if max_memory is None else max_memory
    typer.echo(
        f"{level_name(method, large, correlation)}: largest {largest.formula}, {cost.n_ao} functions, "
        f"{cost.n_occupied} correlated and {cost.n_virtual} empty orbitals: about {cost.memory_mb:.0f} MB "
        f"(of {limit:.0f} MB for each process) and {_duration(cost.seconds)}; all {len(molecules)}: about "
        f"{_duration(seconds / jobs)} (within a factor of two or so)",
        err=True,
    )
    return {"correlation": correlation, "max_memory_mb": limit}


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _checkpoint(name_or_path: str) -> Path:
    from mlsemi.model import find_model

    return find_model(name_or_path).resolve()


def _print_summary(summary: Summary, output: Path) -> None:
    p = summary.progress
    typer.echo(
        f"{p.done} labels in {p.seconds:.1f} s ({p.per_second:.2f}/s), {p.before} from before, {p.failed} failed"
        + (f", {p.failed_before} failed before" if p.failed_before else "")
        + f"; {p.finished} of {p.total} done: {output}"
    )
    for reason, count in sorted(summary.failures.items(), key=lambda item: -item[1])[:5]:
        typer.echo(f"warning: {count} failed: {reason}", err=True)
    if p.failed or p.failed_before:
        typer.echo("warning: failed molecules have no label in the file; --retry-failed tries them again", err=True)
    if summary.interrupted:
        typer.echo("interrupted: all labels so far are safe; run the same command again to go on", err=True)
