"""Enumerate ions and radicals of H, C, N, O with up to four heavy atoms: charge -1 to 1, up to 2 unpaired electrons.

    python benchmarks/ions_radicals/enumerate_species.py reference_data/organic/smiles.txt \
        -o reference_data/ions_radicals/smiles.txt

Systematic ones come from the neutral closed-shell molecules of the organic list with one to three heavy atoms: radicals
by taking a hydrogen atom off each distinct heavy atom, cations by protonating lone pairs of N and O, anions by taking a
proton off O, N and stabilised C. The named ones are what a chemist would miss, among them triplets, radical cations
and all with four heavy atoms.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from rdkit import Chem

from mlsemi.data.split import split_of
from mlsemi.files import written_whole

# The species that the work is measured by come first.
NAMED = """
[CH3] [NH2] O[O] C=[CH] [NH4+] [OH3+] O=C[O-] C[O-]
""".split()

RADICALS = """
[O]N=O [CH]=O [C]#N [C]#C [CH2]C=C [CH2]C#C [CH2]C#N C[C](C)C [CH2]C(C)=O C=C[CH]C C=C([CH2])C [CH]1CCC1 [CH2]CCC
C[CH]CC [CH2]C(C)C [CH2][N+](=O)[O-] C[CH]C=O O=[C]C=C COC[CH2] CC(=O)[CH2] CN([CH2])C C=C[C]=C C=C[CH]O
CO[C]=O OC[CH]O CC[C]=O CCO[CH2] C[CH]OC CCO[O] C[C](O)C [CH2]C(=O)O [CH2]C(N)=O C#C[CH]C C=CC=[CH]
CC[CH]N C[CH]NC [CH2]NC=O C1C[CH]O1 N#C[CH]O
""".split()

RADICAL_CATIONS = """
[NH3+] [OH2+] C=[O+] [CH2][CH2+] C[NH2+] N[NH2+] C[OH+] C=[NH+] CC=[O+] O[NH2+] C[NH+]C C[O+]C [N+]#N [C]#[O+]
C[N+](C)C CC[NH2+] CC[OH+] C=C[NH2+] C=C[OH+] NC=[O+] C[CH][CH2+] C[NH+]N
""".split()

CATIONS = """
[CH3+] C[CH2+] C[CH+]C C[C+](C)C C=C[CH2+] C#C[CH2+] [CH+]1C=C1 C#[O+] CC#[O+] N#[O+] O=[N+]=O CCC#[O+]
C=C[CH+]C C=C([CH2+])C CC#[NH+] C[O+]=C C[NH+](C)C CC(C)=[OH+] CC(N)=[OH+] CC(O)=[OH+] NC(N)=[NH2+]
NC(N)=[OH+] CC(N)=[NH2+] C=[N+](C)C CC(C)=[NH2+] C[NH+]=CC OC(O)=[OH+] C=CC=[OH+] C=CC#[NH+] COC=[OH+] CCC=[OH+]
CNC=[OH+] C[O+](C)C C[NH2+]CC CCC[NH3+] CC(C)[NH3+] CCO[CH2+] C1CC[NH2+]1 [NH3+]CCN C[NH+](C)O CCC#[NH+]
CC#[N+]C C=C[C+]=O
""".split()

ANIONS = """
[OH-] [C-]#N [C-]#C O=C[O-] CC(=O)[O-] O=N[O-] O=[N+]([O-])[O-] O=C([O-])O [N-]=[N+]=[N-] [N-]=C=O C=C[O-]
[CH2-]C#N C=[N+]([O-])[O-] CC=C[O-] C=C(C)[O-] CCC[O-] CC(C)[O-] CC[O-] CC(=O)[NH-] NC(=O)[NH-] NC(=O)[O-]
O=C[NH-] O=CC#[C-] C#CC#[C-] CC#C[CH2-] N#CC[O-] O[O-] CO[O-] C[CH-]C#N C[N-]C=O
C=NC=[N-] N#C[NH-] C#C[O-] CC#[C-] C[NH-] [NH2-] C=C[CH2-] OCC[O-]
COC[O-] O=CC[O-]
""".split()

TRIPLETS = """
[CH2] [O][O] [NH] C[CH] [CH]C#C [CH]C#N C[N] [N]C#N [CH2][CH2] [CH2][O] [CH]N [NH2+] [OH+] C[C]C C=C[CH] [NH][NH]
[CH2][NH] O=C[CH] [CH2]C(=C)[CH2] C[NH+] [CH]O [CH2]C[CH2] CC[CH] CC[N] [NH]O [CH2]N[CH2] C[CH]C=[CH] C[CH][CH2]
C[NH]
""".split()

# States whose density is not unique: for the detection, never for training.
DEGENERATE = ("[OH]", "[N]=O")

# Their bonds change when they are relaxed by GFN2-xTB, or in its dynamics at 600 K.
LEFT_OUT = ("CO[C]=O", "[N-]=N", "CC=[N-]")

# What the systematic rules give, with two states of a hole in two p orbitals that cross at or near the geometries in
# question (Jahn-Teller, Renner-Teller, amidyl), so that labels would jump from one to the other.
CROSSING = """
[N]=C=O [N]=[N+]=[N-] [O]C=O [NH]C=O C[N]C=O [C]#[N+][O-] [CH]=[NH+][O-] N=[N] [C]#CO [C]#CN
""".split()

_NOT_A_SPECIES = [
    Chem.MolFromSmarts(pattern)
    for pattern in (
        "[OX1;+0;!$(O=*)][CX4]",  # alkoxyl: two states within 0.1 eV
        "[OH2+][!$([CX4])]",  # water on a cation of little stability
        "[NH3+][CX2,CX3]",
        "[OH+]([#6])[#7,#8]",
        "[#7,#8;-][CX4][#7,#8]",  # anions of hemiaminals and the like fall apart
        "[#7,#8;r3;-,+]",
        "[#6;-]#C[#7,#8]",
        "[O;r3][O;r3]",  # radicals of dioxirane and the like open at once
        "[NX2;r3]=[NX2;r3]",
        "[#6;r3]=[r3]",  # cyclopropenes, azirines: their ions rearrange
        "[O,N]~[O,N]~[O,N]",
    )
]
_STABILISED = [
    Chem.MolFromSmarts(pattern)
    for pattern in ("[C;!$(C=*);!$(C#*)][C,N]=O", "[C;!$(C=*)]C#N", "[C;!$(C=*)][N+](=O)[O-]", "[CH]#*")
]


def canonical(smiles: str) -> str:
    """RDKit's canonical SMILES, without stereo marks (they do not change the species)."""
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        raise ValueError(f"smiles {smiles!r} is not a SMILES that RDKit reads")
    return Chem.MolToSmiles(molecule, isomericSmiles=False)


def charge_and_spin(smiles: str) -> tuple[int, int]:
    """Total charge and number of unpaired electrons, as `mlsemi sample` reads them."""
    molecule = Chem.MolFromSmiles(smiles)
    return Chem.GetFormalCharge(molecule), sum(a.GetNumRadicalElectrons() for a in molecule.GetAtoms())


def _changed(smiles: str, index: int, *, hydrogens: int, charge: int) -> str | None:
    """The SMILES with hydrogens added to one atom and its charge changed; None where that is no structure."""
    molecule = Chem.RWMol(Chem.MolFromSmiles(smiles))
    Chem.Kekulize(molecule, clearAromaticFlags=True)
    for each in molecule.GetAtoms():
        each.SetNumExplicitHs(each.GetTotalNumHs())
        each.SetNoImplicit(True)
    atom = molecule.GetAtomWithIdx(index)
    atom.SetNumExplicitHs(atom.GetNumExplicitHs() + hydrogens)
    atom.SetFormalCharge(atom.GetFormalCharge() + charge)
    try:
        Chem.SanitizeMol(molecule)
    except Chem.MolSanitizeException:
        return None
    return canonical(Chem.MolToSmiles(molecule))


def derived(smiles: str) -> Iterator[str]:
    """Radicals, cations and anions one hydrogen away from a neutral closed-shell molecule."""
    molecule = Chem.MolFromSmiles(smiles)
    ranks = list(Chem.CanonicalRankAtoms(molecule, breakTies=False))
    stabilised = {match[0] for pattern in _STABILISED for match in molecule.GetSubstructMatches(pattern)}
    for atom in molecule.GetAtoms():
        i = atom.GetIdx()
        if ranks.index(ranks[i]) != i or atom.GetAtomicNum() == 1:
            continue
        if atom.GetTotalNumHs():
            yield _changed(smiles, i, hydrogens=-1, charge=0) or ""
            if atom.GetSymbol() in "NO" or i in stabilised:
                yield _changed(smiles, i, hydrogens=-1, charge=-1) or ""
        if atom.GetSymbol() in "NO" and atom.GetFormalCharge() == 0 and not atom.GetIsAromatic():
            yield _changed(smiles, i, hydrogens=1, charge=1) or ""


def _is_excluded(molecule: Chem.Mol) -> bool:
    return any(molecule.HasSubstructMatch(pattern) for pattern in _NOT_A_SPECIES)


def is_wanted(smiles: str) -> bool:
    """Whether a derived species has one state at its geometry and is likely to keep its bonds."""
    if not smiles:
        return False
    molecule = Chem.MolFromSmiles(smiles)
    charge, spin = charge_and_spin(smiles)
    charged = sum(a.GetFormalCharge() != 0 for a in molecule.GetAtoms())
    return spin <= 2 and (charge, spin) != (0, 0) and charged < 3 and not _is_excluded(molecule)


def skeleton(smiles: str) -> tuple[str, int, int]:
    """What all resonance structures of a species share: atoms, who is bonded to whom, hydrogens; charge, spin."""
    molecule = Chem.RWMol(Chem.AddHs(Chem.MolFromSmiles(smiles)))
    for bond in molecule.GetBonds():
        bond.SetIsAromatic(False)
        bond.SetBondType(Chem.BondType.SINGLE)
    for atom in molecule.GetAtoms():
        atom.SetIsAromatic(False)
        atom.SetFormalCharge(0)
        atom.SetNumRadicalElectrons(0)
        atom.SetNoImplicit(True)
    return Chem.MolToSmiles(molecule), *charge_and_spin(smiles)


def _preference(smiles: str) -> tuple[int, int, str]:
    """Few formal charges; the negative one on O rather than C, the unpaired electron on C rather than O."""
    atoms = list(Chem.MolFromSmiles(smiles).GetAtoms())
    place = sum(a.GetAtomicNum() * (a.GetNumRadicalElectrons() + a.GetFormalCharge()) for a in atoms)
    return sum(a.GetFormalCharge() != 0 for a in atoms), place, smiles


def species(parents: Iterable[str]) -> list[str]:
    """Canonical SMILES of the whole set, one resonance structure each, by number of heavy atoms, then by name."""
    small = [s for s in parents if Chem.MolFromSmiles(s).GetNumHeavyAtoms() <= 3]
    crossing = set(map(skeleton, CROSSING))
    found = {s for parent in small for s in derived(parent) if is_wanted(s) and skeleton(s) not in crossing}
    lists = (NAMED, RADICALS, RADICAL_CATIONS, CATIONS, ANIONS, TRIPLETS, DEGENERATE)
    named = {skeleton(s): s for group in reversed(lists) for s in map(canonical, group)}
    one = {skeleton(s): s for s in sorted(found, key=_preference, reverse=True)} | named
    chosen = set(one.values()) - set(LEFT_OUT)
    return sorted(chosen, key=lambda s: (Chem.MolFromSmiles(s).GetNumHeavyAtoms(), s))


def main() -> None:
    """Write the list to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parents", type=Path, help="neutral closed-shell molecules, one canonical SMILES a line")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write, one canonical SMILES a line")
    parser.add_argument("--test", action="store_true", help="print the species on the test side of the split")
    arguments = parser.parse_args()
    found = species(arguments.parents.read_text().split())
    with written_whole(arguments.output) as beside:
        beside.write_text("\n".join(found) + "\n")
    print(f"{len(found)} species; by charge and spin: {dict(sorted(Counter(map(charge_and_spin, found)).items()))}")
    if arguments.test:
        print(*(s for s in found if split_of(s) == "test"))


if __name__ == "__main__":
    main()
