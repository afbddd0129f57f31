"""Overrides are checked before anything is made, and the message says what was meant."""

import os

import pytest

from ovr.cli.main import main
from ovr.cli.overrides import MAX_YAML_BYTES, check_yaml_files, parsed
from ovr.errors import ConfigError
from tests.cli.test_main import error_of


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    yield
    assert list((tmp_path / "cwd").iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trainer.max_epoch=3"], "config key 'trainer.max_epoch' does not exist; nearest: trainer.max_epochs"),
        (["max_epochs=3", "seed=1"], "config key 'max_epochs' does not exist; nearest: trainer.max_epochs"),
        (["los=focal"], "config key 'los' does not exist; nearest: loss"),
        (["backbone=cnn", "backbone.hidden=[3]"], "config key 'backbone.hidden' does not exist; nearest:"),
        (["~sead"], "config key 'sead' does not exist; nearest: seed"),
        (["loss=fokal"], "loss=fokal: there is no such option; nearest: focal; all: asymmetric, bce, focal, smoothed, subsampled"),
        (["experiment=digitz"], "experiment=digitz: there is no such option; nearest: digits"),
        (
            ["loss=../../etc/passwd"],
            "loss=../../etc/passwd: there is no such option; all: asymmetric, bce, focal, smoothed, subsampled",
        ),
        (["-m", "loss=bce,fokal"], "loss=fokal: there is no such option"),
        (["-m", "sead=1,2"], "config key 'sead' does not exist; nearest: seed"),
        (["-m", "trainer.max_epoch=range(1,3)"], "config key 'trainer.max_epoch' does not exist"),
        (["seed=1,2"], "seed=1,2 gives several values: -m runs once for each, and seed=[1,2] is one list"),
        (["a=[1"], "no viable alternative"),
        (["nope"], "missing EQUAL"),
        (["+seed=3"], "Could not append to config. An item is already at 'seed'."),
        (["hydra.run.dri=x"], "config key 'hydra.run.dri' does not exist; nearest: hydra.run.dir"),
        (["hydra.run.dir=${none}"], "the run directory cannot be named: Interpolation key 'none' not found"),
        (["data=idx"], "not given: data.root; add data.root=VALUE"),
    ],
)
def test_what_cannot_be_composed_is_refused(capsys, args, message):
    assert message in error_of(capsys, "train", *args)


def test_a_group_of_another_command_is_refused(capsys):
    assert "config key 'loss' does not exist" in error_of(capsys, "export", "bundle=b", "out=o", "loss=bce")


def test_a_user_directory_adds_options(tmp_path, capsys):
    put(tmp_path / "mine" / "loss" / "mine.yaml", "_target_: my.Loss\nbeta: 3\n")
    put(tmp_path / "mine" / "experiment" / "try.yaml", "# @package _global_\nseed: 7\n")
    given = ["train", "--config-dir", str(tmp_path / "mine"), "loss=mine", "experiment=try", "--cfg", "job"]
    assert main(given) == 0
    text = capsys.readouterr().out
    assert "beta: 3" in text
    assert "seed: 7" in text
    assert "nearest: mine, smoothed; all: asymmetric, bce, focal, mine, smoothed, subsampled" in error_of(
        capsys, *given[:3], "loss=mone"
    )


def test_a_misspelt_key_in_a_user_file_is_refused_unless_it_is_added_on_purpose(tmp_path, capsys):
    put(tmp_path / "mine" / "experiment" / "try.yaml", "# @package _global_\nbatch_sise: 7\n")
    given = ["train", "--config-dir", str(tmp_path / "mine"), "experiment=try", "--cfg", "job"]
    assert "config key 'batch_sise' does not exist; nearest: batch_size, paths (a configuration file sets it" in error_of(
        capsys, *given
    )
    assert main([*given, "+batch_sise=8"]) == 1  # it is there already
    assert main([*given, "++batch_sise=8"]) == 0


def test_user_files_with_aliases_or_of_more_than_a_mebibyte_are_not_parsed(tmp_path, capsys):
    root = tmp_path / "mine"
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    put(root / "loss" / "bomb.yaml", bomb)
    put(root / "loss" / "large.yml", "#" * (MAX_YAML_BYTES + 1))
    put(root / "broken.yaml", "a: [1\n")
    put(root / "deep.yaml", "[" * 100_000)
    (root / "latin.yaml").write_bytes(b"a: \xe9\n")
    message = error_of(capsys, "train", "--config-dir", str(root))
    assert "bomb.yaml has YAML aliases" in message
    assert f"large.yml is {MAX_YAML_BYTES + 1} bytes; at most {MAX_YAML_BYTES} are read" in message
    assert "broken.yaml is not YAML" in message
    assert "deep.yaml is nested deeper than 50 levels" in message
    assert "latin.yaml is not YAML" in message


def test_the_same_holds_wherever_hydra_finds_files(tmp_path, capsys):
    root = tmp_path / "mine"
    put(root / "train.yaml", "a: &a [x]\nb: *a\n")
    assert "train.yaml has YAML aliases" in error_of(capsys, "train", "--config-path", str(root))
    said = "sets hydra.searchpath, whose files would be read unchecked; give a directory as --config-dir DIR"
    assert f"hydra.searchpath=[{root}] {said}" in error_of(capsys, "train", f"hydra.searchpath=[{root}]")
    assert said in error_of(capsys, "train", "--info", "config", f"+hydra.searchpath=[{root}]")
    put(root / "train.yaml", "hydra:\n  searchpath: [/elsewhere]\n")
    assert said in error_of(capsys, "train", "--config-path", str(root), "--config-name", "train.yaml")
    assert f"{root}/train.yaml {said}" in error_of(capsys, "train", "--config-path", str(root))
    assert f"{root}/train.yaml {said}" in error_of(capsys, "train", "--config-dir", str(root))
    os.mkfifo(root / "pipe.yaml")
    assert "pipe.yaml is no regular file" in error_of(capsys, "train", "--config-dir", str(root))
    assert "--experimental-rerun reads a pickle" in error_of(capsys, "train", "--experimental-rerun", str(root / "config.pickle"))


def test_an_anchor_without_alias_and_a_star_in_a_text_are_fine(tmp_path):
    put(tmp_path / "fine" / "a.yaml", "a: &a 1\nb: 'x *a'\n")
    check_yaml_files(tmp_path / "fine")


def test_a_directory_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"configuration directory .*none does not exist"):
        check_yaml_files(tmp_path / "none")


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--nope"], "unrecognized arguments: --nope"),
        (["--config-dir"], "expected one argument"),
        (["-c", "x"], "invalid choice: 'x'"),
    ],
)
def test_unknown_flags_are_refused(capsys, args, message):
    assert message in error_of(capsys, "train", *args)


def test_flags_and_overrides_come_in_any_order():
    options, args = parsed(["a=1", "-m", "+b=2", "--config-dir", "conf", "~c"])
    assert options.overrides == ["a=1", "+b=2", "~c"]
    assert args == ["a=1", "+b=2", "~c", "-m", "--config-dir", "conf"]
