"""Enumerate the molecules of the shipped organic model: neutral, closed-shell, H C N O, up to five heavy atoms.

    python benchmarks/organic/enumerate_molecules.py -o reference_data/organic/smiles.txt

Every connected graph of C, N, O with bonds of order 1 to 3 and full valences is grown atom by atom, then filtered by
what is chemically sensible. All with up to four heavy atoms are kept; of those with five, a fixed list of well-known
ones, filled up in the order of a hash, in turn over classes of composition, rings and unsaturation. What such graphs
cannot express is added by name.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from rdkit import Chem

from mlsemi.files import written_whole

VALENCE = {"C": 4, "N": 3, "O": 2}
N_FIVE = 800
"""Number of molecules with five heavy atoms, besides the special ones."""

# Not reached by growing graphs of neutral octet atoms, or let through the filter by name.
SPECIAL = """
[H][H] [C-]#[O+] [C-]#[NH+] [N-]=[N+]=O N=[N+]=[N-] C=[N+]=[N-] C#[N+][O-] ON=O NN=O N=NN C[N+]#[C-] C=[NH+][O-]
O[N+](=O)[O-] N[N+](=O)[O-] C[N+](=O)[O-] CN=[N+]=[N-] CC=[N+]=[N-] CC#[N+][O-] CC[N+]#[C-] C=C[N+]#[C-] CON=O CN(C)N=O
CC[N+](=O)[O-] C=C[N+](=O)[O-] CO[N+](=O)[O-] CN[N+](=O)[O-] CCN=[N+]=[N-] C=CN=[N+]=[N-] C[N+](C)(C)[O-]
CCC=[N+]=[N-] C[N+]([O-])=C CNN=O CCON=O c1c[nH]nn1 c1nnn[nH]1 c1cnon1 O=CN=[N+]=[N-] N#CN=[N+]=[N-]
""".split()

# Third round: kin of what the first two hold too few of, nitrogen beside nitrogen above all.
NITROGEN_RICH = """
C#CN=[N+]=[N-] [N-]=[N+]=NN [N-]=[N+]=NO C=NN=[N+]=[N-] [N-]=[N+]=NCO [N-]=[N+]=NCN [N-]=[N+]=NC=N CNN=[N+]=[N-]
CON=[N+]=[N-] [N-]=[N+]=CC=O N#CC=[N+]=[N-] C#CC=[N+]=[N-] CC(C)=[N+]=[N-] C=CC=[N+]=[N-] [N-]=[N+]=CN [N-]=[N+]=CO
[N-]=[N+]=C1CC1 C=C=[N+]=[N-] CNC=[N+]=[N-] COC=[N+]=[N-] CC(N)=[N+]=[N-] [N-]=[N+]=CCO [N-]=[N+]=CCN [N-]=[N+]=C1CO1
[N-]=[N+]=CN=O CN=NN CNN=N NN=NN CN=NO N=NO N=NNN CN=NNC C=NN=N CN=NNO NC#[N+][O-] [O-][N+]#CO C#CC#[N+][O-]
N#CC#[N+][O-] C=CC#[N+][O-] CCC#[N+][O-] COC#[N+][O-] CNC#[N+][O-] O=CC#[N+][O-] C#[N+][NH-] CC#[N+][NH-] C#[N+][N-]C
[NH-][N+]#CN C=CC#[N+][NH-] CC#[N+][N-]C CCC#[N+][NH-] C[N+](=N)[O-] N=[NH+][O-] CN=[N+](C)[O-] CN=[NH+][O-]
N=[N+]([O-])O N=[N+](N)[O-] [C-]#[N+]N [C-]#[N+]C#N [C-]#[N+]C#C [C-]#[N+]C(C)C [C-]#[N+]C1CC1 [C-]#[N+]CO [C-]#[N+]CN
[C-]#[N+]C=O [C-]#[N+]NC [C-]#[N+]O [C-]#[N+]OC [C-]#[N+]C=CC [C-]#[N+]CC=C CC=NN=O C=NN=O NC(=O)N=O CN=C=NC N=C=NN
N=C=NO NN=C=O O=C=NO CON=C=O CNN=C=O N1=NN1 CN1N=N1 C1=NN=N1 n1nn[nH]n1 C1N=NN1 C1=NN=NC1 n1n[nH][nH]1 C1CNN=N1
""".split()

# Five heavy atoms that a chemist would miss.
FIVE = """
CCCCC CCC(C)C CC(C)(C)C C1CCCC1 C1CCC=C1 C1=CCC=C1 C1CC12CC2 C1CC2CC12 C=CCCC C/C=C/CC
CC(C)=CC C=CC=CC CC(=C)C=C CCCC#C CCC#CC C=CCC#C C1CC1C=C C1CC1C#C
CCCCO CC(C)(C)O CCC(C)O CCOCC CCCC=O CCC(C)=O C1CCOC1 C1CCC1O C1CCC1=O CC=CC=O CC(=O)C=C
c1ccoc1 C1=COCC1 CC#CC=O C=CC=C=O OCC#CC
CCC(=O)O CC(=O)OC O=COCC OCCCO COCOC OCCOC C1COCO1 CC(=O)CO C=CC(=O)O C#CC(=O)O O=CCC=O CC(=O)C=O O=C1CCO1
OC(=O)C=O O=COC=O OCC(=O)O COC(=O)O
CCN(C)C CC(C)(C)N CCNCC C1CCNC1 c1cc[nH]c1 CCCC#N CC=CC#N C=C(C)C#N CN(C)C=C
CC(C)=NC C1CC=NC1 C=CC=NC
NCCCN CN(C)CN CNCNC CN(C)C#N c1c[nH]cn1 c1cn[nH]c1 N#CCC#N CN=CNC C1CNCN1 N#CC=CN CNN(C)C
c1cnc[nH]1 c1nc[nH]n1 c1cnoc1 c1cocn1 c1nnco1 c1ncon1
CC(=O)NC CCC(N)=O CN(C)C=O NCCCO OCCNC CC=NOC C1CNCO1 O=C1CCN1 CC(=O)C#N CCN=C=O COCC#N C=CC(N)=O
NC(=O)OC NCC(=O)O NC(=O)C=O CC(=O)NO COC(N)=O CNC(=O)O CNC(N)=O CNC(N)=N NC(=O)NN NCC(N)=O
NOCCO N#CC(N)=O
""".split()

# Chosen, but they did not keep their bonds in the dynamics with GFN2-xTB for the labels.
LEFT_OUT = ("C1CC2CC12", "O=C1N=CO1")


def canonical(smiles: str) -> str:
    """RDKit's canonical SMILES, without stereo marks (they do not change the set of graphs)."""
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        raise ValueError(f"smiles {smiles!r} is not a SMILES that RDKit reads")
    return Chem.MolToSmiles(molecule, isomericSmiles=False)


def hash_order(smiles: Iterable[str]) -> list[str]:
    """The strings in an order that looks random and never changes."""
    return sorted(smiles, key=lambda s: hashlib.sha256(f"order:{s}".encode()).hexdigest())


def _kekule(smiles: str) -> Chem.RWMol:
    molecule = Chem.RWMol(Chem.MolFromSmiles(smiles))
    Chem.Kekulize(molecule, clearAromaticFlags=True)
    for atom in molecule.GetAtoms():
        atom.SetNumExplicitHs(0)
        atom.SetNoImplicit(False)
    molecule.UpdatePropertyCache()
    return molecule


def _finish(molecule: Chem.RWMol) -> str | None:
    try:
        Chem.SanitizeMol(molecule)
    except Chem.MolSanitizeException:
        return None
    return Chem.MolToSmiles(molecule)


def _with_one_more_atom(smiles: str) -> set[str]:
    grown = set()
    for index, symbol in itertools.product(range(_kekule(smiles).GetNumAtoms()), VALENCE):
        molecule = _kekule(smiles)
        if molecule.GetAtomWithIdx(index).GetTotalNumHs():
            molecule.AddBond(index, molecule.AddAtom(Chem.Atom(symbol)), Chem.BondType.SINGLE)
            grown.add(_finish(molecule))
    return {s for s in grown if s and not _hetero_chain(Chem.MolFromSmiles(s))}


_NEXT_ORDER = {Chem.BondType.SINGLE: Chem.BondType.DOUBLE, Chem.BondType.DOUBLE: Chem.BondType.TRIPLE}


def _with_one_more_bond(smiles: str) -> set[str]:
    grown = set()
    base = _kekule(smiles)
    free = [a.GetIdx() for a in base.GetAtoms() if a.GetTotalNumHs()]
    for i, j in itertools.combinations(free, 2):
        molecule = Chem.RWMol(base)
        bond = molecule.GetBondBetweenAtoms(i, j)
        if bond is None:
            molecule.AddBond(i, j, Chem.BondType.SINGLE)
        elif bond.GetBondType() in _NEXT_ORDER:
            bond.SetBondType(_NEXT_ORDER[bond.GetBondType()])
        else:
            continue
        grown.add(_finish(molecule))
    return {s for s in grown if s and not _hetero_chain(Chem.MolFromSmiles(s))}


def graphs(n_heavy: int) -> list[set[str]]:
    """All connected graphs with full valences, without chains of three heteroatoms; item n has n + 1 heavy atoms."""
    levels: list[set[str]] = [set(VALENCE)]
    while len(levels) < n_heavy:
        seen: set[str] = set()
        front = set().union(*(_with_one_more_atom(s) for s in levels[-1]))
        while front:
            seen |= front
            front = set().union(*(_with_one_more_bond(s) for s in front)) - seen
        levels.append(seen)
    return levels


_CHAIN = Chem.MolFromSmarts("[!#6;!#1]~[!#6;!#1]~[!#6;!#1]")
_EXCLUDED = [
    Chem.MolFromSmarts(pattern)
    for pattern in (
        "[OX1]=[OX1]",  # a triplet
        "[r]#[r]",  # an alkyne in a small ring
        "[r;$(*(=[r])=*)]",  # an allene in a small ring
        "[r3;O,N]1[r3]=[r3]1",  # oxirene, 1H-azirine: antiaromatic
        "[r3]1=[r3][r3]1=*",  # cyclopropenone, triafulvene: strained and cross-conjugated
        "[r3]1(=*)[r3](=*)[r3]1",  # two exocyclic double bonds on a three-ring
        "[r4]1=[r4][r4]=[r4]1",  # cyclobutadiene: antiaromatic
        "[r3;!#6]1[r3;!#6][r3]1=*",  # dioxiranone, diaziridinone: fall apart into CO2 and CO
        "[CX4]([O,N])([O,N])[O,N]",  # orthoacids and their nitrogen cousins
        "[r3]:[r3]",  # imines and ketones of cyclopropene, aromatic by RDKit's count
        "[r4]:[r4]",  # 1,2-diazete and the like
        "O=C=C=O",  # two CO
        "*#C[N,O][N,O]",  # ynyl or cyano hydrazines, hydroxylamines, peroxides
        "*=C=N[N,O]",  # amino and hydroxy ketenimines and isocyanates
        "[OX2r4][OX2r4]",  # 1,2-dioxetanes: multi-reference on the way to two carbonyls
    )
]


def _hetero_chain(molecule: Chem.Mol) -> bool:
    return molecule.HasSubstructMatch(_CHAIN)


def is_sensible(smiles: str) -> bool:
    """Whether a grown graph is a molecule that a chemist would call one: no strain beyond small rings, no clusters."""
    molecule = Chem.MolFromSmiles(smiles)
    if any(molecule.HasSubstructMatch(pattern) for pattern in _EXCLUDED):
        return False
    rings = [set(ring) for ring in molecule.GetRingInfo().AtomRings()]
    if len(rings) > 2:
        return False
    if len(rings) == 2 and rings[0] & rings[1]:
        inside = [b for b in molecule.GetBonds() if b.IsInRing() and b.GetBondType() != Chem.BondType.SINGLE]
        shared = rings[0] & rings[1]
        bridgeheads = [molecule.GetAtomWithIdx(i) for i in shared]
        hetero = any(atom.GetSymbol() != "C" for atom in bridgeheads)
        double = any(b.GetBondType() == Chem.BondType.DOUBLE for atom in bridgeheads for b in atom.GetBonds())
        return not (inside or hetero or double)
    return True


def _class_of(smiles: str) -> tuple[int, ...]:
    molecule = Chem.MolFromSmiles(smiles)
    count = Counter(a.GetSymbol() for a in molecule.GetAtoms())
    hydrogens = sum(a.GetTotalNumHs() for a in molecule.GetAtoms())
    return count["N"], count["O"], molecule.GetRingInfo().NumRings(), min(hydrogens // 2, 4)


def five_heavy(candidates: set[str], n: int) -> list[str]:
    """The named ones, then one of each class in turn, in the order of the hash, until there are n."""
    chosen = list(dict.fromkeys(s for s in map(canonical, FIVE) if Chem.MolFromSmiles(s).GetNumHeavyAtoms() == 5))
    classes: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for smiles in hash_order(candidates - set(chosen)):
        if sum(_class_of(smiles)[:2]) <= 3:
            classes[_class_of(smiles)].append(smiles)
    for turn in itertools.zip_longest(*(classes[k] for k in sorted(classes))):
        chosen.extend(s for s in hash_order(s for s in turn if s) if len(chosen) < n)
    return chosen[:n]


def molecules() -> list[str]:
    """Canonical SMILES of the whole set, by number of heavy atoms, then by name."""
    levels = [{s for s in level if is_sensible(s)} for level in graphs(5)]
    found = set().union(*levels[:4]) | set(five_heavy(levels[4], N_FIVE)) | set(map(canonical, SPECIAL + NITROGEN_RICH))
    return sorted(found - set(LEFT_OUT), key=lambda s: (Chem.MolFromSmiles(s).GetNumHeavyAtoms(), s))


def main() -> None:
    """Write the list to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write, one canonical SMILES a line")
    output = parser.parse_args().output
    smiles = molecules()
    with written_whole(output) as beside:
        beside.write_text("\n".join(smiles) + "\n")
    counts = Counter(Chem.MolFromSmiles(s).GetNumHeavyAtoms() for s in smiles)
    print(f"{len(smiles)} molecules; by heavy atoms: {dict(sorted(counts.items()))}")


if __name__ == "__main__":
    main()
