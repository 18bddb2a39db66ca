"""Basis sets of contracted spherical Gaussians, read from the Basis Set Exchange's JSON schema.

A shell is R_l(r) Y_lm with R_l = r^l sum_k c_k N_k exp(-a_k r^2); N_k normalizes each primitive and the c_k are
scaled so that the contracted function has norm one. This is the convention of PySCF (and of libcint).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from math import gamma
from pathlib import Path

import numpy as np

from mlsemi.molecule import symbol_of

L_MAX = 3
"""Highest angular momentum that is read: f."""


@dataclass(frozen=True)
class Shell:
    """One contracted shell.

    Attributes:
        l: angular momentum.
        exponents: primitive exponents [bohr^-2].
        coefficients: contraction coefficients of the normalized primitives; the contracted function has norm one.
    """

    l: int
    exponents: tuple[float, ...]
    coefficients: tuple[float, ...]

    @staticmethod
    def normalized(l: int, exponents: Iterable[float], coefficients: Iterable[float]) -> Shell:
        """A shell whose coefficients are scaled to unit norm; primitives with coefficient zero are dropped."""
        kept = [(a, c) for a, c in zip(exponents, coefficients, strict=True) if c != 0.0]
        a = np.array([p[0] for p in kept])
        c = np.array([p[1] for p in kept])
        # overlap of normalized primitives of one centre: (2 sqrt(ab) / (a+b))^(l + 3/2)
        overlap = (2 * np.sqrt(np.outer(a, a)) / np.add.outer(a, a)) ** (l + 1.5)
        c = c / np.sqrt(c @ overlap @ c)
        return Shell(l, tuple(a.tolist()), tuple(c.tolist()))

    def radial_coefficients(self) -> np.ndarray:
        """c_k N_k of the radial function r^l sum_k c_k N_k exp(-a_k r^2), shape (primitive,)."""
        a = np.array(self.exponents)
        norm = np.sqrt(2 * (2 * a) ** (self.l + 1.5) / gamma(self.l + 1.5))
        return np.array(self.coefficients) * norm


@dataclass(frozen=True, eq=False)
class Basis:
    """A basis set: for each element its shells, sorted by angular momentum (stable).

    Attributes:
        name: as it is called in the Basis Set Exchange, lower case.
        elements: atomic number to shells.
    """

    name: str
    elements: Mapping[int, tuple[Shell, ...]]

    def shells(self, number: int) -> tuple[Shell, ...]:
        """Shells of an element.

        Raises:
            ValueError: if the basis has none for it.
        """
        if number not in self.elements:
            covered = ", ".join(symbol_of(z) for z in sorted(self.elements))
            raise ValueError(f"basis {self.name!r} has no functions for {symbol_of(number)}; it covers {covered}")
        return self.elements[number]

    def n_ao(self, number: int) -> int:
        """Number of spherical functions of an element."""
        return sum(2 * s.l + 1 for s in self.shells(number))

    def l_max(self, numbers: Iterable[int] | None = None) -> int:
        """Highest angular momentum among the elements (all of the basis by default)."""
        return max(s.l for z in (numbers or self.elements) for s in self.shells(z))

    def subset(self, numbers: Iterable[int]) -> Basis:
        """The same basis for some elements only."""
        return Basis(self.name, {z: self.shells(z) for z in sorted(set(numbers))})

    def to_json(self) -> dict[str, object]:
        """Name and shells as plain data, the form that is hashed and stored in checkpoints and label files."""
        return {
            "name": self.name,
            "elements": {
                str(z): [[s.l, list(s.exponents), list(s.coefficients)] for s in shells]
                for z, shells in sorted(self.elements.items())
            },
        }

    @classmethod
    def from_json(cls, data: Mapping) -> Basis:
        """Inverse of `to_json`."""
        elements = {
            int(z): tuple(Shell(l, tuple(a), tuple(c)) for l, a, c in shells) for z, shells in data["elements"].items()
        }
        return cls(data["name"], elements)

    def content_hash(self, numbers: Iterable[int] | None = None) -> str:
        """Hash of what the functions are, for the given elements (all by default): 16 hexadecimal digits.

        Exponents and coefficients enter with 12 significant digits, so that rounding does not change it.
        """
        rows = [
            f"{z} {s.l} {a:.11e} {c:.11e}"
            for z in sorted(set(numbers or self.elements))
            for s in self.shells(z)
            for a, c in zip(s.exponents, s.coefficients, strict=True)
        ]
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]

    @cached_property
    def _all_hash(self) -> str:
        return self.content_hash()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Basis) and self._all_hash == other._all_hash

    def __hash__(self) -> int:
        return hash(self._all_hash)


def basis_from_bse(data: Mapping, *, name: str | None = None) -> Basis:
    """A `Basis` from a dictionary in the Basis Set Exchange's JSON schema.

    Combined shells (sp) are split, general contractions become one shell each.

    Raises:
        ValueError: for Cartesian shells of l >= 2, effective core potentials, shells beyond f, or data that is not of
            the schema.
    """
    label = name or str(data.get("name", "")).lower()
    if "elements" not in data:
        raise ValueError(f"basis {label!r}: no 'elements'; not the Basis Set Exchange's JSON schema")
    elements: dict[int, tuple[Shell, ...]] = {}
    for key, entry in data["elements"].items():
        symbol = symbol_of(int(key))
        if entry.get("ecp_potentials"):
            raise ValueError(f"basis {label!r}, {symbol}: effective core potentials are not supported")
        shells: list[Shell] = []
        for raw in entry.get("electron_shells", []):
            momenta = raw["angular_momentum"]
            if "cartesian" in raw["function_type"] and max(momenta) >= 2:
                raise ValueError(
                    f"basis {label!r}, {symbol}: Cartesian shells of l={max(momenta)} are not supported; mlsemi uses "
                    "spherical functions: take a basis whose function_type is 'gto' or 'gto_spherical'"
                )
            if max(momenta) > L_MAX:
                raise ValueError(f"basis {label!r}, {symbol}: l={max(momenta)} is beyond the supported l={L_MAX} (f)")
            columns = raw["coefficients"]
            per_column = momenta if len(momenta) > 1 else momenta * len(columns)
            exponents = [float(x) for x in raw["exponents"]]
            for l, column in zip(per_column, columns, strict=True):
                shells.append(Shell.normalized(l, exponents, [float(x) for x in column]))
        elements[int(key)] = tuple(sorted(shells, key=lambda s: s.l))
    return Basis(label, elements)


def _is_supported(entry: Mapping) -> bool:
    """Whether an element of a library basis can be used: all-electron, not beyond f, not Cartesian beyond p."""
    shells = entry.get("electron_shells", [])
    if not shells or entry.get("ecp_potentials"):
        return False
    highest = [max(s["angular_momentum"]) for s in shells]
    cartesian = any(l >= 2 and "cartesian" in s["function_type"] for l, s in zip(highest, shells, strict=True))
    return max(highest) <= L_MAX and not cartesian


def basis_directory() -> Path:
    """Folder of the shipped basis sets: in the wheel inside the package, in a checkout beside it."""
    packaged = Path(str(files("mlsemi"))) / "basis_sets"
    return packaged if packaged.is_dir() else packaged.parents[1] / "basis_sets"


@lru_cache(maxsize=32)
def load_basis(name: str) -> Basis:
    """A basis by name (a shipped one, or any of the Basis Set Exchange) or by the path of a JSON file.

    Raises:
        ValueError: if it is not known, or holds what `basis_from_bse` refuses.
    """
    path = Path(name)
    if path.suffix == ".json":
        if not path.is_file():
            raise ValueError(f"no such basis file: {name}")
        return basis_from_bse(json.loads(path.read_text()))
    label = name.strip().lower()
    shipped = basis_directory() / f"{label}.json"
    if shipped.is_file():
        return basis_from_bse(json.loads(shipped.read_text()), name=label)
    names = ", ".join(sorted(p.stem for p in basis_directory().glob("*.json")))
    try:
        import basis_set_exchange
    except ImportError as error:
        raise ValueError(
            f"basis {name!r} is not among the shipped ones ({names}); install basis_set_exchange for the others"
        ) from error
    try:
        data = basis_set_exchange.get_basis(label)
    except KeyError as error:
        raise ValueError(f"basis {name!r} is neither shipped ({names}) nor known to the Basis Set Exchange") from error
    # elements that cannot be used are left out, so that the others can; without the lightest ones nothing is left
    usable = {z: e for z, e in data["elements"].items() if _is_supported(e)}
    if not usable:
        return basis_from_bse(data, name=label)
    return basis_from_bse({**data, "elements": usable}, name=label)
