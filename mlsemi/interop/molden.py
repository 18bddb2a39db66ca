"""Molden files: geometry, basis and orbitals, for viewers and for programs that go on from orbitals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mlsemi.basis import Basis
from mlsemi.files import written_whole
from mlsemi.interop.orbitals import checked_orbitals
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule, symbol_of
from mlsemi.observables import Observables

M_ORDER = {0: (0,), 1: (1, -1, 0), 2: (0, 1, -1, 2, -2), 3: (0, 1, -1, 2, -2, 3, -3)}
"""Order of m in Molden's shells: p as x, y, z; the others as 0, +1, -1, +2, -2 ..."""


def write_molden(path: str | Path, molecule: Molecule, basis: Basis, observables: Observables) -> None:
    """Writes a Molden file with spherical functions; it appears whole or not at all.

    Orbitals of two spins follow each other, alpha first. Lengths are in bohr, energies in Eh.

    Args:
        path: file to write.
        molecule: the molecule.
        basis: basis set of the orbitals.
        observables: with mo_coeff, mo_energy and mo_occ in mlsemi's AO order.

    Raises:
        ValueError: if there are no orbitals, they do not fit the molecule, or the folder does not exist.
    """
    layout = AOLayout(basis, molecule.numbers)
    checked_orbitals(observables, layout)
    with written_whole(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in _lines(molecule, layout, observables))


def m_order(layout: AOLayout, orders: dict[int, tuple[int, ...]]) -> np.ndarray:
    """Our index of each AO where the m of each shell are in another order, shape (ao,)."""
    order = []
    start = 0
    for z in layout.numbers:
        for shell in layout.basis.shells(z):
            order += [start + shell.l + m for m in orders[shell.l]]
            start += 2 * shell.l + 1
    return np.array(order)


def _lines(molecule: Molecule, layout: AOLayout, observables: Observables) -> Iterator[str]:
    yield "[Molden Format]"
    yield "[Title]"
    yield f" {molecule.name or molecule.formula}"
    yield "[Atoms] AU"
    for k, (z, xyz) in enumerate(zip(molecule.numbers.tolist(), molecule.positions.tolist(), strict=True), start=1):
        yield f"{symbol_of(z):2s} {k:5d} {z:3d} " + " ".join(f"{x:22.15f}" for x in xyz)
    yield "[GTO]"
    for k, z in enumerate(layout.numbers, start=1):
        yield f"{k} 0"
        for shell in layout.basis.shells(z):
            yield f" {'spdf'[shell.l]} {len(shell.exponents)} 1.00"
            for a, c in zip(shell.exponents, shell.coefficients, strict=True):
                yield f" {a:24.16e} {c:24.16e}"
        yield ""
    yield "[5D]"
    yield "[7F]"
    yield "[MO]"
    assert observables.mo_coeff is not None and observables.mo_energy is not None and observables.mo_occ is not None
    coefficients = observables.mo_coeff[:, m_order(layout, M_ORDER)]
    for spin, name in enumerate(("Alpha", "Beta")[: len(coefficients)]):
        for k in range(coefficients.shape[2]):
            yield f" Sym= {k + 1}{'ab'[spin] if len(coefficients) == 2 else 'a'}"
            yield f" Ene= {observables.mo_energy[spin, k]:.16e}"
            yield f" Spin= {name}"
            yield f" Occup= {observables.mo_occ[spin, k]:.10f}"
            for i, c in enumerate(coefficients[spin, :, k].tolist(), start=1):
                yield f"{i:5d} {c:24.16e}"
