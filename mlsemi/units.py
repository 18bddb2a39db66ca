"""The only conversion factors of mlsemi (CODATA 2022, through scipy). Atomic units everywhere inside."""

from scipy.constants import physical_constants as _codata

BOHR_IN_ANGSTROM = _codata["Bohr radius"][0] * 1e10
HARTREE_IN_EV = _codata["Hartree energy in eV"][0]
HARTREE_IN_KCAL_PER_MOL = _codata["Hartree energy"][0] * _codata["Avogadro constant"][0] / 4184.0
DIPOLE_AU_IN_DEBYE = _codata["atomic unit of electric dipole mom."][0] * _codata["speed of light in vacuum"][0] * 1e21
