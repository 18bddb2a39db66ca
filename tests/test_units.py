"""The conversion factors against printed values of CODATA; they have nine digits in common over its editions."""

import pytest

from mlsemi import units


@pytest.mark.parametrize(
    ("factor", "value"),
    [
        (units.BOHR_IN_ANGSTROM, 0.529177210544),  # CODATA 2022, Bohr radius
        (units.HARTREE_IN_EV, 27.211386245981),  # CODATA 2022, Hartree energy in eV
        (units.HARTREE_IN_KCAL_PER_MOL, 627.50947406),  # 4.3597447222060e-18 J x 6.02214076e23 / 4184 J
        (units.DIPOLE_AU_IN_DEBYE, 2.54174647),  # 8.4783536198e-30 C m x 299792458 x 1e21
    ],
)
def test_factor_equals_codata(factor: float, value: float) -> None:
    assert factor == pytest.approx(value, rel=5e-9)  # the editions of CODATA differ by less than 1e-9 here
