"""Molecules larger than those of the training: 1, 2, 4 and 8 times the five heavy atoms of the organic model.

    OMP_NUM_THREADS=1 python benchmarks/extrapolation.py [--largest 10] [--families alkane polyene peptide water]

Families, by number of heavy atoms (5, 10, 20, 40): n-alkanes, all anti; polyenes C2nH2n+2, all trans (4 stands for 5);
glycine and its peptides with L-alanine, Gly-Ala(n), neutral; water clusters at the density of the liquid
(`larger_molecules.py`). One geometry each, at rest.

Reference: PySCF at the level of the model, on the grid of all labels. It is kept in --work and serves all models.

H errors, dF = F - F(reference), in the AO basis and in the orthonormal one, S^-1/2 dF S^-1/2:

    mae        mean |dF| over all n^2 elements. It falls with size even if nothing gets better: most elements of a large
               molecule are of far pairs and nearly zero.
    per_atom   sum of |dF| over all elements divided by the number of atoms: constant if the error is local.
    norm       root of (sum of dF^2 / number of atoms): likewise; in the orthonormal metric it is that of any
               orthonormal basis.
    spectral   largest |eigenvalue| of the orthonormal dF: the most that any orbital energy can be off.
    site       mean over the atoms of |mean diagonal element of dF on the atom|: a wrong electrostatic potential.
    distance   per_atom by the distance of the two atoms, up to `EDGES`.

Energies: `fast` and `variational` minus reference, divided by the number of all atoms. SCF: Fock builds of PySCF's own
DIIS at its default convergence, from minao and from the predicted density, and of the `scf` mode (without its look at
the stability), whose cheap builds on coarse grids are counted beside. F0's own figures are beside: its H errors, gap,
and the energy of the reference method at its density; with `--scf ... f0` also Fock builds from there.

Smallest molecules first, those of 40 heavy atoms take hours each, fewer with `--scf prediction`. Run it again to go on:
molecules that are done with the same model are kept, and of one that is not its reference and each of its SCF
calculations.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyscf
import torch
from larger_molecules import FAMILIES, heavy_atoms

from mlsemi.basis import Basis
from mlsemi.checkpoint import Header
from mlsemi.data.pack import whole_fock
from mlsemi.data.split import split_of
from mlsemi.data.store import LabelStore, Record, write_store
from mlsemi.files import sha256_of, written_whole
from mlsemi.layout import AOLayout
from mlsemi.model import DEFAULT_MODEL, FAILURES, Model, find_model, load
from mlsemi.molecule import Molecule
from mlsemi.reference.converge import CONV_TOL, converge
from mlsemi.reference.farm import run_attributes
from mlsemi.reference.mean_field import GRID_LEVEL, RESIDUAL_TOLERANCE, mean_field, solve, to_pyscf_mole
from mlsemi.reference.variational import variational
from mlsemi.state import ElectronicState, solve_state
from mlsemi.train.evaluate import check_labels
from mlsemi.train.metrics import State, state_errors
from mlsemi.units import HARTREE_IN_EV, HARTREE_IN_KCAL_PER_MOL

ROOT = Path(__file__).resolve().parents[1]
TRAINED = ROOT / "reference_data" / "organic" / "smiles.txt"
SIZES = (5, 10, 20, 40)
EDGES = (0.1, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0, np.inf)
"""Upper ends of the classes of distance [angstrom]; the first one holds the blocks of single atoms."""

_MAX_CYCLES = 100


def seen_in_training(molecule: Molecule) -> str:
    """Side of the split that the molecule is on; empty if it was not among those of the training at all."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        parsed = Chem.MolFromSmiles(molecule.name)
    plain = "" if parsed is None else Chem.MolToSmiles(parsed, isomericSmiles=False)
    return split_of(plain) if plain in TRAINED.read_text().split() else ""


def scf_from(
    molecule: Molecule, basis: Basis, method: str, density: np.ndarray | None, memory: float
) -> dict[str, Any]:
    """PySCF's own SCF from a density, or from minao: what it took, and its density in mlsemi's AO order."""
    layout = AOLayout(basis, molecule.numbers)
    wall, cpu = time.perf_counter(), time.process_time()
    mol = to_pyscf_mole(molecule, basis)
    mol.max_memory = memory
    field = mean_field(mol, method, GRID_LEVEL)
    field.conv_tol, field.max_cycle = CONV_TOL, _MAX_CYCLES
    energy = float(field.kernel(None if density is None else layout.to_pyscf(density)[0]))
    return {
        "builds": field.cycles + 1,
        "converged": bool(field.converged),
        "energy": energy,
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "density": layout.from_pyscf(np.asarray(field.make_rdm1())[None]),
    }


def make_reference(family: str, size: int, header: Header, path: Path, memory: float) -> None:
    """Writes the label of a molecule with what the SCF from minao took, whose density is kept until then."""
    basis, method = header.basis, header.method
    beside = path.with_suffix(".minao.npz")
    if not beside.is_file():
        molecule = FAMILIES[family](size)
        print(f"{molecule.formula}, geometry, ", end="", flush=True)
        minao = scf_from(molecule, basis, method, None, memory)
        of_molecule = {"numbers": molecule.numbers, "positions": molecule.positions, "name": molecule.name}
        with written_whole(beside) as part, part.open("wb") as file:
            np.savez(file, density=minao.pop("density"), minao=json.dumps(minao), **of_molecule)
    with np.load(beside) as kept:
        molecule = Molecule(kept["numbers"], kept["positions"], name=str(kept["name"]))
        minao, density = str(kept["minao"]), kept["density"]
    label = solve(molecule, basis, method=method, initial_density=lambda _: density, max_memory_mb=memory)
    attributes = run_attributes(method=method, basis=basis, gradient=False, residual_tolerance=RESIDUAL_TOLERANCE)
    record = Record(molecule, label.observables, scheme=label.scheme, degenerate=label.degenerate, index=0)
    write_store(path, [record], attributes | {"minao": minao})
    beside.unlink()
    print("reference, ", end="", flush=True)


def h_errors(error: np.ndarray, overlap: np.ndarray, molecule: Molecule, atom: np.ndarray) -> dict[str, Any]:
    """H errors as the head of this script defines them [Eh].

    Args:
        error: dF in AOs [Eh], shape (ao, ao).
        overlap: shape (ao, ao).
        molecule: the molecule.
        atom: atom of each AO, shape (ao,).
    """
    values, vectors = np.linalg.eigh(overlap)
    root = (vectors / np.sqrt(values)) @ vectors.T
    x = molecule.positions_angstrom
    place = np.searchsorted(EDGES, np.linalg.norm(x[:, None] - x, axis=-1))[np.ix_(atom, atom)].ravel()
    out: dict[str, Any] = {}
    for metric, matrix in (("ao", error), ("orthonormal", root @ error @ root)):
        size = np.abs(matrix)
        diagonal = np.bincount(atom, np.diag(matrix)) / np.bincount(atom)
        out[metric] = {
            "mae": float(size.mean()),
            "max": float(size.max()),
            "per_atom": float(size.sum() / molecule.n_atoms),
            "norm": float(np.sqrt((matrix**2).sum() / molecule.n_atoms)),
            "site": float(np.abs(diagonal).mean()),
            "distance": (np.bincount(place, size.ravel(), len(EDGES)) / molecule.n_atoms).tolist(),
        }
    out["orthonormal"]["spectral"] = float(np.abs(np.linalg.eigvalsh(root @ error @ root)).max())
    return out


def figures(
    state: ElectronicState, reference: ElectronicState, molecule: Molecule, header: Header, energy: float, memory: float
) -> dict[str, Any]:
    """Errors of a state of a closed shell [a.u.]."""
    found, wanted = (
        State(s.fock[0].numpy(), s.mo_energy[0].numpy(), s.mo_coeff[0].numpy()) for s in (state, reference)
    )
    overlap, density = state.overlap[0].numpy(), state.density[0].numpy()
    atom = np.repeat(np.arange(molecule.n_atoms), [header.basis.n_ao(z) for z in molecule.numbers.tolist()])
    errors = state_errors(found, wanted, overlap, [molecule.n_electrons // 2])
    out: dict[str, Any] = {
        "h": h_errors(found.fock[0] - wanted.fock[0], overlap, molecule, atom),
        "gap_error": errors["gap"],
        "homo_error": errors["homo"],
        "lumo_error": errors["lumo"],
        "occupied_mae": errors["occupied_mae"],
        "electrons_moved": molecule.n_electrons / 2 * (1 - float(errors["subspace"])),
    }
    try:
        at_density = variational(molecule, header.basis, density, method=header.method, max_memory_mb=memory)
        out["variational_error"] = at_density.energy - energy
        out["variational_estimate"] = at_density.error_estimate
    except FAILURES as failure:
        out["variational_failure"] = str(failure)
    return out


def compared(
    model: Model, path: Path, kept: Mapping[str, Any], *, wanted: Sequence[str], memory: float
) -> Iterator[dict[str, Any]]:
    """All figures of the molecule of a label, after each part of the work; what `kept` holds is not done again."""
    header, engine = model.header, model.engine
    basis, method = header.basis, header.method
    with LabelStore.open(path) as store, torch.no_grad():
        record, minao = store.record(0), json.loads(store.attrs["minao"])
        molecule, energy, stored = record.molecule, record.observables.energy, record.observables.fock
        assert energy is not None and stored is not None
        check_labels(header, store, [molecule])
        start = time.perf_counter()
        batch = engine.batch([molecule])
        prediction = engine(batch)
        seconds = time.perf_counter() - start
        f0, overlap = prediction.integrals.baseline.fock, prediction.state.overlap
        fock = whole_fock(store, torch.from_numpy(stored)[None], f0)
        reference, atoms = (solve_state(f, overlap, batch) for f in (fock, f0[:, None]))
    row = dict(kept)
    if "model" not in row:
        own, f0_figures = (figures(s, reference, molecule, header, energy, memory) for s in (prediction.state, atoms))
        own["fast_error"] = float(prediction.energy[0]) - energy
        homo = molecule.n_electrons // 2 - 1
        row = {
            "name": molecule.name,
            "formula": molecule.formula,
            "n_atoms": molecule.n_atoms,
            "n_ao": overlap.shape[-1],
            "training": seen_in_training(molecule),
            "energy": energy,
            "gap": float(reference.mo_energy[0, 0, homo + 1] - reference.mo_energy[0, 0, homo]),
            "smallest_overlap": float(torch.linalg.eigvalsh(overlap[0])[0]),
            "degenerate": record.degenerate,
            "predict_s": seconds,
            "model": own,
            "f0": f0_figures,
            "scf": {"minao": relative(minao, energy)},
            "numbers": molecule.numbers.tolist(),
            "positions_angstrom": molecule.positions_angstrom.round(8).tolist(),
        }
        yield row
    scf = row["scf"]
    for name in (s for s in wanted if s not in scf):
        density = (atoms if name == "f0" else prediction.state).density[0].numpy()
        if name == "scf_mode":
            scf[name] = scf_mode(molecule, basis, method, density, energy, memory)
        else:
            scf[name] = relative(scf_from(molecule, basis, method, density, memory), energy)
        print(f"{name}, ", end="", flush=True)
        yield row


def scf_mode(
    molecule: Molecule, basis: Basis, method: str, density: np.ndarray, energy: float, memory: float
) -> dict[str, Any]:
    """What the `scf` mode took."""
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        found = converge(molecule, basis, density, method=method, stability=False, max_memory_mb=memory)
    except FAILURES as failure:
        return {"failure": str(failure)}
    assert found.observables.energy is not None
    return {
        "builds": found.cycles,
        "coarse_builds": found.coarse_cycles,
        "scheme": found.scheme,
        "energy_error": found.observables.energy - energy,
        "warnings": list(found.observables.warnings),
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
    }


def relative(found: Mapping[str, Any], energy: float) -> dict[str, Any]:
    """What an SCF took, without its density, its energy relative to the reference [Eh]."""
    kept = {key: value for key, value in found.items() if key not in ("density", "energy")}
    return kept | {"energy_error": found["energy"] - energy}


COLUMNS = {
    "H MAE, AO / orth., uEh": lambda r, s: _pair(r[s]["h"], "mae", 1e6),
    "H per atom, AO / orth., mEh": lambda r, s: _pair(r[s]["h"], "per_atom", 1e3),
    "gap, eV": lambda r, s: f"{r[s]['gap_error'] * HARTREE_IN_EV:+.3f}",
    "fast / atom, kcal/mol": lambda r, s: _per_atom(r, s, "fast_error"),
    "variational / atom, kcal/mol": lambda r, s: _per_atom(r, s, "variational_error"),
}


def _pair(h: Mapping[str, Any], name: str, factor: float) -> str:
    return f"{h['ao'][name] * factor:.3g} / {h['orthonormal'][name] * factor:.3g}"


def _per_atom(row: Mapping[str, Any], side: str, name: str) -> str:
    value = row[side].get(name)
    return "-" if value is None else f"{value * HARTREE_IN_KCAL_PER_MOL / row['n_atoms']:+.3g}"


def _builds(found: Mapping[str, Any] | None) -> str:
    """Fock builds, those on coarse grids in brackets."""
    if found is None or "builds" not in found:
        return "-"
    coarse = f" ({found['coarse_builds']})" if "coarse_builds" in found else ""
    return f"{found['builds']}{coarse}{'' if found.get('converged', True) else ', not converged'}"


def show(rows: Mapping[str, Any]) -> None:
    """The table: the model, F0 in the line below."""
    titles = ["molecule", "atoms", "AOs", "F", *COLUMNS, "Fock builds: minao", "prediction", "scf mode"]
    print(f"\n| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for key, row in sorted(rows.items(), key=lambda item: (item[1]["family"], item[1]["heavy_atoms"])):
        if "failure" in row:
            print(f"| {key} | {row['failure']} |")
            continue
        scf = row["scf"]
        builds = {"model": [_builds(scf.get(k)) for k in ("minao", "prediction", "scf_mode")]}
        builds["f0"] = ["", _builds(scf.get("f0")), ""]
        for side in ("model", "f0"):
            about = [key, str(row["n_atoms"]), str(row["n_ao"])] if side == "model" else ["", "", ""]
            print(f"| {' | '.join([*about, side, *(text(row, side) for text in COLUMNS.values()), *builds[side]])} |")


def plot(rows: Mapping[str, Any], picture: Path, title: str) -> None:
    """Errors per atom against the number of heavy atoms: the model in full lines, F0 in dashed ones."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kcal = HARTREE_IN_KCAL_PER_MOL
    panels = {
        "H, AO: sum of |dF| per atom [mEh]": lambda r, s: 1e3 * r[s]["h"]["ao"]["per_atom"],
        "H, orthonormal: sum of |dF| per atom [mEh]": lambda r, s: 1e3 * r[s]["h"]["orthonormal"]["per_atom"],
        "gap: |error| [eV]": lambda r, s: HARTREE_IN_EV * abs(r[s]["gap_error"]),
        "fast energy: |error| per atom [kcal/mol]": lambda r, s: kcal * abs(r[s]["fast_error"]) / r["n_atoms"],
        "variational energy: error per atom [kcal/mol]": lambda r, s: kcal * r[s]["variational_error"] / r["n_atoms"],
        "Fock builds over those from minao": lambda r, s: (
            r["scf"]["prediction" if s == "model" else s]["builds"] / r["scf"]["minao"]["builds"]
        ),
    }
    figure = Figure(figsize=(15, 8), layout="constrained")
    FigureCanvasAgg(figure)
    colours = dict(zip(FAMILIES, ("#2e6f9e", "#b03a2e", "#3c7d4b", "#8a6d3b"), strict=True))
    for axis, (text, value) in zip(figure.subplots(2, 3).ravel(), panels.items(), strict=True):
        for family, colour in colours.items():
            members = [r for r in rows.values() if r["family"] == family and "failure" not in r]
            for side, style in (("model", "o-"), ("f0", "x--")):
                points = sorted((r["heavy_atoms"], v) for r in members if (v := _value(value, r, side)) is not None)
                label = family if side == "model" else None
                if points:
                    axis.plot(*zip(*points, strict=True), style, color=colour, label=label, linewidth=1.2, markersize=4)
        axis.set(title=text, xlabel="heavy atoms", xscale="log")
        axis.set_yscale("linear" if "builds" in text else "log")
        axis.set_xlim(0.7 * min(SIZES), 1.3 * max(SIZES))
        axis.set_xticks(SIZES, [str(size) for size in SIZES])
        axis.set_xticks([], minor=True)
        axis.grid(True, which="both", alpha=0.2)
        if axis.lines:
            axis.legend(frameon=False)
    figure.suptitle(f"{title}; dashed: F0")
    with written_whole(picture) as beside:
        figure.savefig(beside, format="png", dpi=120)


def _value(value: Any, row: Mapping[str, Any], side: str) -> float | None:
    try:
        return float(value(row, side))
    except KeyError:  # what failed, or was not asked for
        return None


def earlier(path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Molecules of an earlier run with the same model.

    Raises:
        SystemExit: if the file is of another one.
    """
    if not path.is_file():
        return {}
    found = json.loads(path.read_text())
    differing = [key for key, value in about.items() if found.get(key) != value]
    if differing:
        raise SystemExit(
            f"error: {path} was made with another {', '.join(differing)}: give another --out, or remove it"
        )
    return found["molecules"]


def main(argv: Sequence[str] | None = None) -> None:
    """Smallest first; writes after each molecule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--largest", type=int, default=max(SIZES), help="most heavy atoms (5, 10, 20 or 40)")
    parser.add_argument(
        "--scf",
        nargs="+",
        choices=["prediction", "scf_mode", "f0"],
        default=["prediction", "scf_mode"],
        help="beside that from minao: from the prediction, the scf mode, from F0 (default: the first two)",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-memory", type=float, default=4000, help="of PySCF [MB]")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "extrapolation", help="for the reference labels")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "extrapolation.json")
    arguments = parser.parse_args(argv)
    if arguments.largest < min(SIZES):
        parser.error(f"--largest {arguments.largest} must be {min(SIZES)} at least")
    torch.set_num_threads(arguments.threads)
    pyscf.lib.num_threads(arguments.threads)
    model = load(arguments.model)
    about = {
        "model": model.name,
        "sha256": sha256_of(find_model(arguments.model)),
        "method": model.header.method,
        "basis": model.header.basis.name,
    }
    rows = earlier(arguments.out, about)
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for size in (s for s in SIZES if s <= arguments.largest):
        for family in arguments.families:
            heavy = heavy_atoms(family, size)
            key = f"{family} {heavy}"
            kept = {name: value for name, value in rows.get(key, {}).items() if name != "failure"}
            if set(arguments.scf) <= set(kept.get("scf", {})):
                continue
            begun = time.perf_counter()
            print(f"{key}: ", end="", flush=True)
            for row in one(model, family, heavy, kept, arguments):
                rows[key] = {"family": family, "heavy_atoms": heavy, **row}
                date = datetime.now(UTC).isoformat(timespec="seconds")
                versions = {"pyscf": pyscf.__version__, "torch": torch.__version__, "load_1_min": os.getloadavg()[0]}
                with written_whole(arguments.out) as path:
                    path.write_text(json.dumps({**about, "date": date, **versions, "molecules": rows}, indent=1) + "\n")
            print(rows[key].get("failure", "done"), f"in {time.perf_counter() - begun:.0f} s", flush=True)
    picture = arguments.out.with_suffix(".png")
    plot(rows, picture, model.name)
    show(rows)
    print(f"\n{arguments.out}, {picture.name}")


def one(
    model: Model, family: str, size: int, kept: Mapping[str, Any], arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """One molecule, with its reference if that is not at hand; a failure leaves the others alone."""
    path = arguments.work / f"{family}_{size}_{model.header.method}_{model.header.basis.name}.h5"
    row = dict(kept)
    try:
        if not path.is_file():
            make_reference(family, size, model.header, path, arguments.max_memory)
        for row in compared(model, path, kept, wanted=arguments.scf, memory=arguments.max_memory):
            yield row
    except FAILURES as failure:
        yield {**row, "failure": str(failure)}


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
