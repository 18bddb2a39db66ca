import json

import h5py
import numpy as np
import pytest

from mlsemi.basis import load_basis
from mlsemi.data.journal import Journal
from mlsemi.data.store import NO_FOCK, LabelStore, Record, molecule_key, pack, unpack, write_store
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables

BASIS = load_basis("sto-3g")
ATTRS = {
    "method": "pbe",
    "resolved_functional": "x",
    "basis_name": "sto-3g",
    "basis_json": json.dumps(BASIS.to_json()),
    "gradient": True,
}


def records(n=5, *, gradient=True):
    rng = np.random.default_rng(1)
    out = []
    for i in range(n):
        n_atoms, n_spins = 1 + i % 3, 1 + i % 2
        numbers = np.array([2, 2, 8][:n_atoms])
        positions = rng.normal(size=(n_atoms, 3)) + 5 * np.arange(n_atoms)[:, None]
        molecule = Molecule(numbers, positions, spin=2 if n_spins == 2 else 0, name=f"m{i}")
        if i == 3:
            out.append(Record(molecule, failure="no luck", index=i))
            continue
        n_ao = 4 + i
        fock = rng.normal(size=(n_spins, n_ao, n_ao))
        observables = Observables(
            energy=float(-i - 1),
            fock=fock + fock.transpose(0, 2, 1),
            mo_energy=rng.normal(size=(n_spins, n_ao - 1)),
            dipole=rng.normal(size=3),
            gradient=rng.normal(size=(n_atoms, 3)) if gradient else None,
            residual=1e-8,
            seconds=0.5,
        )
        out.append(Record(molecule, observables, scheme="two-grid/3", degenerate=i == 2, index=i))
    return out


def assert_same(a, b, fock_atol=0.0):
    assert a.key == b.key
    assert (a.scheme, a.degenerate, a.failure, a.index, a.molecule.name, a.molecule.spin) == (
        b.scheme, b.degenerate, b.failure, b.index, b.molecule.name, b.molecule.spin,
    )  # fmt: skip
    np.testing.assert_array_equal(a.molecule.positions, b.molecule.positions)
    for field in ("energy", "fock", "mo_energy", "dipole", "gradient", "residual", "seconds"):
        x, y = getattr(a.observables, field), getattr(b.observables, field)
        assert (x is None) == (y is None), field
        if x is not None:
            np.testing.assert_allclose(x, y, rtol=0, atol=fock_atol if field == "fock" else 0)


def test_pack_is_inverted():
    fock = records()[1].observables.fock
    np.testing.assert_array_equal(unpack(pack(fock), *fock.shape[:2]), fock)


@pytest.mark.parametrize("gradient", [True, False])
def test_what_is_written_is_read(tmp_path, gradient):
    written = records(300, gradient=gradient)  # more than one piece is flushed
    path = tmp_path / "l.h5"
    assert write_store(path, written, {**ATTRS, "gradient": gradient}) == 300
    with LabelStore.open(path) as store:
        assert len(store) == 299
        assert store.method == "pbe"
        assert store.basis == BASIS
        assert store.fock_encoding == "full"
        assert [(m.name, why) for m, why in store.failures] == [("m3", "no luck")]
        for a, b in zip(written, store.all_records(), strict=True):
            assert_same(a, b)
        assert store.molecule(3).name == "m4"
        np.testing.assert_array_equal(store.observables(3).fock, written[4].observables.fock)
    assert list(tmp_path.iterdir()) == [path]


def test_residuals_to_a_baseline(tmp_path):
    path, quantum = tmp_path / "l.h5", 1e-7
    written = records(2)
    write_store(path, written, ATTRS, fock_encoding="residual:two-centre", fock_quantum=quantum)
    with LabelStore.open(path) as store:
        assert store.fock_encoding == "residual:two-centre"
        store.check(basis=BASIS, method="PBE", fock_encoding="residual:two-centre")
        assert store.observables(1).fock is None
        baseline = np.ones((5, 5))
        residual = written[1].observables.fock
        # half a quantum, and what rounding the product to float64 adds
        np.testing.assert_allclose(store.fock_values(1), residual, rtol=0, atol=quantum / 2 * (1 + 1e-6))
        np.testing.assert_array_equal(store.observables(1, baseline=baseline).fock, store.fock_values(1) + baseline)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="fock_quantum=1e-12 is too small: values up to"):
        write_store(path, written, ATTRS, fock_encoding="residual:two-centre", fock_quantum=1e-12)
    assert path.read_bytes() == before
    write_store(path, written, ATTRS, fock_encoding="residual:sap", fock_dtype="f4")
    with LabelStore.open(path) as store:
        np.testing.assert_allclose(store.fock_values(1), residual, rtol=2**-23)  # float32


def test_unsuitable_files_are_refused(tmp_path):
    path = tmp_path / "l.h5"
    with pytest.raises(ValueError, match="no such label file"):
        LabelStore.open(path)
    path.write_bytes(b"no hdf5")
    with pytest.raises(ValueError, match="not a readable HDF5"):
        LabelStore.open(path)
    write_store(path, records(), ATTRS)
    with LabelStore.open(path) as store:
        with pytest.raises(ValueError, match="basis 'sto-3g', which is not the 'def2-svp'"):
            store.check(basis=load_basis("def2-svp"))
        with pytest.raises(ValueError, match="method 'pbe', needed is 'hf'"):
            store.check(method="hf")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated|damaged"):
        LabelStore.open(path)
    for name, value, message in [
        ("format_version", 99, "format version 99"),
        ("ao_order", "other", "AO order 'other'"),
        ("kind", "other", "no mlsemi label file"),
    ]:
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            file.attrs[name] = value
        with pytest.raises(ValueError, match=message):
            LabelStore.open(path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "l.h5"
    write_store(path, records(2), ATTRS)
    before = path.read_bytes()

    def broken():
        yield records(1)[0]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_store(path, broken(), ATTRS)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def correlated_records():
    rng = np.random.default_rng(2)
    out = []
    for i, record in enumerate(records(4)):
        if not record.failure:
            extra = {"ionization_energies": rng.normal(size=i)} if i else {}
            extra |= {"electron_affinities": rng.normal(size=1)} if i == 2 else {}
            observables = Observables(
                energy=-1.0 - i,
                gradient=rng.normal(size=(record.molecule.n_atoms, 3)) if i == 1 else None,
                t1_diagnostic=0.01,
                scf_total_energy=-0.5,
                mp2_total_energy=-0.9,
                ccsd_total_energy=-0.95,
                **extra,
            )
            record = Record(record.molecule, observables, scheme="plain/9, ccsd/12", index=i)
        out.append(record)
    return out


def assert_same_correlated(a, b):
    assert_same(a, b)
    names = ("ionization_energies", "electron_affinities", "t1_diagnostic")
    for name in (*names, "scf_total_energy", "mp2_total_energy", "ccsd_total_energy"):
        x, y = getattr(a.observables, name), getattr(b.observables, name)
        assert (x is None) == (y is None), name
        if x is not None:
            np.testing.assert_array_equal(x, y)


def test_labels_without_fock_matrices(tmp_path):
    path, written = tmp_path / "cc.h5", correlated_records()
    attrs = {**ATTRS, "method": "ccsd(t)", "level": "CCSD(T)/sto-3g, frozen core"}
    write_store(path, written, attrs, fock_encoding=NO_FOCK)
    with LabelStore.open(path) as store:
        assert (store.has_fock, store.level, len(store)) == (False, "CCSD(T)/sto-3g, frozen core", 3)
        for a, b in zip(written, store.all_records(), strict=True):
            assert_same_correlated(a, b)
        assert store.observables(1).fock is None
        with pytest.raises(ValueError, match="CCSD.T./sto-3g, frozen core and have no Fock matrices"):
            store.fock_values(1)
    journal = Journal(tmp_path / "j", {})
    for record in written:
        journal.append(record)
    for record, (_, _, place) in zip(written, journal.places, strict=True):
        assert_same_correlated(record, journal.read(place))
    journal.close()
    for wrong, encoding in [(records(1), NO_FOCK), (written[:1], "full")]:
        with pytest.raises(ValueError, match="files of their own"):
            write_store(path, wrong, ATTRS, fock_encoding=encoding)


@pytest.mark.parametrize("gradient", [True, False])
def test_files_of_format_1_are_read(tmp_path, gradient):
    path, written = tmp_path / "l.h5", records(gradient=gradient)
    write_store(path, written, {**ATTRS, "gradient": gradient})
    with h5py.File(path, "r+") as file:  # exactly what format 1 did not have
        file.attrs["format_version"] = 1
        for name in ("has_gradient", "n_ip", "n_ea", "t1_diagnostic", "scf", "mp2", "ccsd"):
            del file[f"records/{name}" + "_total_energy" * (name in ("scf", "mp2", "ccsd"))]
        del file["flat/ionization_energies"], file["flat/electron_affinities"]
    with LabelStore.open(path) as store:
        assert store.has_fock and store.level == "pbe/sto-3g"
        for a, b in zip(written, store.all_records(), strict=True):
            assert_same_correlated(a, b)


@pytest.mark.parametrize("encoding", ["residual:", "half"])
def test_unknown_encoding_is_refused(tmp_path, encoding):
    with pytest.raises(ValueError, match="must be 'full' or 'residual:"):
        write_store(tmp_path / "l.h5", [], ATTRS, fock_encoding=encoding)


def test_key_is_of_the_geometry():
    a = Molecule([1, 1], [[0, 0, 0], [0, 0, 1.4]], name="a")
    assert molecule_key(a) == molecule_key(Molecule([1, 1], [[0, 0, 0], [0, 0, 1.4 + 1e-9]], name="b"))
    assert molecule_key(a) != molecule_key(Molecule([1, 1], [[0, 0, 0], [0, 0, 1.41]]))
    assert molecule_key(a) != molecule_key(Molecule([1, 1], [[0, 0, 0], [0, 0, 1.4]], spin=2))


@pytest.mark.parametrize("cut", [1, 20, 700])
def test_journal_drops_a_torn_frame_only(tmp_path, cut):
    path, written = tmp_path / "j", records()
    journal = Journal(path, {"method": "pbe"})
    for record in written:
        journal.append(record)
    journal.close()
    path.write_bytes(path.read_bytes()[:-cut])  # what a kill in the middle of a write leaves
    journal = Journal(path, {"method": "pbe"})
    assert len(journal.places) == 4
    journal.append(written[4])
    for record, (key, labelled, place) in zip(written, journal.places, strict=True):
        assert (record.key, not record.failure) == (key, labelled)
        assert_same(record, journal.read(place))
    journal.close()


def test_journal_refuses_damage_before_its_end(tmp_path):
    path = tmp_path / "j"
    journal = Journal(path, {"method": "pbe"})
    for record in records():
        journal.append(record)
    place = journal.places[1][2]
    journal.close()
    data = bytearray(path.read_bytes())
    data[place + 200] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        Journal(path, {"method": "pbe"})
    assert path.read_bytes() == data  # nothing is cut off


def test_journal_refuses_other_settings_and_a_second_writer(tmp_path):
    journal = Journal(tmp_path / "j", {"method": "pbe"})
    with pytest.raises(ValueError, match="another process is writing"):
        Journal(tmp_path / "j", {"method": "pbe"})
    journal.close()
    with pytest.raises(ValueError, match="method 'pbe' .asked now: 'hf'"):
        Journal(tmp_path / "j", {"method": "hf"})


def test_journal_on_a_full_disk_loses_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    import signal

    written = records()
    journal = Journal(tmp_path / "j", {})
    journal.append(written[0])
    size = (tmp_path / "j").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limits[1]))
        with pytest.raises(OSError, match="the 1 records before are safe: free space"):
            journal.append(written[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "j").stat().st_size == size
    journal.append(written[1])
    assert_same(journal.read(journal.places[1][2]), written[1])
    journal.close()
