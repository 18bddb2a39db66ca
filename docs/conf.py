"""Sphinx configuration: `make docs` builds these pages strictly, without a network.

Two things are made from the package itself at build time, so that neither can be forgotten: a line `%modules PACKAGE`
of a page becomes the API of all modules of the package, and `%commands` the help of every command.
"""

import re
from importlib.util import find_spec
from inspect import cleandoc
from pathlib import Path
from pkgutil import iter_modules

import mlsemi

project = "mlsemi"
author = "The mlsemi developers"
copyright = author
version = release = mlsemi.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns: list[str] = []
html_theme = "furo"
html_title = f"mlsemi {release}"
html_copy_source = False
pygments_style = "sphinx"

myst_heading_anchors = 3  # as GitHub makes them, so that links work in both places
suppress_warnings: list[str] = []

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "exclude-members": "__new__, __init__"}
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # torch's are of torch's pages
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes that a docstring of a class lists are entries of the class

# `mlsemi.molecule` in a docstring is a link, and a name that is no longer there an error. Names of other packages have
# no pages here, and their inventories would need a network.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!mlsemi(\.\w+)+$).*")]

REPOSITORY_ONLY = re.compile(r"\[([^\]]+)\]\(\.\./(?!README)[^)]+\)")
"""Links to files that are in the repository and not among these pages."""


def modules(package: str) -> list[str]:
    """A package and its public modules, or a module by itself."""
    spec = find_spec(package)
    assert spec is not None, package
    places = spec.submodule_search_locations or []
    below = [m.name for m in iter_modules(places) if not m.name.startswith("_")]
    found = [package]
    for name in below if package != "mlsemi" else []:
        found += modules(f"{package}.{name}")
    return found


def api(package: str) -> str:
    """MyST source of the API of a package."""
    # what a package takes from its modules is documented there
    return "\n\n".join(
        f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :ignore-module-all:\n```"
        for name in modules(package)
    )


def commands() -> str:
    """MyST source of the help of every command."""
    from typer.main import get_command
    from typer.testing import CliRunner

    from mlsemi.cli import app

    parts = []
    for name in get_command(app).commands:  # pyright: ignore[reportAttributeAccessIssue]
        found = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "100", "TERMINAL_WIDTH": "100"})
        assert found.exit_code == 0, found.output
        parts.append(f"## mlsemi {name}\n\n```text\n{cleandoc(found.output)}\n```")
    return "\n\n".join(parts)


def expand(_app, docname: str, source: list[str]) -> None:
    """Fills in what is made from the package, and unlinks what is not among the pages."""
    text = re.sub(r"^%modules (\S+)$", lambda m: api(m[1]), source[0], flags=re.M)
    text = re.sub(r"^%commands$", lambda _: commands(), text, flags=re.M)
    source[0] = REPOSITORY_ONLY.sub(r"\1", text)


constants: dict[str, list[str]] = {}


def before_napoleon(_app, what: str, name: str, _obj, _options, lines: list[str]) -> None:
    """Bars of docstrings are absolute values, not substitutions of reStructuredText."""
    lines[:] = ["`".join(t if k % 2 else t.replace("|", r"\|") for k, t in enumerate(x.split("`"))) for x in lines]
    if what in ("data", "attribute"):
        constants[name] = list(lines)


def after_napoleon(_app, what: str, name: str, _obj, _options, lines: list[str]) -> None:
    """What stands before a colon in the docstring of a constant is no type."""
    if what in ("data", "attribute"):
        lines[:] = constants.pop(name)


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("source-read", expand)
    app.connect("autodoc-process-docstring", before_napoleon, priority=1)
    app.connect("autodoc-process-docstring", after_napoleon, priority=900)
    assert Path(app.confdir).name == "docs"
