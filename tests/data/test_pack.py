"""Packed label files of open shells and ions: one residual for each spin."""

import numpy as np
import pytest

from mlsemi.basis import load_basis
from mlsemi.data.pack import baseline_fock, pack_residuals
from mlsemi.data.store import LabelStore, Record, write_store
from mlsemi.engine import Engine
from mlsemi.molecule import Molecule
from mlsemi.nn.network import NetworkConfig
from mlsemi.observables import Observables
from mlsemi.reference.farm import run_attributes

SMALL = NetworkConfig(natural=4, unnatural=2, bond=(4, 2, 2), layers=1, product=2, radial=8, n_radial=8)
OH = [[0.0, 0.0, 0.0], [0.3, 0.2, 1.8]]


def test_both_spins_of_open_shells_and_charged_molecules_come_back(tmp_path, rng):
    basis = load_basis("sto-3g")
    molecules = [
        Molecule([8, 1], OH, spin=1, name="[OH]"),
        Molecule([8, 1], OH, charge=-1, name="[OH-]"),
        Molecule([8, 1], OH, charge=1, spin=2, name="[OH+]"),
    ]
    focks = []
    for molecule in molecules:
        random = rng.standard_normal((2 if molecule.spin else 1, 6, 6))
        focks.append(random + random.swapaxes(-1, -2))
    records = [
        Record(m, Observables(energy=-75.0, fock=f, mo_energy=np.zeros((len(f), 6))), degenerate=m.spin == 1)
        for m, f in zip(molecules, focks, strict=True)
    ]
    records.append(Record(molecules[0], failure="no SCF"))
    settings = run_attributes(method="hf", basis=basis, gradient=False, residual_tolerance=1e-5)
    write_store(tmp_path / "labels.h5", records, settings)
    engine, quantum = Engine(basis, (1, 8), SMALL), 1e-6
    with LabelStore.open(tmp_path / "labels.h5") as store:
        deviation = pack_residuals(store, tmp_path / "packed.h5", engine, quantum=quantum)
    assert deviation <= 0.5 * quantum + 1e-10  # rounding to the next multiple
    baseline = baseline_fock(engine, molecules[:1])[0].numpy()  # of neutral atoms: the same for all three
    with LabelStore.open(tmp_path / "packed.h5") as packed:
        assert packed.n_failures == 1
        for i, (molecule, fock) in enumerate(zip(molecules, focks, strict=True)):
            record = packed.any_record(i)
            assert (record.molecule.charge, record.molecule.spin) == (molecule.charge, molecule.spin)
            assert record.degenerate == (molecule.spin == 1)
            restored = record.observables.fock + baseline
            np.testing.assert_allclose(restored, fock, rtol=0, atol=0.5 * quantum + 1e-10)
            assert restored.shape == (2 if molecule.spin else 1, 6, 6)
            assert record.observables.mo_energy.shape == restored.shape[:2]
    with pytest.raises(ValueError, match="packed|residual"), LabelStore.open(tmp_path / "packed.h5") as packed:
        pack_residuals(packed, tmp_path / "again.h5", engine, quantum=quantum)
