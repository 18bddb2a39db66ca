"""The pages name all that there is: modules, commands, keys of the configuration."""

import re
from dataclasses import fields
from pathlib import Path
from pkgutil import iter_modules

import pytest
from typer.main import get_command

import mlsemi
from mlsemi.cli import app
from mlsemi.nn.network import NetworkConfig
from mlsemi.train.config import DataConfig, FinetuneConfig, LossConfig, TrainingConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("how-to-*.md"))]


def test_every_module_has_an_api_page():
    named = [
        m
        for page in (ROOT / "docs" / "api").glob("*.md")
        for m in re.findall(r"^%modules (\S+)$", page.read_text(), re.M)
    ]
    assert len(named) == len(set(named))
    there = {f"mlsemi.{m.name}" for m in iter_modules(mlsemi.__path__) if not m.name.startswith("_")}
    assert set(named) == there - {"mlsemi.cli"} | {"mlsemi"}  # commands have a page of their own


def test_every_api_page_and_how_to_is_in_the_navigation():
    for folder, pattern in ((ROOT / "docs", "*.md"), (ROOT / "docs" / "api", "*.md")):
        text = (folder / "index.md").read_text()
        missing = [
            p.stem for p in folder.glob(pattern) if p.stem != "index" and not re.search(rf"^{p.stem}$", text, re.M)
        ]
        assert not missing


@pytest.mark.parametrize("command", sorted(get_command(app).commands))
def test_every_command_is_shown(command):
    assert any(f"\nmlsemi {command} " in page.read_text() for page in PAGES)


@pytest.mark.parametrize(
    ("page", "kind"),
    [("train", DataConfig), ("train", LossConfig), ("train", TrainingConfig), ("finetune", FinetuneConfig)],
)
def test_every_key_of_the_configuration_is_explained(page, kind):
    text = (ROOT / "docs" / f"how-to-{page}.md").read_text()
    missing = [f.name for f in fields(kind) if not re.search(rf"^(# )?{f.name} = .*#|`{f.name}`", text, re.M)]
    assert not missing


def test_defaults_on_the_page_are_those_of_the_code():
    text = (ROOT / "docs" / "how-to-train.md").read_text().split("## The configuration")[1]
    for kind in (LossConfig, TrainingConfig, NetworkConfig):
        for field in fields(kind):
            shown = re.search(rf"^{field.name} = (\S+) +#", text, re.M)
            if shown and field.name != "threads":  # the page shows one thread, the default is torch's
                assert shown[1].strip('"') == str(field.default) or float(shown[1]) == field.default, field.name
