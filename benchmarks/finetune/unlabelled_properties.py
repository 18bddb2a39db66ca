"""What fine-tuning does to properties that were not in its labels: quadrupole, charges, order of the gaps.

    L=reference_data/water_cc/water_ccsdt_ccpvtz_test.h5
    python benchmarks/finetune/unlabelled_properties.py reference $L -o REFERENCE.npz --basis cc-pvtz --limit 50 \
        --finite-field 30
    python benchmarks/finetune/unlabelled_properties.py compare REFERENCE.npz --model MODEL \
        -o benchmarks/results/unlabelled_properties_water.json

`reference`: CCSD with frozen core, and IP - EA of IP- and EA-EOM-CCSD; written after each molecule, the same command
goes on. The density is PySCF's one-particle density matrix from the Lambda equations, with the core put back. It is not
relaxed in the orbitals, and has no triples; the row of the dipole, which is in the labels, shows how much that is.
`--finite-field COUNT`: for the first COUNT molecules also the Hirshfeld charges of CCSD(T), the method of the labels,
orbitals relaxed. The population of an atom is the expectation value of its weight rho_A(r) / sum_B rho_B(r), and so the
derivative of the energy with respect to a multiple of this operator in the core Hamiltonian: a central difference.
`compare`: errors of base and fine-tuned model against these, and against the base's own method, whose SCF is run here.

Each molecule is moved to its centre of mass, about which the quadrupole (`mlsemi.properties.multipoles`) then is: about
another point it has a part of the dipole, which was in the labels. Two kinds of charges can be compared between bases.
Hirshfeld's share the density on a grid by that of mlsemi's free atoms, the same for all; any density has them. Those of
intrinsic atomic orbitals need a determinant: that of the natural orbitals with the largest occupations.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyscf import cc, dft
from scipy.linalg import eigh
from scipy.stats import spearmanr

import mlsemi
from mlsemi.analysis import analyze
from mlsemi.baseline.atoms import free_atom
from mlsemi.basis import Basis, load_basis
from mlsemi.batch import Batch
from mlsemi.data.store import LabelStore, molecule_key
from mlsemi.files import written_whole
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables
from mlsemi.properties.grids import ao_values
from mlsemi.properties.masses import atomic_masses
from mlsemi.reference import coupled_cluster, mean_field
from mlsemi.units import BOHR_IN_ANGSTROM, DIPOLE_AU_IN_DEBYE, HARTREE_IN_EV

LEVEL = "CCSD, frozen core, orbital-unrelaxed density; IP - EA by EOM-CCSD"
FREE_ATOM_BASIS = "cc-pvtz"
"""Holds the free atoms of Hirshfeld's charges, whatever the basis of the density."""

BY_DIFFERENCES = "hirshfeld_ccsd_t"
DIFFERENCES = (
    "CCSD(T), frozen core, by central differences of the energy with Hirshfeld's weights in the core Hamiltonian"
)
STEP = 2e-3
"""So much of the weights is added and subtracted [Eh]. For water 1e-3 changes the charges by 2e-7 e, 4e-3 by 9e-7 e."""

HF_TOLERANCE = 2e-6
"""Hartree-Fock's charges by differences and from its density agree to this [e]."""

ENERGY_TOLERANCE, AMPLITUDE_TOLERANCE = 1e-10, 1e-7

GRID_LEVEL = 4
LIMIT = 1.10  # not worse than before by more than 10 %
RESAMPLINGS = 1000
FIGURES = ("before", "after", "ratio", "ratio_low", "ratio_high")
Properties = dict[str, np.ndarray]
"""dipole [D] (3,), quadrupole [D angstrom] (3, 3), hirshfeld, hirshfeld_ccsd_t and iao [e] (atom,), gap [eV] ()."""

Measure = Callable[[Sequence[Properties], Sequence[Properties]], float]


def centred(molecule: Molecule) -> Molecule:
    """The molecule with its centre of mass at the origin."""
    centre = np.average(molecule.positions, axis=0, weights=atomic_masses(molecule.numbers))
    return replace(molecule, positions=molecule.positions - centre)


def properties(molecule: Molecule, found: Observables, basis: Basis) -> Properties:
    """Those of a density of a closed shell; it need not be that of a determinant. The gap if there are orbitals."""
    assert found.density is not None
    whole = analyze(molecule, Observables(density=found.density, overlap=found.overlap), basis)
    determinant = analyze(molecule, Observables(density=natural_determinant(molecule, found)), basis)
    assert determinant.charges_iao is not None
    out = {
        "dipole": whole.dipole * DIPOLE_AU_IN_DEBYE,
        "quadrupole": whole.quadrupole * DIPOLE_AU_IN_DEBYE * BOHR_IN_ANGSTROM,
        "hirshfeld": hirshfeld_charges(molecule, found.density[0], basis),
        "iao": determinant.charges_iao,
    }
    return out if found.gap is None else out | {"gap": np.array(found.gap * HARTREE_IN_EV)}


def natural_determinant(molecule: Molecule, found: Observables) -> np.ndarray:
    """Density, shape (1, ao, ao), of the natural orbitals with the largest occupations, two electrons in each."""
    assert found.density is not None and found.overlap is not None
    s, pairs = found.overlap, (int(molecule.numbers.sum()) - molecule.charge) // 2
    _, orbitals = eigh(s @ found.density[0] @ s, s)
    return 2 * (orbitals[:, -pairs:] @ orbitals[:, -pairs:].T)[None]


def hirshfeld_charges(molecule: Molecule, density: np.ndarray, basis: Basis) -> np.ndarray:
    """Z_A - int rho(r) rho_A(r) / sum_B rho_B(r) dr of a density matrix, shape (ao, ao) [e], shape (atom,)."""
    return molecule.numbers - np.einsum("aij,ij->a", hirshfeld_weights(molecule, basis), density)


def hirshfeld_weights(molecule: Molecule, basis: Basis) -> np.ndarray:
    """rho_A(r) / sum_B rho_B(r) with densities rho_A of free atoms (Hirshfeld 1977) in the AOs, (atom, ao, ao)."""
    grid = dft.gen_grid.Grids(mean_field.to_pyscf_mole(molecule, basis))
    grid.level = GRID_LEVEL
    grid.build()
    batch = Batch.of([molecule], basis, cutoff=0.0)
    values = ao_values(batch, torch.from_numpy(np.array(grid.coords))[None])[0].numpy()
    atoms = load_basis(FREE_ATOM_BASIS)
    distances = np.linalg.norm(grid.coords - molecule.positions[:, None], axis=-1)
    parts = [free_atom(atoms, z).radial_density(atoms, r) for z, r in zip(molecule.numbers, distances, strict=True)]
    shares = np.array(parts) / np.maximum(np.sum(parts, axis=0), 1e-300)
    return np.stack([values.T @ (share[:, None] * values) for share in shares * grid.weights])


def hartree_fock(molecule: Molecule, basis: Basis) -> tuple[mean_field.Label, Any]:
    """Label and PySCF's object of a closed shell."""
    if molecule.spin:
        raise ValueError(f"{molecule.name} has spin={molecule.spin}: the density of closed shells only")
    tolerance = coupled_cluster.SCF_TOLERANCE
    return mean_field.solve_with_field(molecule, basis, method="hf", residual_tolerance=tolerance)


def coupled_cluster_properties(molecule: Molecule, basis: Basis) -> Properties:
    """Properties of the CCSD density, and IP - EA, of a closed shell."""
    label, field = hartree_fock(molecule, basis)
    wanted = coupled_cluster.Correlation(ip=1, ea=1)
    states = coupled_cluster.solve(molecule, basis, method="ccsd", correlation=wanted).observables
    assert states.ionization_energies is not None and states.electron_affinities is not None
    solver = cc.CCSD(field, frozen=coupled_cluster.n_frozen(molecule, wanted) or None)
    solver.conv_tol, solver.conv_tol_normt = 1e-9, 1e-6
    solver.kernel()
    solver.solve_lambda()
    if not (solver.converged and solver.converged_lambda):
        raise mean_field.NotConvergedError(f"CCSD of {molecule.name}: amplitudes or Lambda equations are not converged")
    density = AOLayout(basis, molecule.numbers).from_pyscf(np.asarray(solver.make_rdm1(ao_repr=True)))[None]
    found = properties(molecule, Observables(density=density, overlap=label.observables.overlap), basis)
    gap = states.ionization_energies[0] - states.electron_affinities[0]
    return found | {"gap": np.array(gap * HARTREE_IN_EV)}


def charges_by_differences(molecule: Molecule, basis: Basis, step: float = STEP) -> np.ndarray:
    """Hirshfeld charges of CCSD(T) of a closed shell [e], shape (atom,); the last from the number of electrons.

    Args:
        molecule: the molecule.
        basis: basis set.
        step: the factor of Hirshfeld's weights [Eh].

    Raises:
        NotConvergedError: if an energy is not converged, or the SCF with the weights follows another state.
    """
    label, field = hartree_fock(molecule, basis)
    weights = AOLayout(basis, molecule.numbers).to_pyscf(hirshfeld_weights(molecule, basis))
    changes = [
        energies_with(molecule, field, step * operator) - energies_with(molecule, field, -step * operator)
        for operator in weights[:-1]
    ]
    populations = np.reshape(changes, (len(weights) - 1, 2)) / (2 * step)
    last = molecule.numbers.sum() - molecule.charge - populations.sum(axis=0)
    hf, triples = molecule.numbers - np.vstack([populations, last]).T
    assert label.observables.density is not None
    difference = float(np.abs(hf - hirshfeld_charges(molecule, label.observables.density[0], basis)).max())
    if not difference < HF_TOLERANCE:
        raise mean_field.NotConvergedError(
            f"{molecule.name}: Hartree-Fock's Hirshfeld charges by differences with a step of {step:g} Eh are off by "
            f"{difference:.1e} e from those of its density, more than {HF_TOLERANCE:g} e"
        )
    return triples


def energies_with(molecule: Molecule, field: Any, operator: np.ndarray) -> np.ndarray:  # noqa: ANN401
    """RHF and CCSD(T) energies [Eh], shape (2,), with an operator, shape (ao, ao), in PySCF's order, in the core part.

    Args:
        molecule: the molecule.
        field: PySCF's RHF object without the operator: its integrals, and the start of the SCF.
        operator: a one-electron operator [Eh].

    Raises:
        NotConvergedError: if the SCF or the amplitudes are not converged.
    """
    other = mean_field.mean_field(field.mol, "hf", 0)
    other._eri = field._eri
    core = field.get_hcore() + operator
    other.get_hcore = lambda *_: core
    state = mean_field.plain_scf(other, np.asarray(field.make_rdm1()), coupled_cluster.SCF_TOLERANCE)
    if not state.residual <= coupled_cluster.SCF_TOLERANCE:
        raise mean_field.NotConvergedError(
            f"SCF of {molecule.name} with Hirshfeld's weights not converged: |FDS-SDF| {state.residual:.1e} Eh"
        )
    other.mo_energy, other.mo_coeff = other.eig(state.fock, other.get_ovlp())
    other.mo_occ = other.get_occ(other.mo_energy, other.mo_coeff)
    other.e_tot, other.converged = state.energy, True
    solver = cc.CCSD(other, frozen=coupled_cluster.n_frozen(molecule, coupled_cluster.Correlation()) or None)
    solver.conv_tol, solver.conv_tol_normt = ENERGY_TOLERANCE, AMPLITUDE_TOLERANCE
    integrals = solver.ao2mo()
    solver.kernel(eris=integrals)
    if not solver.converged:
        raise mean_field.NotConvergedError(f"CCSD of {molecule.name} with Hirshfeld's weights is not converged")
    return state.energy + np.array([0.0, solver.e_corr + solver.ccsd_t(eris=integrals)])


def reference(geometries: Path, output: Path, basis: Basis, limit: int | None, finite_field: int) -> None:
    """Computes what is missing of the first molecules of a label file."""
    with LabelStore.open(geometries) as store:
        molecules = [centred(store.molecule(i)) for i in range(min(len(store), limit or len(store)))]
    if finite_field > len(molecules):
        raise ValueError(f"--finite-field {finite_field} is more than the {len(molecules)} molecules: raise --limit")
    rows = read(output, basis.name) if output.exists() else {}
    for k, molecule in enumerate(molecules):
        start, known = time.perf_counter(), rows.get(molecule_key(molecule), {})
        row = dict(known)
        if not row:
            row = {"numbers": molecule.numbers, "positions": molecule.positions, "charge": np.array(molecule.charge)}
            row |= coupled_cluster_properties(molecule, basis)
        if k < finite_field and BY_DIFFERENCES not in row:
            row[BY_DIFFERENCES] = charges_by_differences(molecule, basis)
        if len(row) == len(known):
            continue
        rows[molecule_key(molecule)] = row
        write(output, basis.name, rows)
        print(f"{k + 1}/{len(molecules)}, {time.perf_counter() - start:.1f} s, {molecule.name}", flush=True)


def write(path: Path, basis: str, rows: dict[str, Properties]) -> None:
    """The reference file, whole or not at all."""
    arrays: dict = {f"{name}/{key}": value for name, row in rows.items() for key, value in row.items()}
    with written_whole(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, **arrays, basis=np.array(basis))


def read(path: Path, basis: str | None = None) -> dict[str, Properties]:
    """Rows of a reference file; they hold `numbers`, `positions` [bohr] and `charge` of the molecule too."""
    rows: dict[str, Properties] = {}
    with np.load(path) as file:
        if basis is not None and str(file["basis"]) != basis:
            raise ValueError(f"{path} is in {file['basis']}, --basis {basis} asks for another: take another --output")
        for name, key in (k.split("/") for k in file.files if k != "basis"):
            rows.setdefault(name, {})[key] = file[f"{name}/{key}"]
    return rows


def mean_error(key: str) -> Measure:
    """Mean over molecules of the mean absolute error of the components."""

    def measure(found: Sequence[Properties], wanted: Sequence[Properties]) -> float:
        return float(np.mean([np.abs(f[key] - w[key]).mean() for f, w in zip(found, wanted, strict=True)]))

    return measure


def rank_correlation(found: Sequence[Properties], wanted: Sequence[Properties]) -> float:
    """Spearman's of the gaps."""
    return float(spearmanr(*([float(row["gap"]) for row in rows] for rows in (found, wanted))).statistic)


MEASURES: dict[str, Measure] = {
    "quadrupole, D angstrom": mean_error("quadrupole"),
    "Hirshfeld charges, e": mean_error("hirshfeld"),
    "IAO charges, e": mean_error("iao"),
    "rank correlation of the gaps": rank_correlation,
    "1 - rank correlation of the gaps": lambda found, wanted: 1 - rank_correlation(found, wanted),
    "dipole, D (in the labels)": mean_error("dipole"),
}
HIRSHFELD = {key: measure for key, measure in MEASURES.items() if key.startswith("Hirshfeld")}


def compared(
    base: list[Properties],
    tuned: list[Properties],
    wanted: list[Properties],
    against: str,
    measures: dict[str, Measure] = MEASURES,
) -> list[dict]:
    """A row for each measure: before, after, their ratio with the middle 95 % of resamplings of the molecules."""
    n, out = len(wanted), []
    picks = [np.arange(n), *np.random.default_rng(0).integers(n, size=(RESAMPLINGS, n))]
    for name, measure in measures.items():
        before, after = (
            np.array([measure([rows[k] for k in pick], [wanted[k] for k in pick]) for pick in picks])
            for rows in (base, tuned)
        )
        within = before[0] <= after[0] * LIMIT if measure is rank_correlation else after[0] <= before[0] * LIMIT
        ratio = after / np.where(before > 1e-9, before, np.nan)  # no ratio to nothing
        found = map(float, (before[0], after[0], ratio[0], *np.quantile(ratio[1:], [0.025, 0.975])))
        row = zip(FIGURES, (None if x != x else x for x in found), strict=True)
        out.append({"property": name, "against": against, "molecules": n, **dict(row), "within": bool(within)})
    return out


def compare(path: Path, base: str, tuned: str, output: Path) -> None:
    """Prints the table and writes it as JSON."""
    wanted = list(read(path).values())
    molecules = [Molecule(row["numbers"], row["positions"], charge=int(row["charge"])) for row in wanted]
    models = mlsemi.load(base), mlsemi.load(tuned)
    header, basis = models[0].header, models[0].header.basis
    before, after = ([properties(m, model.predict(m, estimate=False), basis) for m in molecules] for model in models)
    own = [properties(m, mean_field.solve(m, basis, method=header.method).observables, basis) for m in molecules]
    names = f"CCSD/{np.load(path)['basis']}", f"{header.method.upper()}/{basis.name}"
    limits = {f"{names[1]} against {names[0]}": {name: measure(own, wanted) for name, measure in MEASURES.items()}}
    found = compared(before, after, wanted, names[0])
    known = [k for k, row in enumerate(wanted) if BY_DIFFERENCES in row]
    if known:
        triples = [{"hirshfeld": wanted[k][BY_DIFFERENCES]} for k in known]
        of_base, of_tuned, of_ccsd, of_own = ([rows[k] for k in known] for rows in (before, after, wanted, own))
        name = f"CCSD(T)/{np.load(path)['basis']}"
        if len(known) < len(wanted):
            found += compared(of_base, of_tuned, of_ccsd, names[0], HIRSHFELD)
        found += compared(of_base, of_tuned, triples, name, HIRSHFELD)
        for other, rows in ((names[0], of_ccsd), (names[1], of_own)):
            limits[f"{other} against {name}"] = {key: measure(rows, triples) for key, measure in HIRSHFELD.items()}
    found += compared(before, after, own, names[1])
    print(f"| property | against | molecules | base | fine-tuned | after / before (95 %) | within {LIMIT:.2f} |")
    print("|---|---|---|---|---|---|---|")
    for row in found:
        first, second, *ratio = ("-" if row[k] is None else f"{row[k]:.3g}" for k in FIGURES)
        last = "{} ({} to {}) | {}".format(*ratio, "yes" if row["within"] else "no")
        print("|", " | ".join([row["property"], row["against"], str(row["molecules"]), first, second, last]), "|")
    print()
    for name, errors in limits.items():
        print(f"{name}: " + ", ".join(f"{key} {error:.3g}" for key, error in errors.items()))
    whole = {"base": base, "model": models[1].name, "labels": models[1].header.energy_method, "reference": LEVEL}
    whole |= {"Hirshfeld charges of CCSD(T)": DIFFERENCES} if known else {}
    whole |= {"molecules": len(wanted), **limits, "rows": found}
    with written_whole(output) as beside:
        beside.write_text(json.dumps(whole, indent=1) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    first = parts.add_parser("reference")
    first.add_argument("geometries", type=Path, help="label file")
    first.add_argument("--basis", default="cc-pvtz")
    first.add_argument("--limit", type=int, help="so many of the first molecules")
    first.add_argument(
        "--finite-field", type=int, default=0, metavar="COUNT", help="Hirshfeld charges of CCSD(T) for the first COUNT"
    )
    second = parts.add_parser("compare")
    second.add_argument("reference", type=Path)
    second.add_argument("--base", default="water-pbe-def2svp")
    second.add_argument("--model", required=True, help="the fine-tuned model")
    for part in (first, second):
        part.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "reference":
        basis = load_basis(arguments.basis)
        reference(arguments.geometries, arguments.output, basis, arguments.limit, arguments.finite_field)
    else:
        compare(arguments.reference, arguments.base, arguments.model, arguments.output)


if __name__ == "__main__":
    main()
