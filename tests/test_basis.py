"""Basis sets: reading, normalization, identity, and what is refused."""

import json
import sys
from math import exp, gamma, pi

import numpy as np
import pytest

from mlsemi.basis import Basis, Shell, basis_directory, basis_from_bse, load_basis

SHIPPED = ["sto-3g", "def2-svp", "def2-tzvp"]


def bse(shell: dict, *, number: int = 6, **entry: object) -> dict:
    """A basis of one element with one shell, in the Basis Set Exchange's schema."""
    full = {"function_type": "gto", "angular_momentum": [0], "exponents": ["1.5", "0.3"], "coefficients": [["1", "2"]]}
    return {"name": "Made Up", "elements": {str(number): {"electron_shells": [full | shell], **entry}}}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_bases_cover_hydrogen_to_argon(name: str) -> None:
    basis = load_basis(name)
    assert basis.name == name
    assert set(range(1, 19)) <= set(basis.elements)


@pytest.mark.parametrize(
    ("name", "numbers", "n_ao"),
    [
        # the sizes that the literature gives for the MD17 molecules in def2-SVP
        ("def2-svp", [8, 1, 1], 24),
        ("def2-svp", [6] * 2 + [8] + [1] * 6, 72),
        ("def2-svp", [6] * 4 + [7] * 2 + [8] * 2 + [1] * 4, 132),
        ("def2-svp", [6] * 9 + [8] * 4 + [1] * 8, 222),
        # 1s; 1s 2s 2p; 1s 2s 2p 3s 3p
        ("sto-3g", [1, 8, 17], 1 + 5 + 9),
        # Weigend and Ahlrichs 2005, table 1: H 3s1p, O 5s3p2d1f, Cl 5s5p2d1f
        ("def2-tzvp", [1, 8, 17], 6 + 31 + 37),
    ],
)
def test_number_of_functions(name: str, numbers: list[int], n_ao: int) -> None:
    basis = load_basis(name)
    assert sum(basis.n_ao(z) for z in numbers) == n_ao


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shell_has_norm_one_and_stands_in_order(name: str) -> None:
    for shells in load_basis(name).elements.values():
        assert [s.l for s in shells] == sorted(s.l for s in shells)
        for shell in shells:
            a, c = np.array(shell.exponents), shell.radial_coefficients()
            # int r^(2l+2) exp(-p r^2) dr = Gamma(l + 3/2) / (2 p^(l + 3/2))
            norm = c @ (gamma(shell.l + 1.5) / (2 * np.add.outer(a, a) ** (shell.l + 1.5))) @ c
            assert norm == pytest.approx(1.0, abs=1e-12)  # closed form: rounding only


def test_overlap_of_h2_in_sto3g() -> None:
    """S_12 = 0.6593 at 1.4 bohr: Szabo and Ostlund, Modern Quantum Chemistry, eq. 3.229."""
    (shell,) = load_basis("sto-3g").shells(1)
    c = shell.radial_coefficients() / (4 * pi) ** 0.5
    overlap = sum(
        x * y * (pi / (a + b)) ** 1.5 * exp(-a * b / (a + b) * 1.4**2)
        for a, x in zip(shell.exponents, c, strict=True)
        for b, y in zip(shell.exponents, c, strict=True)
    )
    assert overlap == pytest.approx(0.6593, abs=5e-5)  # four digits are printed


def test_combined_shells_are_split() -> None:
    basis = basis_from_bse(bse({"angular_momentum": [0, 1], "coefficients": [["1", "2"], ["3", "4"]]}))
    s, p = basis.shells(6)
    assert (s.l, p.l) == (0, 1)
    assert s.exponents == p.exponents == (1.5, 0.3)
    assert s.coefficients[1] / s.coefficients[0] == pytest.approx(2)
    assert p.coefficients[1] / p.coefficients[0] == pytest.approx(4 / 3)


def test_general_contractions_become_shells_without_their_zeros() -> None:
    basis = basis_from_bse(bse({"angular_momentum": [1], "coefficients": [["1", "2"], ["0", "1"]]}))
    assert [(s.l, s.exponents) for s in basis.shells(6)] == [(1, (1.5, 0.3)), (1, (0.3,))]
    assert basis.n_ao(6) == 6


def test_shells_are_sorted_by_l_and_stay_in_their_order() -> None:
    data = bse({})
    shells = data["elements"]["6"]["electron_shells"]
    kinds = [([2], "3"), ([0], "2"), ([1], "1"), ([0], "5")]
    data["elements"]["6"]["electron_shells"] = [
        shells[0] | {"angular_momentum": l, "exponents": [a], "coefficients": [["1"]], "function_type": "gto_spherical"}
        for l, a in kinds
    ]
    assert [(s.l, s.exponents[0]) for s in basis_from_bse(data).shells(6)] == [(0, 2.0), (0, 5.0), (1, 1.0), (2, 3.0)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bse({"function_type": "gto_cartesian", "angular_momentum": [2]}), r"'made up', C: Cartesian shells of l=2"),
        (bse({"function_type": "gto_spherical", "angular_momentum": [4]}), r"'made up', C: l=4 is beyond .* l=3"),
        (bse({}, ecp_potentials=[{"angular_momentum": [0]}]), r"'made up', C: effective core potentials"),
        ({"name": "empty"}, r"'empty': no 'elements'"),
    ],
)
def test_unsupported_functions_are_refused(data: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        basis_from_bse(data)


def test_cartesian_s_and_p_are_the_same_as_spherical() -> None:
    assert basis_from_bse(bse({"function_type": "gto_cartesian", "angular_momentum": [1]})).n_ao(6) == 3


def test_missing_element_names_what_is_covered() -> None:
    with pytest.raises(ValueError, match=r"'def2-svp' has no functions for Kr; it covers H, He, .*Ar"):
        load_basis("def2-svp").shells(36)


def test_hash_is_of_the_functions() -> None:
    svp, tzvp = load_basis("def2-svp"), load_basis("def2-tzvp")
    assert svp.content_hash() != tzvp.content_hash()
    assert svp.content_hash([1, 8]) == svp.content_hash([8, 1, 1]) != svp.content_hash([1, 7])
    renamed = Basis("another name", svp.elements)
    assert renamed == svp
    assert hash(renamed) == hash(svp)
    rounded = {
        z: tuple(Shell(s.l, tuple(a * (1 + 1e-15) for a in s.exponents), s.coefficients) for s in shells)
        for z, shells in svp.elements.items()
    }
    assert Basis("def2-svp", rounded).content_hash() == svp.content_hash()
    changed = {
        z: tuple(Shell(s.l, tuple(a * (1 + 1e-9) for a in s.exponents), s.coefficients) for s in shells)
        for z, shells in svp.elements.items()
    }
    assert Basis("def2-svp", changed) != svp


def test_hashes_of_the_shipped_bases_do_not_change() -> None:
    """Label files and checkpoints carry them: another value would make every one of these unreadable."""
    hashes = {name: load_basis(name).content_hash([1, 6, 7, 8]) for name in SHIPPED}
    assert hashes == {"sto-3g": "8223a7bdaaddcc2d", "def2-svp": "804e237c00ef281f", "def2-tzvp": "0495e2fb221febd8"}


def test_subset_has_the_same_functions() -> None:
    svp = load_basis("def2-svp")
    few = svp.subset([8, 1, 8])
    assert list(few.elements) == [1, 8]
    assert few.shells(8) == svp.shells(8)
    assert (few.l_max(), few.l_max([1]), svp.l_max()) == (2, 1, 2)


def test_plain_data_come_back(tmp_path) -> None:  # noqa: ANN001
    svp = load_basis("def2-svp")
    again = Basis.from_json(json.loads(json.dumps(svp.to_json())))
    assert again.elements == svp.elements
    assert again.name == svp.name
    path = tmp_path / "own.json"
    path.write_text((basis_directory() / "def2-svp.json").read_text())
    assert load_basis(str(path)) == svp


def test_names_are_free_of_case() -> None:
    assert load_basis(" Def2-SVP ").name == "def2-svp"


def test_other_bases_come_from_the_exchange() -> None:
    pytest.importorskip("basis_set_exchange")
    basis = load_basis("cc-pVDZ")
    assert (basis.n_ao(1), basis.n_ao(8)) == (5, 14)  # Dunning 1989: H 2s1p, O 3s2p1d


def test_heavy_elements_with_core_potentials_are_left_out() -> None:
    pytest.importorskip("basis_set_exchange")
    basis = load_basis("def2-SVPD")
    assert 36 in basis.elements
    assert 53 not in basis.elements


def test_unknown_bases_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no such basis file: nowhere.json"):
        load_basis("nowhere.json")
    pytest.importorskip("basis_set_exchange")
    with pytest.raises(ValueError, match=r"'def3-svp' is neither shipped \(.*def2-svp.*\) nor known"):
        load_basis("def3-svp")
    monkeypatch.setitem(sys.modules, "basis_set_exchange", None)
    with pytest.raises(ValueError, match=r"'cc-pvqz' is not among the shipped ones .* install basis_set_exchange"):
        load_basis("cc-pvqz")
