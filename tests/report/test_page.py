"""The page as text: its numbers, its safety, its drawings, for closed and open shells."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from mlsemi.interop.orbitals import find_orbital
from mlsemi.molecule import Molecule
from mlsemi.properties.grids import orbitals_at
from mlsemi.report.markup import markdown, table
from mlsemi.report.orbitals import Orbital, diagram, frontier
from mlsemi.report.page import render
from mlsemi.report.sections import orbital_table
from mlsemi.report.spectrum import infrared_spectrum
from mlsemi.report.volumes import Scene, grid_around, pack, unpack
from mlsemi.units import BOHR_IN_ANGSTROM

VOID = {"meta", "link", "img", "input", "br", "hr", "path", "line", "rect", "polyline"}


class Checker(HTMLParser):
    """Finds elements that are not closed, addresses that are not local, and code outside of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.addresses, self.handlers = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action")]
        self.handlers += [name for name, _ in attributes if name.startswith("on")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def _texts(svg: str) -> list[tuple[float, float]]:
    """Places of the labels of levels."""
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(?:start|end)">[HL]', svg)
    return [(float(x), float(y)) for x, y in found]


def test_page_is_whole_and_closed_to_the_world(water_page):
    checker = Checker(water_page)
    assert checker.open == [] and checker.handlers == []
    assert set(checker.addresses) == {"data:,", "#results"}
    assert "{{" not in water_page.split("<script>")[0]
    scripts = re.findall(r"<script>(.*?)</script>", water_page, re.DOTALL)
    assert len(scripts) == 2
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', water_page)
    assert policy and "default-src 'none'" in policy[1]
    for script in scripts:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy[1]
    assert len(water_page) < 3e6


def test_foreign_text_is_escaped(water, water_page):
    assert water.title not in water_page and "<img src=" not in water_page and "<i>1</i>" not in water_page
    assert "<h1>&lt;/script&gt;&lt;script&gt;window.hacked = 1" in water_page
    assert "in &amp; out.xyz" in water_page


def test_numbers_are_those_of_the_prediction(water, water_page):
    o = water.observables
    for value in (o.energy, o.homo, o.lumo, *o.charges_mulliken, *o.charges_loewdin):
        assert f"{value:.4f}".replace("-", "−")[:-1] in water_page
    assert "frame 1 of 3" in water_page and "0" * 64 in water_page
    assert "2026-11-20 12:00 UTC" in water_page
    assert "<strong>small</strong>" in water_page  # the model card
    assert f"{water.frequencies.vibrations.wavenumbers[2]:.1f}" in water_page


def test_data(water, water_data):
    assert [atom["symbol"] for atom in water_data["atoms"]] == ["O", "H", "H"]
    assert [bond["pair"] for bond in water_data["bonds"]] == [[0, 1], [0, 2]]
    keys = [s["key"] for s in water_data["surfaces"]]
    # STO-3G of water has two empty orbitals
    assert keys == ["mo0-2", "mo0-3", "mo0-4", "mo0-5", "mo0-6", "density", "potential"]
    assert water_data["first"] == "mo0-4"
    for mode in water_data["modes"]:
        assert np.linalg.norm(mode["shift"], axis=1).max() == pytest.approx(1, abs=1e-3)
    arrow = np.subtract(water_data["dipole"]["end"], water_data["dipole"]["start"])
    # from O to the hydrogens, if the model has learned anything; in any case along the moment
    np.testing.assert_allclose(
        water.scene.rotation.T @ arrow / np.linalg.norm(arrow), water.dipole / np.linalg.norm(water.dipole), atol=1e-3
    )


def test_orbitals_have_the_numbers_that_export_takes(water):
    o = water.observables
    spin, index = find_orbital(o, "lumo")
    (lumo,) = [x for x in frontier(o.mo_energy, o.mo_occ, n=1) if x.name == "LUMO"]
    assert find_orbital(o, int(re.findall(r'<td class="number">(\d+)</td>', orbital_table([lumo]))[0])) == (spin, index)


def test_spectrum_shows_what_absorbs_only():
    wavenumbers = np.array([-100.0, 1000.0, 1500.0])
    assert infrared_spectrum(wavenumbers, np.array([50.0, 20.0, 0.0])).count('class="stick"') == 2
    assert infrared_spectrum(wavenumbers, np.array([50.0, 1e-20, 1e-9])) == ""  # rounding, as in N2
    assert infrared_spectrum(wavenumbers[:1], np.array([50.0])) == ""


def test_surfaces_of_the_page_are_those_of_the_molecule(water, water_data):
    # a point of the page [angstrom], through the scene, in the frame of the input
    grid, place = water_data["grid"], np.array([17, 20, 15])
    at = np.add(grid["origin"], grid["spacing"] * place) / BOHR_IN_ANGSTROM
    points = torch.from_numpy(water.scene.from_scene(at)).view(1, 1, 3)
    flat = np.ravel_multi_index(tuple(place), grid["shape"])
    coefficients = torch.from_numpy(water.observables.mo_coeff)
    expected = orbitals_at(water.batch, coefficients[None], points)[0, 0, :, 0].numpy()
    for surface in water_data["surfaces"][:5]:
        value = unpack(surface["volume"], grid["shape"])[flat]
        # the sign is free, and a value is exact to half a step of its packing, 0.1 %, below the knee of 0.01 absolutely
        assert abs(value) == pytest.approx(abs(expected[int(surface["key"][4:])]), rel=2e-3, abs=2e-5)
    density = unpack(water_data["surfaces"][5]["volume"], grid["shape"])[flat]
    assert density == pytest.approx(2 * (expected[:5] ** 2).sum(), rel=2e-3)


def test_scene_is_the_molecule_turned(molecules):
    for molecule in molecules.values():
        scene = Scene.of(molecule)
        assert np.linalg.det(scene.rotation) == pytest.approx(1, abs=1e-12)
        np.testing.assert_allclose(scene.from_scene(scene.positions), molecule.positions, atol=1e-12)
        spread = (scene.positions**2).sum(0)
        assert spread[0] >= spread[1] - 1e-12 and spread[1] >= spread[2] - 1e-12


def test_packing_is_exact_to_a_step(rng):
    shape = (4, 5, 6)
    values = rng.normal(size=120) * 10.0 ** rng.integers(-6, 3, 120)
    packed = pack(values, shape, knee=0.01)
    # half a step of asinh(v / knee), the derivative of sinh being cosh; the rounding may add a little of second order
    bound = 0.505 * packed["step"] * np.sqrt(values**2 + 0.01**2)
    assert (np.abs(unpack(packed, shape) - values) <= bound).all()


def test_large_grids_become_coarse(molecules):
    far = replace(molecules["water"], positions=molecules["water"].positions * 20)
    grid = grid_around(far, Scene.of(far))
    assert grid.n_points <= 120_000
    there = Scene.of(far).positions
    assert (grid.points.min(0) <= there.min(0) - 5.99).all() and (grid.points.max(0) >= there.max(0) + 5.99).all()


def test_open_shell_has_two_columns_and_a_spin_density(make_content):
    # O2: degenerate, linear, a triplet
    oxygen = Molecule.from_angstrom(np.array([8, 8]), np.array([[0, 0, 0], [0.7, 0.7, 0.7]]), spin=2, name="O2")
    content = make_content(oxygen)
    page = render(content, orbitals=4)
    Checker(page)
    assert 'data-surface="mo0-8"' in page and 'data-surface="mo1-7"' in page
    assert "spin density" in page and "triplet" in page and "spin Mulliken" in page
    assert [b.pair for b in content.bonds] == [(0, 1)]
    assert '<input type="checkbox" id="dipole">' not in page  # it has none


def test_atom(make_content):
    page = render(make_content(Molecule.from_angstrom(np.array([1]), np.zeros((1, 3)), spin=1, name="H")))
    Checker(page)
    assert "<h2>Bonds</h2>" not in page and "HOMO α" in page


def test_ion_has_its_dipole_about_its_centre(make_content, molecules):
    hydronium = replace(molecules["water"], charge=1, spin=1)
    moved = replace(hydronium, positions=hydronium.positions + [3.0, -2.0, 1.0])
    here, there = make_content(hydronium), make_content(moved)
    np.testing.assert_allclose(here.dipole, there.dipole, atol=1e-6)
    assert "<sup>+</sup>" in render(here)


def test_diagram_puts_labels_apart_and_equal_levels_side_by_side():
    energies = np.array([[-11.0, -0.5, -0.5, -0.4999, -0.3, 0.1, 0.1, 0.1, 0.1]])
    orbitals = frontier(energies, np.array([[2.0] * 5 + [0.0] * 4]), n=5)
    assert [o.name for o in orbitals[3:6]] == ["HOMO−1", "HOMO", "LUMO"]
    svg = diagram(orbitals, n_spins=1)
    heights = sorted(y for _, y in _texts(svg))
    assert len(heights) == 9 and np.diff(heights).min() > 14
    bars = re.findall(r'class="bar" x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)"', svg)
    widths = [float(b) - float(a) for a, b, _ in bars]
    assert np.allclose(widths, [70, 62 / 3, 62 / 3, 62 / 3, 70, 14.5, 14.5, 14.5, 14.5], atol=0.11)
    assert 'class="break"' in svg  # 300 eV down to the inner shell are not drawn to scale


def test_diagram_without_empty_or_occupied_orbitals():
    for occupation in (0.0, 2.0):
        assert "<svg" in diagram([Orbital(0, 0, "HOMO", -0.5, occupation)], n_spins=1)


def test_markdown():
    text = "# a <b>\n\none **two** `<c> **d**`\nthree\n- x\n  y\n- z\n\n| p | q |\n|---|---|\n| 1 | 2 |\n"
    assert markdown(text) == (
        "<h4>a &lt;b&gt;</h4>\n<p>one <strong>two</strong> <code>&lt;c&gt; **d**</code> three</p>\n"
        "<ul><li>x y</li><li>z</li></ul>\n"
        '<div class="scroll"><table><thead><tr><th scope="col">p</th><th scope="col">q</th></tr></thead>'
        "<tbody><tr><td>1</td><td>2</td></tr></tbody></table></div>"
    )


def test_table_escapes():
    assert "<b>" not in table(("<b>", "n"), [("<b>", "1 < 2")], caption="<b>")


@pytest.mark.parametrize("option", [{"orbitals": 0}, {"isovalue": 0.0}, {"isovalue": float("nan")}])
def test_refuses(water, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        render(water, **option)
