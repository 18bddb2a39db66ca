"""Orbitals of a result for the files that hold them: checked, and chosen by name."""

from __future__ import annotations

import re

import numpy as np

from mlsemi.layout import AOLayout
from mlsemi.observables import Observables

SPINS = ("alpha", "beta")


def checked_orbitals(observables: Observables, layout: AOLayout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients, shape (spin, ao, mo), energies [Eh] and occupations, shape (spin, mo), of a result.

    Raises:
        ValueError: if one of them is missing, or does not fit the layout.
    """
    found = []
    for name in ("mo_coeff", "mo_energy", "mo_occ"):
        value = getattr(observables, name)
        if value is None:
            raise ValueError(f"observables.{name} is missing: this result has no orbitals to write")
        found.append(value)
    coeff, energy, occ = found
    n_spins, _, n_mo = coeff.shape
    if coeff.shape[1] != layout.n_ao:
        raise ValueError(f"observables.mo_coeff has shape {coeff.shape}, but the layout has {layout.n_ao} AOs")
    if energy.shape != (n_spins, n_mo) or occ.shape != (n_spins, n_mo):
        raise ValueError(
            f"observables.mo_energy and mo_occ have shapes {energy.shape} and {occ.shape}; {(n_spins, n_mo)} expected"
        )
    return coeff, energy, occ


_NAME = re.compile(r"(homo|lumo)([+-]\d+)?|\d+", re.IGNORECASE)


def check_orbital_name(orbital: str | int) -> re.Match[str]:
    """Refuses what cannot be the name of an orbital, with or without a result.

    Raises:
        ValueError: saying what names are.
    """
    found = _NAME.fullmatch(str(orbital).strip())
    if found is None:
        raise ValueError(f"orbital={orbital!r} must be homo, lumo, homo-1, lumo+1 ... or a number from 1")
    return found


def find_orbital(observables: Observables, orbital: str | int, *, spin: str | None = None) -> tuple[int, int]:
    """An orbital by name.

    Args:
        observables: with mo_energy and mo_occ.
        orbital: 'homo', 'lumo', 'homo-1', 'lumo+2', or its number, counted from 1 in the order of energies.
        spin: 'alpha' or 'beta' of a result with two spins. By default HOMO and LUMO are those over both spins, and
            numbers those of alpha.

    Returns:
        Index of the spin axis, and of the orbital from 0.

    Raises:
        ValueError: for other names, or an orbital that is not there.
    """
    energy, occ = observables.mo_energy, observables.mo_occ
    if energy is None or occ is None:
        raise ValueError("observables have no orbitals (mo_energy, mo_occ)")
    if spin is not None and spin not in SPINS:
        raise ValueError(f"spin={spin!r} must be one of {', '.join(SPINS)}")
    spins = range(len(occ)) if spin is None else [SPINS.index(spin) if len(occ) == 2 else 0]
    name = check_orbital_name(orbital)
    if name[1]:
        return _frontier(energy, occ, list(spins), name[1].lower(), int(name[2] or 0))
    if not 1 <= int(name[0]) <= energy.shape[1]:
        raise ValueError(f"orbital={orbital!r}: there are the orbitals 1 to {energy.shape[1]}")
    return spins[0], int(name[0]) - 1


def _frontier(energy: np.ndarray, occ: np.ndarray, spins: list[int], name: str, offset: int) -> tuple[int, int]:
    wanted = (occ > 0) if name == "homo" else (occ == 0)
    found = [(float(energy[s, k]), s, int(k)) for s in spins for k in np.flatnonzero(wanted[s])]
    if not found:
        raise ValueError(f"there is no {name.upper()}: {'no' if name == 'homo' else 'every'} orbital is occupied")
    _, s, k = max(found) if name == "homo" else min(found)
    if not 0 <= k + offset < energy.shape[1]:
        raise ValueError(f"{name}{offset:+d}: there are {energy.shape[1]} orbitals, and the {name.upper()} is {k + 1}")
    return s, k + offset
