"""The parts of a report that are read: cards, tables, vibrations, provenance."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

import numpy as np

import mlsemi
from mlsemi.files import sha256_of
from mlsemi.molecule import symbol_of
from mlsemi.report.content import Content
from mlsemi.report.markup import Safe, facts, flow, html, markdown, table
from mlsemi.report.orbitals import Orbital, number
from mlsemi.report.spectrum import infrared_spectrum
from mlsemi.units import DIPOLE_AU_IN_DEBYE, HARTREE_IN_EV, HARTREE_IN_KCAL_PER_MOL

MULTIPLICITIES = ("singlet", "doublet", "triplet", "quartet", "quintet", "sextet", "septet")


def multiplicity(spin: int) -> str:
    """Name of the multiplicity 2S + 1."""
    return MULTIPLICITIES[spin] if spin < len(MULTIPLICITIES) else f"multiplicity {spin + 1}"


def section(title: str, *parts: str, wide: bool = False) -> Safe:
    """A section with a heading; a wide one has the page to itself."""
    kind = " wide" if wide else ""
    return Safe(f'<section class="results-section{kind}"><h2>{html(title)}</h2>{"".join(parts)}</section>')


def warnings(content: Content) -> Safe:
    """What the reader should know first."""
    if not content.warnings:
        return Safe("")
    items = "".join(f"<li>{html(text)}</li>" for text in content.warnings)
    title = "Warning" if len(content.warnings) == 1 else f"{len(content.warnings)} warnings"
    return Safe(f'<section class="warnings" role="alert"><h2>{title}</h2><ul>{items}</ul></section>')


def cards(content: Content) -> Safe:
    """The main results at a glance."""
    o = content.observables
    rows = [("Energy", number(o.energy or 0.0, 6), "Eh", _error_in_words(content))]
    if o.gap is not None and o.homo is not None and o.lumo is not None:
        edges = f"HOMO {number(o.homo * HARTREE_IN_EV, 2)}, LUMO {number(o.lumo * HARTREE_IN_EV, 2)} eV"
        rows.append(("HOMO–LUMO gap", number(o.gap * HARTREE_IN_EV, 2), "eV", edges))
    size = float(np.linalg.norm(content.dipole))
    where = "about the centre of nuclear charge" if content.molecule.charge else f"{size:.4f} au"
    rows.append(("Dipole moment", f"{size * DIPOLE_AU_IN_DEBYE:.2f}", "D", where))
    if content.molecule.spin and o.spin_square is not None:
        pure = content.molecule.spin / 2 * (content.molecule.spin / 2 + 1)
        rows.append(("⟨S²⟩", f"{o.spin_square:.3f}", "", f"{pure:.2f} in a pure {multiplicity(content.molecule.spin)}"))
    if content.frequencies:
        energy = content.frequencies.vibrations.zero_point_energy
        note = f"{len(content.frequencies.vibrations.wavenumbers)} modes, harmonic"
        rows.append(("Zero-point energy", f"{energy * HARTREE_IN_KCAL_PER_MOL:.2f}", "kcal/mol", note))
    return Safe("".join(
        f'<div><h2>{title}</h2><div class="value">{value} <span class="unit">{unit}</span></div>'
        f'<div class="note">{note}</div></div>'
        for title, value, unit, note in rows
    ))  # fmt: skip


def _error_in_words(content: Content) -> str:
    o = content.observables
    if o.energy_error_estimate is None:
        return "converged" if content.mode == "scf" else "no error estimate in this mode of this model"
    text = f"error ±{o.energy_error_estimate * HARTREE_IN_KCAL_PER_MOL:.2g} kcal/mol"
    if o.energy_error_95 is None:
        return text
    return text + f", 95 % within {o.energy_error_95 * HARTREE_IN_KCAL_PER_MOL:.2g}"


def energies(content: Content) -> Safe:
    """Energies with the errors they are expected to have."""
    o, header = content.observables, content.model.header

    def energy(name: str, value: float | None, digits: int = 6) -> list[tuple[str, ...]]:
        if value is None or not np.isfinite(value):
            return []
        return [(name, number(value, digits), number(value * HARTREE_IN_EV, 3),
                 number(value * HARTREE_IN_KCAL_PER_MOL, 2))]  # fmt: skip

    rows = energy("total energy", o.energy)
    rows += energy("error estimate: 68 % are below", o.energy_error_estimate)
    rows += energy("95 % are below", o.energy_error_95)
    rows += energy("HOMO", o.homo) + energy("LUMO", o.lumo) + energy("HOMO–LUMO gap", o.gap)
    if o.gap is not None:
        edges = content.frontier
        rows += energy("hardness (I − A)/2", float(edges.hardness))
        rows += energy("electronegativity (I + A)/2", float(edges.electronegativity))
        rows += energy("electrophilicity", float(edges.electrophilicity))
    measured = f"{content.mode} energy MAE [kcal/mol]"
    notes = []
    if measured in header.errors:
        notes.append(
            f"On molecules that {content.model.name} was not trained on, energies of the {content.mode} mode are "
            f"off by {header.errors[measured]:g} kcal/mol on average."
        )
    if o.energy_error_estimate is not None:
        notes.append("The estimates hold for molecules like those that they were calibrated on, against "
                     f"{header.method}/{header.basis.name}, not against experiment.")  # fmt: skip
    if o.gap is not None:
        notes.append("I and A are minus the energies of HOMO and LUMO.")
    text = "".join(f'<p class="note">{html(note)}</p>' for note in [*notes, *o.notes])
    return section("Energies", table(("", "Eh", "eV", "kcal/mol"), rows, caption="Energies and their errors"), text)


def atoms(content: Content) -> Safe:
    """Charges and spins of the atoms, as a table."""
    molecule = content.molecule
    kinds = [(f"{kind}/e", values) for kind, values in content.charges.items()]
    kinds += [(f"spin {kind}", values) for kind, values in content.spins.items()]
    rows = [
        (content.atom_name(k), *(number(float(values[k]), 4, plus=True) for _, values in kinds))
        for k in range(molecule.n_atoms)
    ]
    names = ("atom", *(name for name, _ in kinds))
    note = '<p class="note">Charges of all three kinds depend on the basis set; IAO charges the least.</p>'
    return section(
        "Atoms", table(names, rows, caption="Charges of the atoms, which are counted from 0"),
        note if "IAO" in content.charges else "",
    )  # fmt: skip


def bonds(content: Content) -> Safe:
    """Lengths and orders of the bonds, as a table."""
    rows = [
        ("–".join(map(content.atom_name, b.pair)), f"{b.distance:.4f}", number(b.mayer, 3), number(b.wiberg, 3))
        for b in content.bonds
    ]
    if not rows:
        return Safe("")
    header = ("bond", "length/Å", "Mayer", "Wiberg")
    return section("Bonds", table(header, rows, caption="Lengths and bond orders (Wiberg's in Löwdin's basis)"))


def orbital_table(orbitals: Iterable[Orbital]) -> Safe:
    """Energies of the orbitals that are shown, the highest first."""
    rows = [
        (o.name, str(o.index + 1), number(o.energy, 6), number(o.energy * HARTREE_IN_EV, 3), f"{o.occupation:g}")
        for o in sorted(orbitals, key=lambda o: -o.energy)
    ]
    header = ("orbital", "number", "Eh", "eV", "electrons")
    caption = "Frontier orbitals; numbers count from 1 in each spin, as mlsemi export --orbital takes them"
    return section("Orbitals", table(header, rows, caption=caption))


def moments(content: Content) -> Safe:
    """The dipole moment with its components."""
    vector = content.dipole
    rows = [
        (axis, number(value, 5, plus=True), number(value * DIPOLE_AU_IN_DEBYE, 4, plus=True))
        for axis, value in zip("xyz", vector.tolist(), strict=True)
    ]
    size = float(np.linalg.norm(vector))
    rows.append(("length", f"{size:.5f}", f"{size * DIPOLE_AU_IN_DEBYE:.4f}"))
    where = ", about the centre of the nuclear charges" if content.molecule.charge else ""
    return section("Dipole moment", table(("", "au", "D"), rows, caption=f"In the axes of the input{where}"))


def vibrations(content: Content) -> Safe:
    """Frequencies, infrared intensities and thermochemistry."""
    found = content.frequencies
    if found is None:
        return Safe("")
    modes = found.vibrations
    rows = [
        (str(k), number(float(w), 1), f"{i:.1f}", f"{m:.2f}")
        for k, (w, i, m) in enumerate(
            zip(modes.wavenumbers.tolist(), found.intensities.tolist(), modes.reduced_masses.tolist(), strict=True)
        )
    ]
    if not rows:
        return section("Vibrations", "<p>An atom has none.</p>")
    header = ("mode", "cm⁻¹", "IR/(km/mol)", "reduced mass/u")
    caption = "Harmonic frequencies, imaginary ones negative; modes count from 0"
    listed = table(header, rows, caption=caption, row_data="mode")
    hint = '<p class="hint screen-only">Choose a mode here, in the spectrum or below the picture to see it move.</p>'
    picture = infrared_spectrum(modes.wavenumbers, found.intensities)
    picture = picture or Safe('<p class="note">No mode absorbs in the infrared.</p>')
    return section("Vibrations", picture, hint, flow([listed, _thermochemistry(content)]), wide=True)


def _thermochemistry(content: Content) -> Safe:
    assert content.frequencies is not None
    heat = content.frequencies.thermochemistry()
    rows = [
        (name, number(value, 6), number(value * HARTREE_IN_KCAL_PER_MOL, 2))
        for name, value in (
            ("zero-point energy", heat.zero_point_energy),
            ("E + zero-point energy", heat.energy_at_zero),
            ("enthalpy H", heat.enthalpy),
            ("T S", heat.temperature * heat.entropy),
            ("Gibbs energy G", heat.gibbs_energy),
        )
    ]
    caption = (
        f"Ideal gas of rigid rotors and harmonic oscillators, {heat.temperature:.2f} K, "
        f"{heat.pressure / 1000:.3f} kPa, symmetry number {heat.symmetry_number}"
    )
    return table(("", "Eh", "kcal/mol"), rows, caption=caption)


def geometry(content: Content) -> Safe:
    """The coordinates as an xyz file."""
    text = content.molecule.to_xyz(comment=f"charge={content.molecule.charge} spin={content.molecule.spin}")
    rows = [
        (content.atom_name(k), symbol_of(int(z)), *(number(x, 6) for x in xyz))
        for k, (z, xyz) in enumerate(
            zip(content.molecule.numbers, content.molecule.positions_angstrom.tolist(), strict=True)
        )
    ]
    listed = table(("atom", "element", "x", "y", "z"), rows, caption="Coordinates of the input [Å]", text_columns=2)
    file = f"<details class='screen-only'><summary>As an xyz file</summary><pre>{html(text)}</pre></details>"
    return section("Geometry", listed, file)


def provenance(content: Content, made: datetime) -> Safe:
    """Where all of this comes from: input, model, method, programs."""
    header, source, molecule = content.model.header, content.source, content.molecule
    frame = f"{source.frame} (of {source.n_frames}, counted from 0)" if source.n_frames > 1 else "the only one"
    training = header.training
    pairs: list[tuple[str, object]] = [
        ("report made", made.strftime("%Y-%m-%d %H:%M UTC")),
        ("input file", source.name),
        ("its SHA-256", source.sha256),
        ("frame", frame),
        ("charge, spin (2S)", f"{molecule.charge}, {molecule.spin}"),
        ("model", content.model.name),
        ("checkpoint SHA-256", sha256_of(content.checkpoint)),
        ("mode", content.mode),
        ("reference method", f"{header.method}/{header.basis.name}"),
        ("energy", header.level(content.mode)),
        ("functional resolved as", header.resolved_functional),
        ("basis hash", header.basis.content_hash()),
        ("elements", ", ".join(symbol_of(z) for z in sorted(header.elements))),
        ("trained on", f"{training['labels_train']} labels" if "labels_train" in training else "not recorded"),
        ("labels made with", _versions_text(training.get("label_versions"))),
        ("programs", ", ".join(_versions(content))),
        ("time of the prediction", f"{content.observables.seconds or 0.0:.2f} s"),
    ]
    if content.observables.residual is not None:
        pairs.append(("max. |FDS − SDF|", f"{content.observables.residual:.1e} Eh"))
    errors = [(name, value) for name, value in header.errors.items() if isinstance(value, int | float)]
    listed = [(name, f"{value:g}") for name, value in errors]
    parts: list[str] = [facts(pairs)]
    if listed:
        parts.append("<h3>Measured errors of the model</h3>")
        parts.append(table(("on molecules not trained on", "found"), listed, caption="As its checkpoint holds them"))
    return section("Provenance", *parts)


def _versions_text(stored: object) -> str:
    """Versions as checkpoints hold them: JSON text, a mapping, or nothing."""
    import json

    if isinstance(stored, str):
        try:
            stored = json.loads(stored)
        except json.JSONDecodeError:
            return str(stored)
    return ", ".join(f"{k} {v}" for k, v in stored.items()) if isinstance(stored, dict) else "not recorded"


def _versions(content: Content) -> list[str]:
    names = ["torch", "numpy"] + (["pyscf"] if content.mode != "fast" else [])
    found = [f"mlsemi {mlsemi.__version__}", f"Python {platform.python_version()}"]
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def model_card(content: Content) -> Safe:
    """The card that lies beside the checkpoint."""
    path = content.checkpoint.with_suffix(".md")
    if not path.is_file():
        return Safe("")
    text = path.read_text(encoding="utf-8")
    return section("Model card", f'<div class="card">{markdown(text)}</div>')
