import numpy as np
import pytest

from mlsemi.interop.ase import read_molecules

OH = "2\n{comment}\nO 0.0 0.0 0.0\nH 0.0 0.0 0.97\n"


def write(tmp_path, text, name="m.xyz"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_frames_have_their_own_charge_spin_and_name(tmp_path):
    text = (
        OH.format(comment='charge=-1 smiles="[OH-]"')
        + OH.format(comment="spin=1 key=radical")
        + OH.format(comment="spin=1")
    )
    a, b, c = read_molecules(write(tmp_path, text))
    assert [(m.charge, m.spin, m.name) for m in (a, b, c)] == [(-1, 0, "[OH-]"), (0, 1, "radical"), (0, 1, "m.xyz#2")]
    np.testing.assert_allclose(a.positions_angstrom, [[0, 0, 0], [0, 0, 0.97]], atol=1e-14)  # float64
    assert read_molecules(write(tmp_path, text), charge=1, spin=0)[1].charge == 1


def test_atomic_numbers_for_symbols(tmp_path):
    plain = "2\n8 0 0\n8 0.0 0.0 0.0\nH 1 0 0\n"
    other = '2\nProperties=pos:R:3:species:S:1 charge=-1 comment="8 1"\n0 0 0 O\n1 0 0 H\n'
    first, second, third = read_molecules(write(tmp_path, plain + other + "\n" + plain), spin=0, charge=-1)
    for molecule in (first, second, third):
        assert molecule.numbers.tolist() == [8, 1]
        np.testing.assert_allclose(molecule.positions_angstrom, [[0, 0, 0], [1, 0, 0]], atol=1e-14)  # float64


def test_multiplicity_counts_as_spin(tmp_path):
    comments = ("multiplicity=2", "Multiplicity=2 Charge=2", "spin=1 multiplicity=2")
    found = read_molecules(write(tmp_path, "".join(OH.format(comment=c) for c in comments)))
    assert [(m.charge, m.spin) for m in found] == [(0, 1), (2, 1), (0, 1)]
    assert read_molecules(tmp_path / "m.xyz", spin=3)[0].spin == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("3\nwater\nO 0 0 0\nH 0 0 1\n", "line 1: frame 0 is truncated: 3 atoms announced, 2 found"),
        (OH.format(comment="spin=1") + "2\n\nO 0 0\n", "line 5: frame 1 is truncated"),
        ("atoms\n", "expected the number of atoms"),
        ("0\n\n", "0 atoms"),
        ("1\n\nQq 0 0 0\n", "unknown element.*Qq"),
        ("1\n\nHe 0 zero 0\n", "cannot be read"),
        (OH.format(comment=""), "9 electrons .*spin must be odd"),
        (OH.format(comment="spin=a"), "spin='a' must be an integer"),
        (OH.format(comment="spin=2 multiplicity=2"), "spin=2 and multiplicity=2 do not go together: spin is 2S"),
        ("2\n\n999 0 0 0\n1 0 0 1\n", "unknown element 'Z999'; a symbol such as O is expected, or an atomic number"),
        ("2\n\nH 0 0 0\nH 0 0 0.01\n", "only 0.019 bohr apart"),
        (OH.format(comment='Lattice="9 0 0 0 9 0 0 0 9" spin=1'), "m.xyz#0 is periodic"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_molecules(write(tmp_path, text))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1", "utf-16"])
def test_encodings(tmp_path, encoding):
    """A byte order mark and comments in other encodings do no harm; what is no text at all is refused."""
    path = tmp_path / "m.xyz"
    path.write_text(OH.format(comment="spin=1 Gr\u00f6\u00dfe"), encoding=encoding)
    if encoding == "utf-16":
        with pytest.raises(ValueError, match="line 1: expected the number of atoms"):
            read_molecules(path)
        return
    (molecule,) = read_molecules(path)
    assert (molecule.formula, molecule.spin) == ("HO", 1)


def test_missing_file_and_unknown_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such geometry file"):
        read_molecules(tmp_path / "none.xyz")
    with pytest.raises(ValueError, match="cannot be read"):
        read_molecules(write(tmp_path, "what is this", "m.unknown"))


def test_npz(tmp_path):
    path = tmp_path / "w.npz"
    coords = np.array([[[0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]]] * 2)
    np.savez(path, coords=coords, nuclear_charges=np.array([8, 1, 1], dtype=np.uint8))
    molecules = read_molecules(path, charge=1, spin=1)
    assert [(m.formula, m.charge, m.spin, m.name) for m in molecules] == [("H2O", 1, 1, f"w.npz#{i}") for i in range(2)]
    np.testing.assert_allclose(molecules[0].positions_angstrom, coords[0], atol=1e-14)  # float64
    np.savez(path, coords=coords[:, :2], nuclear_charges=np.array([8, 1, 1]))
    with pytest.raises(ValueError, match=r"coords must have shape \(frame, 3, 3\)"):
        read_molecules(path)
    np.savez(path, R=coords)
    with pytest.raises(ValueError, match="has no coords, nuclear_charges; it has R"):
        read_molecules(path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="cannot be read"):
        read_molecules(path)
