"""ASE: the only package besides `mlsemi.reference.sampling` that imports it.

`geometries` reads files, `calculator` is for `atoms.calc`, `optimize` and `dynamics` are what stands behind
`mlsemi optimize` and `mlsemi md`.
"""

from mlsemi.interop.ase.geometries import read_molecules

__all__ = ["read_molecules"]
