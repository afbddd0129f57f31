"""The dispatcher: help without torch, one clear error, exit statuses."""

import os
import subprocess
import sys

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue

import ovr as package
from ovr import __version__
from ovr.cli.conf import COMMANDS, conf_dir, name_of
from ovr.cli.main import explain, job_of, main
from ovr.errors import ConfigError, DataError


def ovr(*args, cwd, env=None):
    return subprocess.run([sys.executable, "-m", "ovr", *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def error_of(capsys, *args):
    """Return the message of a command that must fail."""
    assert main(args) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("error: ").strip()


@pytest.mark.parametrize("args", [["--help"], ["-h"], []])
def test_help_names_every_command(capsys, args):
    assert main(args) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_shows_its_configuration(capsys, command):
    assert main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert COMMANDS[command] in text
    assert "debug: false # true: errors come with a traceback" in text


def test_the_help_of_train_lists_the_options_of_its_groups(capsys):
    main(["train", "-h"])
    text = capsys.readouterr().out
    assert "loss=asymmetric|bce|focal|smoothed|subsampled" in text
    assert "trainer=cpu|ddp|fsdp|gpu" in text


def test_every_command_has_a_configuration_and_a_function():
    assert all(callable(job_of(command)) for command in COMMANDS)
    assert {path.stem for path in conf_dir().glob("*.yaml")} == set(map(name_of, COMMANDS))


@pytest.mark.parametrize("args", [["--help"], ["train", "--help"], ["train", "loss=none"], ["train", "--cfg", "job"]])
def test_help_and_configuration_errors_import_no_torch(args):
    code = f"import sys; from ovr.cli.main import job_of, main; main({args!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


def test_help_imports_not_even_hydra():
    code = "import sys; from ovr.cli.main import main; main(['--help']); assert not {'hydra', 'numpy', 'yaml'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


def test_the_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ovr {__version__}\n"


def test_an_unknown_command_is_refused_with_the_nearest(capsys):
    assert error_of(capsys, "trian") == "'trian' is not a command of ovr; nearest: train"
    assert "see ovr --help" in error_of(capsys, "xyzzy")
    for args in (["data"], ["data", "chekc"]):
        assert error_of(capsys, *args) == "'data' is not a command of ovr; nearest: data check, gateway"


def test_values_that_are_not_given_are_named_together(capsys):
    assert error_of(capsys, "export") == "not given: bundle, out; add bundle=VALUE out=VALUE"


def test_the_composed_configuration_is_printed(capsys):
    assert main(["predict", "bundle=b", "--cfg", "job"]) == 0
    assert "bundle: b\n" in capsys.readouterr().out


def test_an_error_is_one_line_and_debug_gives_the_traceback(tmp_path):
    failed = ovr("export", "bundle=none", "out=out", cwd=tmp_path, env=importable())
    assert failed.returncode == 1
    assert failed.stderr == "error: none is not a bundle: it has no manifest.json\n"
    assert failed.stdout == ""
    traced = ovr("export", "bundle=none", "out=out", "debug=true", cwd=tmp_path, env=importable())
    assert traced.returncode == 1
    assert "Traceback" in traced.stderr
    assert "ArtifactError: none is not a bundle" in traced.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_failing_job_of_a_multirun_is_named_and_leaves_nothing(tmp_path):
    failed = ovr("export", "-m", "bundle=a,b", "out=out", cwd=tmp_path, env=importable())
    assert failed.returncode == 1
    assert "bundle=a" in failed.stderr
    assert failed.stderr.endswith("error: a is not a bundle: it has no manifest.json\n")
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DataError("rows\nare missing"), "rows\nare missing"),
        (PermissionError(13, "Permission denied", "/x"), "Permission denied: /x"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (InterpolationKeyError("Interpolation key 'x' not found\n    full_key: y"), "Interpolation key 'x' not found"),
        (KeyError("k"), "unexpected KeyError: 'k' (debug=true shows the traceback)"),
    ],
)
def test_errors_are_explained(error, message):
    assert explain(error) == message


def test_a_value_that_is_missing_is_named():
    with pytest.raises(MissingMandatoryValue) as missing:
        _ = OmegaConf.create({"a": {"b": "???"}}).a.b
    assert explain(missing.value) == "a.b is not given; add a.b=VALUE"


def test_an_installation_without_configuration_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(package, "__file__", str(tmp_path / "ovr" / "__init__.py"))
    with pytest.raises(ConfigError, match=r"the configuration of ovr is neither in .* nor beside it; install ovr again"):
        conf_dir()


def importable():
    """Return an environment in which a process elsewhere imports the package under test."""
    return {**os.environ, "PYTHONPATH": str(conf_dir().parent)}
