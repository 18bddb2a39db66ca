"""Which molecules a model predicts in which mode: refused and doubted by what its header says (`mlsemi.domain`)."""

from __future__ import annotations

from collections.abc import Sequence

from mlsemi.checkpoint import Header
from mlsemi.domain import doubts, refuse_uncovered
from mlsemi.molecule import Molecule


def refuse(molecule: Molecule, header: Header, mode: str) -> None:
    """Refuses a molecule that a model does not predict in a mode.

    Raises:
        ValueError: saying what the model covers.
    """
    for domain in header.domains(mode):
        refuse_uncovered(molecule, model=header.name, elements=header.elements, domain=domain)
    _refuse_impossible(molecule, header)
    if mode == "corrected":
        refuse_doubtful(molecule, header, doubts(molecule, header.domain))


def refused(molecules: Sequence[Molecule], header: Header, mode: str) -> dict[int, str]:
    """Why molecules cannot be predicted, by index, as far as it is known before anything is computed."""
    found = {}
    for k, molecule in enumerate(molecules):
        try:
            refuse(molecule, header, mode)
        except ValueError as error:
            found[k] = str(error)
    return found


def doubted(molecule: Molecule, header: Header, mode: str) -> tuple[str, ...]:
    """Reasons why a prediction may be worse than the errors that were measured for the model."""
    return tuple(dict.fromkeys(text for domain in header.domains(mode) for text in doubts(molecule, domain)))


def refuse_doubtful(molecule: Molecule, header: Header, reasons: Sequence[str]) -> None:
    """Refuses a molecule in the corrected mode that is doubtful in any way.

    Raises:
        ValueError: with the reasons, if there are any.
    """
    if reasons:
        raise ValueError(
            f"mode='corrected' is for the domain of the model {header.name} only, and "
            f"{molecule.name or molecule.formula} is not within it: {'; '.join(reasons)}; take mode='variational' "
            "or 'scf'"
        )


def _refuse_impossible(molecule: Molecule, header: Header) -> None:
    where = molecule.name or molecule.formula
    if molecule.spin and not header.network.open_shells:
        raise ValueError(
            f"{where} has spin (2S) {molecule.spin}, which the model {header.name} does not cover: it is for closed "
            "shells (`mlsemi models` lists what others cover)"
        )
    n_alpha = (molecule.n_electrons + molecule.spin) // 2
    if n_alpha > (n_ao := sum(header.basis.n_ao(z) for z in molecule.numbers.tolist())):
        raise ValueError(
            f"{where} with charge {molecule.charge} and spin (2S) {molecule.spin} has {n_alpha} electrons of one "
            f"spin, but the basis {header.basis.name} only {n_ao} orbitals: are charge and spin right?"
        )
