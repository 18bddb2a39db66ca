"""mlsemi: semi-empirical quantum chemistry with a learned Hamiltonian.

`mlsemi.load("organic-b3lyp-def2svp").predict(molecule)` gives the Observables of a `Molecule`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlsemi.model import Model, load, shipped_models
    from mlsemi.molecule import Molecule

__version__ = "0.1.0"
__all__ = ["Model", "Molecule", "load", "shipped_models"]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: they bring torch, which takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'mlsemi' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("mlsemi.molecule" if name == "Molecule" else "mlsemi.model"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
