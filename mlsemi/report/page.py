"""The report of a molecule: one page of HTML that needs nothing else, not even a network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import numpy as np

import mlsemi
from mlsemi.molecule import symbol_of
from mlsemi.report import sections
from mlsemi.report.content import Content
from mlsemi.report.markup import Safe, flow, formula_html, html
from mlsemi.report.orbitals import Orbital, diagram, frontier, number
from mlsemi.report.surfaces import ORBITAL_ISOVALUE, surfaces
from mlsemi.report.volumes import grid_around, grid_json
from mlsemi.units import BOHR_IN_ANGSTROM, DIPOLE_AU_IN_DEBYE

ORBITALS = 5
"""So many occupied orbitals and so many empty ones are shown by default."""

_ARROW = 0.9
"""Length of the arrow of a dipole moment of one debye [angstrom]."""

_SWING = 0.35
"""The atom that moves most in a vibration moves by this [angstrom]."""


def render(
    content: Content,
    *,
    orbitals: int = ORBITALS,
    isovalue: float = ORBITAL_ISOVALUE,
    potential: bool = False,
    made: datetime | None = None,
) -> str:
    """The page.

    Args:
        content: what it shows.
        orbitals: number of occupied orbitals, and of empty ones, of each spin.
        isovalue: at which orbitals are first shown [bohr^-3/2].
        potential: offer the density coloured by the electrostatic potential, which takes a while.
        made: date of the report, now by default.

    Raises:
        ValueError: for no orbitals, or an isovalue that is not positive.
    """
    if orbitals < 1:
        raise ValueError(f"orbitals={orbitals} must be at least 1")
    if not 0 < isovalue < 10:
        raise ValueError(f"isovalue={isovalue:g} must be positive, such as 0.05 [bohr^-3/2]")
    o = content.observables
    assert o.mo_energy is not None and o.mo_occ is not None
    shown = frontier(o.mo_energy, o.mo_occ, n=orbitals)
    made = made or datetime.now(UTC)
    data = _data(content, shown, isovalue=isovalue, potential=potential)
    scripts = {name: _file(file) for name, file in (("library", "3Dmol-min.js"), ("script", "report.js"))}
    n_spins = len(o.mo_energy)
    fields = {
        "policy": _policy(scripts.values()),
        "generator": f"mlsemi {mlsemi.__version__}",
        "title": html(content.title),
        "subtitle": _subtitle(content),
        "style": _file("report.css"),
        "warnings": sections.warnings(content),
        "cards": sections.cards(content),
        "surface_options": _surface_options(data["surfaces"]),
        "label_options": _options(_label_names(content)),
        "toggles": _toggles(content),
        "diagram": diagram(shown, n_spins=n_spins),
        "diagram_hint": "Press a level to see its orbital." if n_spins == 1 else
        "Press a level to see its orbital. α left, β right.",
        "sections": _sections(content, shown, made),
        "footer": f"Made by mlsemi {mlsemi.__version__} with 3Dmol.js (BSD licence; its text is in the source of this "
        f"page and in the package). This page loads nothing from a network.<!--\n{_file('3Dmol-LICENSE.txt')}\n-->",
        # a script element ends at the first </script, and <!-- changes how it is read
        "data": json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c"),
        **scripts,
    }  # fmt: skip
    return re.sub(r"\{\{(\w+)\}\}", lambda found: fields[found[1]], _file("template.html"))


def _file(name: str) -> str:
    return (files("mlsemi.report") / name).read_text(encoding="utf-8")


def _policy(scripts: Any) -> str:
    """Content security policy: the two scripts of the page by their hashes, and nothing from anywhere else."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


def _subtitle(content: Content) -> Safe:
    molecule, header = content.molecule, content.model.header
    parts = [
        formula_html(molecule.formula, molecule.charge),
        f"charge {number(molecule.charge, 0, plus=True)}" if molecule.charge else "neutral",
        sections.multiplicity(molecule.spin),
        f"model {html(content.model.name)}",
        f"{html(content.mode)} mode",
        html(header.level(content.mode)),
    ]
    if content.source.n_frames > 1:
        parts.append(f"frame {content.source.frame} of {content.source.n_frames} in {html(content.source.name)}")
    return Safe(" · ".join(parts))


def _sections(content: Content, shown: Sequence[Orbital], made: datetime) -> str:
    results = [
        sections.energies(content),
        sections.atoms(content),
        sections.moments(content),
        sections.orbital_table(shown),
        sections.bonds(content),
        sections.geometry(content),
    ]
    origin = [sections.provenance(content, made), sections.model_card(content)]
    return "\n".join((flow(results), sections.vibrations(content), f'<div class="origin">{flow(origin)}</div>'))


def _label_names(content: Content) -> dict[str, str]:
    names = {"none": "none", "names": "atoms"}
    names |= {f"charge {kind}": f"charges, {kind}" for kind in content.charges}
    return names | {f"spin {kind}": f"spins, {kind}" for kind in content.spins}


def _options(names: dict[str, str]) -> Safe:
    return Safe("".join(f'<option value="{html(key)}">{html(text)}</option>' for key, text in names.items()))


def _surface_options(found: list[dict[str, Any]]) -> Safe:
    orbitals = {s["key"]: s["label"] for s in reversed(found) if s["kind"] == "orbital"}
    others = {s["key"]: s["label"] for s in found if s["kind"] != "orbital"}
    return Safe(
        f'<option value="none">none</option><optgroup label="densities">{_options(others)}</optgroup>'
        f'<optgroup label="orbitals">{_options(orbitals)}</optgroup>'
    )


def _toggles(content: Content) -> Safe:
    parts = []
    if content.bonds:
        parts.append('<label class="check"><input type="checkbox" id="bond-orders"> Bond orders</label>')
    if _arrow(content):
        parts.append('<label class="check"><input type="checkbox" id="dipole"> Dipole</label>')
    if content.frequencies and len(content.frequencies.vibrations.wavenumbers):
        wavenumbers = content.frequencies.vibrations.wavenumbers.tolist()
        names = {"-1": "none"} | {str(k): f"{k}: {number(w, 0)} cm⁻¹" for k, w in enumerate(wavenumbers)}
        parts.append(f'<label>Vibration <select id="mode">{_options(names)}</select></label>')
    return Safe("".join(parts))


def _arrow(content: Content) -> dict[str, Any] | None:
    """Ends of the arrow of the dipole moment in the scene [angstrom], through the middle of the molecule."""
    debye = content.dipole * DIPOLE_AU_IN_DEBYE
    size = float(np.linalg.norm(debye))
    if size < 0.02:
        return None
    half = content.scene.turned(debye) * _ARROW / 2
    label = f"dipole moment {size:.2f} D, from − to +"
    return {"start": (-half).round(4).tolist(), "end": half.round(4).tolist(), "label": label}


def _data(content: Content, shown: Sequence[Orbital], *, isovalue: float, potential: bool) -> dict[str, Any]:
    """What the script of the page needs, as plain data; lengths in angstrom, in the frame of the scene."""
    grid = grid_around(content.molecule, content.scene)
    homo = max((o for o in shown if o.occupation), key=lambda o: o.energy, default=None)
    return {
        "file": re.sub(r"[^A-Za-z0-9._-]+", "_", content.title) or "molecule",
        "grid": grid_json(grid),
        "atoms": _atoms(content),
        "bonds": [
            {"pair": list(b.pair), "order": f"{b.mayer:.2f}", "lines": int(np.clip(round(b.mayer), 1, 3))}
            for b in content.bonds
        ],
        "dipole": _arrow(content),
        "surfaces": surfaces(content, grid, shown, isovalue=isovalue, potential=potential),
        "first": homo.key if homo else "density",
        "modes": _modes(content),
        "swing": _SWING,
    }


def _atoms(content: Content) -> list[dict[str, Any]]:
    found = []
    for k, at in enumerate((content.scene.positions * BOHR_IN_ANGSTROM).round(5).tolist()):
        labels = {"names": content.atom_name(k)}
        labels |= {f"charge {kind}": number(float(q[k]), 2, plus=True) for kind, q in content.charges.items()}
        labels |= {f"spin {kind}": number(float(s[k]), 2, plus=True) for kind, s in content.spins.items()}
        found.append({"symbol": symbol_of(int(content.molecule.numbers[k])), "at": at, "labels": labels})
    return found


def _modes(content: Content) -> list[dict[str, Any]]:
    """Vibrations, the largest displacement of an atom being one."""
    if content.frequencies is None:
        return []
    modes, intensities = content.frequencies.vibrations, content.frequencies.intensities
    found = []
    for k, shift in enumerate(content.scene.turned(modes.displacements)):
        largest = float(np.linalg.norm(shift, axis=-1).max())
        label = f"mode {k}: {number(float(modes.wavenumbers[k]), 1)} cm⁻¹, {intensities[k]:.1f} km/mol"
        found.append({"label": label, "shift": (shift / largest).round(4).tolist()})
    return found
