"""A model as a calculator of ASE: `atoms.calc = MlsemiCalculator("organic-b3lyp-def2svp")`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from mlsemi.interop.ase.geometries import charge_and_spin
from mlsemi.model import DEFAULT_MODEL, MODES, Mode, Model, load
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables
from mlsemi.units import BOHR_IN_ANGSTROM, HARTREE_IN_EV

Populations = Literal["mulliken", "loewdin"]

_WITH_FORCES = frozenset({"forces"})


class MlsemiCalculator(Calculator):
    """Energy, forces, dipole moment, charges and spins of molecules by a model, in ASE's units (eV, angstrom, e).

    `results` has besides `energy_error_estimate` and `energy_error_95` [eV] where the mode has them. `observables` is
    the last result with everything in atomic units, and its `warnings` should be read: ASE has no place for them.

    Args:
        model: a model, or the name of a shipped one, or the path of a checkpoint.
        mode: 'fast', 'variational', 'corrected', 'composite' or 'scf'.
        charge: total charge [e]; by default `atoms.info["charge"]`, else the sum of the initial charges.
        spin: number of unpaired electrons, 2S; by default `atoms.info["spin"]` or `["multiplicity"]`, else the sum of
            the initial magnetic moments.
        dispersion: add the D4 dispersion term of the functional.
        estimate: fast mode: estimate the error of the energy, in twice the time.
        populations: kind of the charges and magnetic moments of the atoms.
        device: 'cpu' or 'cuda', for a model that is given by name.
        precision: 'float32' or 'float64' of the network, for a model that is given by name.

    Raises:
        ValueError: for unknown names or modes; on calculation for what the model does not cover, periodic cells, and
            forces of molecules without a gap.
    """

    implemented_properties = ["energy", "free_energy", "forces", "dipole", "charges", "magmom", "magmoms"]  # noqa: RUF012
    discard_results_on_any_change = True

    def __init__(
        self,
        model: Model | str | Path = DEFAULT_MODEL,
        *,
        mode: Mode = "fast",
        charge: int | None = None,
        spin: int | None = None,
        dispersion: bool = False,
        estimate: bool = True,
        populations: Populations = "mulliken",
        device: str = "cpu",
        precision: str = "float32",
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode={mode!r} must be one of {', '.join(MODES)}")
        if populations not in ("mulliken", "loewdin"):
            raise ValueError(f"populations={populations!r} must be 'mulliken' or 'loewdin'")
        super().__init__()
        self.model = model if isinstance(model, Model) else load(model, device=device, precision=precision)
        self.mode: Mode = mode
        self.charge, self.spin = charge, spin
        self.dispersion, self.estimate = dispersion, estimate
        self.populations: Populations = populations
        self.observables: Observables | None = None
        self._state: tuple[int, int] | None = None

    def todict(self, skip_default: bool = True) -> dict[str, Any]:
        """What a trajectory of ASE notes of the calculator."""
        return {"model": self.model.name, "mode": self.mode, "charge": self.charge, "spin": self.spin}

    def molecule(self, atoms: Atoms) -> Molecule:
        """The atoms as a Molecule, with the charge and spin that hold for them.

        Raises:
            ValueError: for periodic atoms, or what `Molecule` refuses.
        """
        if atoms.pbc.any():
            raise ValueError(
                f"atoms are periodic (pbc={atoms.pbc.tolist()}), and mlsemi is for molecules; set atoms.pbc = False if "
                "they are one molecule"
            )
        charge, spin = self._charge_and_spin(atoms)
        name = atoms.get_chemical_formula()
        return Molecule.from_angstrom(atoms.numbers, atoms.positions, charge=charge, spin=spin, name=name)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """As ASE's, but charge and spin in `atoms.info` count as well."""
        changes = super().check_state(atoms, tol=tol)
        if not changes and self._state is not None and self._state != self._charge_and_spin(atoms):
            changes = ["initial_charges"]
        return changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Computes everything but forces always, and forces if they are among the properties."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        molecule = self.molecule(self.atoms)
        forces = not _WITH_FORCES.isdisjoint(properties)
        found = self.model.predict(
            molecule,
            mode=self.mode,
            forces=forces,
            dispersion=self.dispersion,
            estimate=self.estimate and self.mode == "fast",
        )
        if forces and found.gradient is None:
            why = "; ".join(found.warnings)
            raise ValueError(f"{molecule.name}: no forces: {why}; are charge and spin (2S) right?")
        self.observables, self._state = found, (molecule.charge, molecule.spin)
        self.results = results_of(found, molecule, populations=self.populations)

    def _charge_and_spin(self, atoms: Atoms) -> tuple[int, int]:
        return charge_and_spin(atoms, "atoms", charge=self.charge, spin=self.spin)


def results_of(
    observables: Observables, molecule: Molecule, *, populations: Populations = "mulliken"
) -> dict[str, Any]:
    """Observables in the names and units of ASE's results (eV, angstrom, e).

    Args:
        observables: what is None is left out.
        molecule: the molecule.
        populations: kind of the charges and magnetic moments of the atoms.
    """
    o = observables
    charges = o.charges_mulliken if populations == "mulliken" else o.charges_loewdin
    found: dict[str, Any] = {
        "energy": _scaled(o.energy, HARTREE_IN_EV),
        "free_energy": _scaled(o.energy, HARTREE_IN_EV),
        "forces": _scaled(o.gradient, -HARTREE_IN_EV / BOHR_IN_ANGSTROM),
        "dipole": _scaled(o.dipole, BOHR_IN_ANGSTROM),
        "charges": None if charges is None else charges.copy(),
        "energy_error_estimate": _scaled(o.energy_error_estimate, HARTREE_IN_EV),
        "energy_error_95": _scaled(o.energy_error_95, HARTREE_IN_EV),
    }
    spins = o.spins_mulliken if populations == "mulliken" else o.spins_loewdin
    found |= {"magmom": float(molecule.spin), "magmoms": None if spins is None else spins.copy()}
    return {name: value for name, value in found.items() if value is not None}


def _scaled(value: Any, factor: float) -> Any:
    return None if value is None else np.asarray(value) * factor if np.ndim(value) else float(value) * factor
