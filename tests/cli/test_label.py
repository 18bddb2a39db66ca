"""`mlsemi label`: which geometries of a file are labelled."""

import numpy as np
import pytest
from typer.testing import CliRunner

from mlsemi.cli import app
from mlsemi.data.store import LabelStore

WATER = np.array([[0.0, 0.0, 0.12], [0.0, 0.76, -0.47], [0.0, -0.76, -0.47]])


@pytest.fixture
def frames(tmp_path):
    """npz of five frames of water, stretched one by one."""
    path = tmp_path / "frames.npz"
    np.savez(path, nuclear_charges=[8, 1, 1], coords=[WATER * (1 + 0.01 * k) for k in range(5)])
    return path


def run(*arguments):
    return CliRunner().invoke(app, ["label", *map(str, arguments), "--method", "hf", "--basis", "sto-3g"])


def test_skip_and_limit_choose_the_frames(frames, tmp_path):
    out = tmp_path / "labels.h5"
    done = run(frames, "-o", out, "--skip", 2, "--limit", 2)
    assert done.exit_code == 0, done.output
    with LabelStore.open(out) as store:
        assert [store.molecule(i).name for i in range(len(store))] == ["frames.npz#2", "frames.npz#3"]
        assert np.allclose(store.molecule(0).positions_angstrom, WATER * 1.02, atol=1e-12)


def test_a_skip_that_leaves_nothing_is_refused(frames, tmp_path):
    done = run(frames, "-o", tmp_path / "labels.h5", "--skip", 5)
    assert done.exit_code == 1
    assert "--skip 5 leaves none of the 5 geometries" in done.output
    assert not (tmp_path / "labels.h5").exists()
