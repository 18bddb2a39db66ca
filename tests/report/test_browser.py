"""The page in a real browser: it draws, obeys, asks for nothing and complains of nothing.

Needs Chromium: the one that MLSEMI_CHROMIUM names, or one on the path, or playwright's own.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from mlsemi.report.volumes import unpack

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the page is not tested")

# WebGL without a GPU, and none of the requests that the browser makes for itself
ARGUMENTS = [
    "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
]  # fmt: skip
# the finer grid of the page holds the points of Python's at even indices
PROBE = """([key, [nx, ny, nz]]) => mlsemiReport.field(key).then(({array, size}) => {
  const found = [size];
  for (let i = 0; i < nx * ny * nz; i += 97) {
    const z = i % nz, y = Math.floor(i / nz) % ny, x = Math.floor(i / (nz * ny));
    found.push(array[(2 * x * size[1] + 2 * y) * size[2] + 2 * z]);
  }
  return found;
})"""
SMALL = {"viewport": {"width": 420, "height": 640}, "device_scale_factor": 0.5}
"""A small picture: it is drawn without a GPU."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def _chromium(playwright) -> str:
    candidates = [os.environ.get("MLSEMI_CHROMIUM"), *map(shutil.which, NAMES), playwright.chromium.executable_path]
    found = next((path for path in candidates if path and Path(path).is_file()), None)
    if found is None:
        pytest.skip("no Chromium (set MLSEMI_CHROMIUM, or install the package chromium): the page is not tested")
    return found


class Watched:
    """A page with what it asked for and complained of."""

    def __init__(self, page) -> None:
        self.page, self.requests, self.complaints = page, [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)

    def open(self, path: Path) -> None:
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("body[data-ready]")

    def picture(self) -> np.ndarray:
        """What the canvas shows, shape (y, x, 3)."""
        data = self.page.evaluate("mlsemiReport.picture()").split(",")[1]
        return imread(io.BytesIO(base64.b64decode(data)), format="png")[..., :3]

    def act(self, act) -> np.ndarray:
        """The picture after an action that draws."""
        before = self.page.locator("#viewer").get_attribute("data-drawn")
        act()
        self.page.wait_for_function("old => document.getElementById('viewer').dataset.drawn !== old", arg=before)
        return self.picture()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(playwright), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def watched(browser, water_file):
    page = browser.new_page(**SMALL, reduced_motion="reduce")
    watched = Watched(page)
    watched.open(water_file)
    yield watched
    page.close()


def _changed(a: np.ndarray, b: np.ndarray) -> float:
    """Part of the points that differ visibly."""
    return float((np.abs(a - b).max(-1) > 0.1).mean())


def test_draws_and_obeys(watched):
    page = watched.page
    assert page.locator("body").get_attribute("data-ready") == "drawn"
    homo = watched.picture()
    assert _changed(homo, np.broadcast_to(homo[0, 0], homo.shape)) > 0.03  # not blank: molecule and lobes
    # by keyboard in the diagram, from HOMO to LUMO
    page.locator('.level[aria-checked="true"]').focus()
    lumo = watched.act(lambda: page.keyboard.press("ArrowUp"))
    assert _changed(homo, lumo) > 0.01
    assert page.locator("#surface").input_value() == "mo0-5"
    assert page.evaluate("document.activeElement.dataset.surface") == "mo0-5"
    density = watched.act(lambda: page.select_option("#surface", "density"))
    assert _changed(lumo, density) > 0.01
    potential = watched.act(lambda: page.select_option("#surface", "potential"))
    assert _changed(density, potential) > 0.01
    nothing = watched.act(lambda: page.select_option("#surface", "none"))
    assert _changed(potential, nothing) > 0.01
    assert _changed(nothing, watched.act(lambda: page.check("#dipole"))) > 0.001
    # the same choice gives the same picture
    page.uncheck("#dipole")
    assert _changed(homo, watched.act(lambda: page.click('[data-surface="mo0-4"]'))) < 1e-3
    assert watched.complaints == []


def test_turns(watched):
    page = watched.page
    first = page.evaluate("mlsemiReport.view()")
    page.focus("#viewer")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("+")
    turned = page.evaluate("mlsemiReport.view()")
    assert np.abs(np.subtract(turned, first)[3:]).max() > 0.01
    page.keyboard.press("0")
    assert np.allclose(page.evaluate("mlsemiReport.view()"), first, atol=1e-9)


def test_vibrations_and_labels(watched):
    page = watched.page
    still = watched.act(lambda: page.select_option("#surface", "none"))
    moving = watched.act(lambda: page.select_option("#mode", "2"))
    assert _changed(still, moving) > 0.001  # arrows; with reduced motion nothing moves
    assert "cm⁻¹" in page.inner_text("#legend")
    assert page.locator("tr.chosen").get_attribute("data-mode") == "2"
    assert _changed(still, watched.act(lambda: page.select_option("#mode", "-1"))) < 1e-3
    page.select_option("#labels", "charge Mulliken")
    page.check("#bond-orders")
    assert _changed(still, watched.picture()) > 0.001
    page.uncheck("#bond-orders")
    page.select_option("#labels", "none")
    assert watched.complaints == []


def test_values_in_the_page_are_those_of_python(watched, water_data):
    data = water_data
    shape = data["grid"]["shape"]
    for surface in data["surfaces"][:1] + [s for s in data["surfaces"] if s["key"] == "density"]:
        size, *found = watched.page.evaluate(PROBE, [surface["key"], shape])
        assert size == [2 * n - 1 for n in shape]
        # float32 of the page
        np.testing.assert_allclose(found, unpack(surface["volume"], shape)[::97], rtol=2e-6, atol=1e-9)


def test_asks_for_nothing_and_runs_nothing_foreign(watched, water_file):
    assert watched.requests == [water_file.as_uri()]
    assert watched.page.evaluate("window.hacked") is None
    assert watched.page.locator("img").count() == 1  # the picture for printing
    assert watched.page.inner_text("h1").startswith("</script><script>window.hacked")
    # the policy of the page refuses what it does not hold
    watched.page.evaluate("fetch('data:,x').catch(() => window.refused = true)")
    watched.page.wait_for_function("window.refused === true")
    watched.complaints.clear()  # of that refusal


def test_animation_moves_the_atoms(browser, water_file):
    page = browser.new_page(**SMALL)
    watched = Watched(page)
    watched.open(water_file)
    first = watched.act(lambda: page.select_option("#mode", "2"))
    frames = [watched.picture() for _ in range(3)]
    assert max(_changed(first, frame) for frame in frames) > 0.002
    assert watched.complaints == []
    page.close()


def test_without_webgl_the_tables_remain(browser, water_file):
    page = browser.new_page()
    watched = Watched(page)
    page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    watched.open(water_file)
    assert page.locator("body").get_attribute("data-ready") == "tables"
    assert "tables" in page.inner_text("#viewer-status")
    assert not page.is_visible("#controls") and page.is_visible("table >> nth=0")
    assert watched.complaints == []
    page.close()
