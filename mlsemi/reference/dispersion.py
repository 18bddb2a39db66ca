"""London dispersion for functionals that lack it: D4 (Caldeweyher et al., J. Chem. Phys. 150, 154122 (2019)) by dftd4.

The term depends on the nuclei and the total charge, not on the density: it is added to the energy of any mode, and its
gradient to the gradient. It needs the extra `dispersion`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mlsemi.molecule import Molecule
from mlsemi.observables import Observables

_OTHER_NAMES = {"wb97x": "wb97x-2008", "b3lypg": "b3lyp", "pbe,pbe": "pbe"}
"""Where PySCF and dftd4 differ. dftd4's 'wb97x' is the functional that was fitted with non-local correlation."""


@dataclass(frozen=True, eq=False)
class Dispersion:
    """The dispersion term of a molecule.

    Attributes:
        energy: to be added to the energy of the functional [Eh].
        gradient: derivative with respect to the nuclei [Eh/bohr], shape (atom, 3).
    """

    energy: float
    gradient: np.ndarray


def dispersion(molecule: Molecule, *, method: str) -> Dispersion:
    """D4 dispersion with three-body terms, of the parameters that were fitted for a functional.

    Args:
        molecule: its charge takes part, its spin does not.
        method: 'hf' or a functional by its name, such as 'b3lyp', 'pbe0', 'cam-b3lyp'. A functional that is written as
            its parts has no parameters.

    Raises:
        ImportError: if dftd4 is not installed.
        ValueError: if there are no parameters for the method, or dftd4 refuses the molecule.
    """
    try:
        from dftd4.interface import DampingParam, DispersionModel
    except ImportError as error:
        raise ImportError(
            f"the dispersion term needs dftd4 ({error}): install mlsemi[dispersion], or leave the term out"
        ) from error
    check_parameters(method)
    try:
        model = DispersionModel(molecule.numbers, molecule.positions, charge=float(molecule.charge))
        found = model.get_dispersion(DampingParam(method=_name(method)), grad=True)
    except RuntimeError as error:
        raise ValueError(f"dftd4 refuses {molecule.name or molecule.formula}: {error}") from error
    return Dispersion(float(found["energy"]), np.array(found["gradient"]))


def with_dispersion(found: Observables, molecule: Molecule, *, method: str) -> Observables:
    """A result with the D4 term in its energy and its gradient, if it has one.

    Raises:
        ImportError: if dftd4 is not installed.
        ValueError: if there are no parameters for the functional.
    """
    assert found.energy is not None
    term = dispersion(molecule, method=method)
    return replace(
        found,
        energy=found.energy + term.energy,
        gradient=None if found.gradient is None else found.gradient + term.gradient,
        notes=(*found.notes, f"D4 dispersion included: {term.energy:.6f} Eh"),
    )


def check_parameters(method: str) -> None:
    """Refuses methods without D4 parameters.

    Raises:
        ImportError: if dftd4 is not installed.
        ValueError: for an unknown method.
    """
    try:
        from dftd4.interface import DampingParam
    except ImportError as error:
        raise ImportError(
            f"the dispersion term needs dftd4 ({error}): install mlsemi[dispersion], or leave the term out"
        ) from error
    try:
        DampingParam(method=_name(method))
    except RuntimeError as error:
        raise ValueError(
            f"method={method!r}: dftd4 has no D4 parameters of that name (it has those of hf, pbe, b3lyp, pbe0, "
            "r2scan, tpss and others): leave the dispersion term out"
        ) from error


def _name(method: str) -> str:
    """A method of PySCF as dftd4 calls it, which takes no heed of case and hyphens."""
    name = method.strip().lower().replace("_", "-")
    return _OTHER_NAMES.get(name, name)
