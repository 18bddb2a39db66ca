"""Molecules larger than those of the training, one geometry each, for `extrapolation.py`.

RDKit makes the geometries of chains (ETKDG, MMFF), water is packed at random; GFN2-xTB relaxes them.
"""

from __future__ import annotations

import numpy as np

from mlsemi.molecule import Molecule
from mlsemi.reference.sampling import bonds_of, changed_bonds, geometry_from_smiles, relaxed, seed_of

WATER_VOLUME = 29.9
"""Of a molecule in the liquid at 298 K [angstrom^3]."""
_APART = {(8, 8): 2.5, (1, 8): 1.7, (1, 1): 1.7}
"""Least distances of atoms of different molecules in the packing [angstrom]."""
_WATER = np.array([[0.0, 0.0, 0.0], [0.757, 0.586, 0.0], [-0.757, 0.586, 0.0]])


def alkane(size: int) -> Molecule:
    """The n-alkane, all anti."""
    return extended("C" * size)


def polyene(size: int) -> Molecule:
    """The polyene with an even number of carbon atoms, all double bonds E, all single bonds s-trans."""
    return extended("C=C" + "/C=C" * (size // 2 - 1))


def peptide(size: int) -> Molecule:
    """Glycine, or Gly-Ala(n) of L-alanine; five heavy atoms a unit."""
    return geometry_from_smiles("NCC(=O)" + "N[C@@H](C)C(=O)" * (size // 5 - 1) + "O")


def extended(smiles: str) -> Molecule:
    """A chain of carbon atoms with all its dihedral angles at 180 degrees, relaxed by GFN2-xTB.

    Args:
        smiles: of the chain, its atoms in their order.

    Raises:
        RuntimeError: if RDKit finds no geometry, or the relaxation changes bonds.
    """
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers, rdMolTransforms

    chain = Chem.MolFromSmiles(smiles)
    n_carbon = chain.GetNumAtoms()
    chain = Chem.AddHs(chain)
    options = rdDistGeom.ETKDGv3()
    options.randomSeed = seed_of(0, smiles)
    options.useRandomCoords = n_carbon > 20
    if rdDistGeom.EmbedMolecule(chain, options) != 0:
        raise RuntimeError(f"RDKit finds no three-dimensional geometry of {smiles}")
    conformer = chain.GetConformer()
    for i in range(n_carbon - 3):
        rdMolTransforms.SetDihedralDeg(conformer, i, i + 1, i + 2, i + 3, 180.0)
    rdForceFieldHelpers.MMFFOptimizeMolecule(chain, maxIters=2000)
    numbers = np.array([atom.GetAtomicNum() for atom in chain.GetAtoms()])
    start = Molecule.from_angstrom(
        numbers, chain.GetConformer().GetPositions(), name=Chem.MolToSmiles(Chem.RemoveHs(chain))
    )
    return checked(relaxed(start), bonds_of(start))


def water(size: int) -> Molecule:
    """A cluster of water molecules: packed at random into a sphere at liquid density, relaxed by GFN2-xTB."""
    rng = np.random.default_rng(seed_of(0, "water", size))
    radius = (3 * size * WATER_VOLUME / (4 * np.pi)) ** (1 / 3)
    placed: list[np.ndarray] = []
    tries = 0
    while len(placed) < size:
        tries += 1
        if tries > 100000:  # the last ones do not fit in: another beginning
            placed, tries = [], 0
        centre = rng.uniform(-radius, radius, size=3)
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        candidate = _WATER @ turn.T + centre
        if np.linalg.norm(centre) <= radius and all(_fits(candidate, other) for other in placed):
            placed.append(candidate)
    numbers = np.array([8, 1, 1] * size)
    start = Molecule.from_angstrom(numbers, np.concatenate(placed), name=f"water {size}")
    bonds = frozenset((3 * k, 3 * k + h) for k in range(size) for h in (1, 2))
    return checked(relaxed(start, steps=500), bonds)


def _fits(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two water molecules are not too near each other [angstrom]."""
    least = np.array([[_APART[min(a, b), max(a, b)] for b in (8, 1, 1)] for a in (8, 1, 1)])
    return bool((np.linalg.norm(one[:, None] - other, axis=-1) > least).all())


def checked(molecule: Molecule, bonds: frozenset[tuple[int, int]]) -> Molecule:
    """The molecule, if it has kept its bonds.

    Raises:
        RuntimeError: if not.
    """
    changed = changed_bonds(molecule, bonds)
    if changed:
        raise RuntimeError(f"{molecule.name} does not keep its bonds when relaxed by GFN2-xTB: {changed}")
    return molecule


FAMILIES = {"alkane": alkane, "polyene": polyene, "peptide": peptide, "water": water}


def heavy_atoms(family: str, size: int) -> int:
    """Number of heavy atoms of a member: polyenes have an even one."""
    return size - size % 2 if family == "polyene" else size
