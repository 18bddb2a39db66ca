"""Configurations: read, and refused with the place named."""

from pathlib import Path

import pytest

from mlsemi.train.config import DataConfig, LossConfig, read_config


def test_paths_are_relative_to_the_file_and_defaults_hold(tmp_path):
    path = tmp_path / "ethanol.toml"
    path.write_text('[data]\nlabels = ["a.h5", "../b.h5"]\n[network]\nbond = [8, 4]\n[loss]\nao = 2\n')
    config = read_config(path)
    assert config.name == "ethanol"
    assert config.baseline == "atoms"
    assert config.output == tmp_path / "runs" / "ethanol"
    assert config.data == DataConfig((str(tmp_path / "a.h5"), str(tmp_path / ".." / "b.h5")))
    assert config.loss == LossConfig(ao=2)
    assert config.network.bond == (8, 4)


def test_one_label_file_needs_no_list(tmp_path):
    path = tmp_path / "one.toml"
    path.write_text('[data]\nlabels = "a.h5"\n')
    assert read_config(path).data.labels == (str(tmp_path / "a.h5"),)


BENCHMARKS = sorted((Path(__file__).resolve().parents[2] / "benchmarks").rglob("*.toml"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_the_configurations_of_the_benchmarks_are_valid(path):
    config = read_config(path)
    assert all(label.endswith(".h5") for label in config.data.labels)
    assert config.training.threads == 1  # as results.md says of all of them


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels = [", "not a TOML file"),
        ("epochs = 3", r"unknown key\(s\) \['epochs'\]"),
        ("data = 3", r"'data' must be a table, \[data\]"),
        ("[data]\n", r"\[data\] needs labels"),
        ("[data]\nlabels = []", "labels = .* must be a list of str, not empty"),
        ("[data]\nlabels = [1]", "must be a list of str"),
        ('[data]\nlabels = "a.h5"\nfraction = 0.1', r"unknown key\(s\) \['fraction'\] in \[data\]; known: labels"),
        ('[data]\nlabels = "a.h5"\nvalidation = 1.0', "validation = 1.0 must lie between 0 and 1"),
        ('[data]\nlabels = "a.h5"\nlimit = 1', "limit = 1 must be 2 at least"),
        ('[data]\nlabels = "a.h5"\nsplit = "scaffold"', "split = 'scaffold' must be one of random, molecule"),
        ('baseline = "dft"\n[data]\nlabels = "a.h5"', "baseline = 'dft' must be one of atoms, sap, none"),
        ('[data]\nlabels = "a.h5"\n[training]\nsteps = "many"', "steps = 'many' must be an integer"),
        ('[data]\nlabels = "a.h5"\n[training]\nbatch = 1.5', "batch = 1.5 must be an integer"),
        ('[data]\nlabels = "a.h5"\n[training]\nclip = true', "clip = True must be a number"),
        ('[data]\nlabels = "a.h5"\n[training]\nsteps = 0', "steps = 0 must be positive"),
        ('[data]\nlabels = "a.h5"\n[training]\nseed = -1', r"\[training\] seed = -1 must not be negative"),
        ('[data]\nlabels = "a.h5"\n[training]\npatience = -2', "patience = -2 must not be negative"),
        ('[data]\nlabels = "a.h5"\n[loss]\nao = -1.0', r"\[loss\] ao = -1 must not be negative"),
        ('[data]\nlabels = "a.h5"\n[finetune]\ndipole = -0.5', r"\[finetune\] dipole = -0.5 must not be negative"),
        (
            '[data]\nlabels = "a.h5"\n[loss]\nao = 0\northonormal = 0\noccupied_virtual = 0\nenergy = 0',
            r"\[loss\] sets all weights to 0",
        ),
        ('[data]\nlabels = "a.h5"\n[loss]\nao = nan', r"\[loss\] ao = nan must be finite"),
        ('[data]\nlabels = "a.h5"\n[loss]\nfast = inf', r"\[loss\] fast = inf must be finite"),
        ('[data]\nlabels = "a.h5"\n[finetune]\nenergy = nan', r"\[finetune\] energy = nan must be finite"),
        ('[data]\nlabels = "a.h5"\n[network]\ncutoff = inf', r"\[network\] cutoff = inf must be finite"),
        ('[data]\nlabels = "a.h5"\n[training]\nlearning_rate = nan', "learning_rate = nan must be finite"),
        ('[data]\nlabels = "a.h5"\n[training]\nweight_decay = nan', "weight_decay = nan must be finite"),
        ('overlap_floor = nan\n[data]\nlabels = "a.h5"', "overlap_floor = nan must be a number from 0"),
        ('[data]\nlabels = "a.h5"\n[training]\nthreads = 0', "threads = 0 must be positive: leave it out"),
        ('[data]\nlabels = "a.h5"\n[training]\nema = 1.0', r"ema = 1.0 must lie in \[0, 1\)"),
        ('[data]\nlabels = "a.h5"\n[training]\ndevice = "tpu"', "device = 'tpu' must be cpu or cuda"),
        ('[data]\nlabels = "a.h5"\n[network]\nbond = "wide"', "bond = 'wide' must be a list of int"),
    ],
)
def test_refuses(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(path)


def test_refuses_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="no such configuration"):
        read_config(tmp_path / "none.toml")
