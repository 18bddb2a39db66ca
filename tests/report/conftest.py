"""A report of water with all that a report can have, by a small model; its title is hostile."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mlsemi.checkpoint import Header, save
from mlsemi.engine import Engine
from mlsemi.model import Model
from mlsemi.molecule import Molecule
from mlsemi.report.content import Content, Source
from mlsemi.report.page import render
from mlsemi.vibrations import frequencies

HOSTILE = '</script><script>window.hacked = 1</script><img src="x" onerror="window.hacked = 2"> &amp; "water"'
MADE = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.fixture(scope="session")
def open_model(open_header: Header, open_engine: Engine) -> Model:
    return Model(open_header, open_engine)


@pytest.fixture(scope="session")
def make_content(open_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Content]:
    """Makes the content of a report by a small model of H and O for open and closed shells."""
    checkpoint = tmp_path_factory.mktemp("report") / "open.safetensors"
    save(checkpoint, open_model.header, open_model.engine.state_dict())
    card = "# open\n\nA **small** model.\n\n| a | b |\n|---|---|\n| <i>1</i> | `2` |\n"
    checkpoint.with_suffix(".md").write_text(card)

    def make(molecule: Molecule, *, vibrations: bool = False) -> Content:
        source = Source("in & out.xyz", "0" * 64, frame=1, n_frames=3)
        found = frequencies(open_model, molecule) if vibrations else None
        return Content(open_model, checkpoint, molecule, open_model.predict(molecule), "fast", source, found)

    return make


@pytest.fixture(scope="session")
def water(make_content: Callable[..., Content], molecules: dict[str, Molecule]) -> Content:
    return make_content(replace(molecules["water"], name=HOSTILE), vibrations=True)


@pytest.fixture(scope="session")
def water_page(water: Content) -> str:
    return render(water, orbitals=3, potential=True, made=MADE)


@pytest.fixture(scope="session")
def water_data(water_page: str) -> dict[str, Any]:
    """The data in the page."""
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', water_page, re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.fixture(scope="session")
def water_file(water_page: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "water.html"
    path.write_text(water_page, encoding="utf-8")
    return path
