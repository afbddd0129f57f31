"""Run directories: resuming takes the saved configuration, and a run that never began leaves nothing."""

import shutil
import subprocess
import sys

import pytest
import yaml

from ovr.cli.main import main
from ovr.cli.rundir import RunDirectory, resumed
from ovr.errors import ConfigError
from tests.cli.test_main import error_of, importable, ovr


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    saved = {"seed": 3, "resume": None, "loss": {"gamma": 2.0}, "paths": {"run_dir": "${hydra:runtime.output_dir}"}}
    (tmp_path / "run" / ".hydra" / "config.yaml").write_text(yaml.safe_dump(saved))
    return tmp_path / "run"


def test_resume_takes_the_saved_configuration_and_its_directory(run_dir):
    args = resumed([f"resume={run_dir}", "seed=4"])
    assert args[:4] == ["--config-path", str(run_dir / ".hydra"), "--config-name", "config"]
    assert f'hydra.run.dir="{run_dir}"' in args
    assert args[-2:] == [f"resume={run_dir}", "seed=4"]


def test_a_launcher_may_append_to_the_arguments_and_start_again(run_dir):
    appended = [f"resume={run_dir}", f'hydra.run.dir="{run_dir}"', "hydra.job.name=train_ddp_process_1", "hydra.output_subdir=null"]
    assert resumed(appended)[-len(appended) :] == appended


@pytest.mark.parametrize("args", [[], ["seed=3"], ["resume=null"], ["a=[1", "resume=x"], ["--cfg", "job"]])
def test_arguments_without_resume_stay_as_they_are(args):
    assert resumed(args) == args


def test_what_cannot_be_resumed_is_refused(run_dir, tmp_path):
    with pytest.raises(ConfigError, match=r"is not a run directory: it has no \.hydra/config\.yaml"):
        resumed([f"resume={tmp_path / 'none'}"])
    for args in (["-m", f"resume={run_dir}"], [f"resume={run_dir},{run_dir}"]):
        with pytest.raises(ConfigError, match="cannot be combined with multirun"):
            resumed(args)
    with pytest.raises(ConfigError, match=r"loss=focal: a resumed run keeps its loss; change single values, such as loss\.gamma"):
        resumed([f"resume={run_dir}", "loss=focal"])
    (run_dir / ".hydra" / "config.yaml").write_text("a: &a 1\nb: *a\n")
    with pytest.raises(ConfigError, match="has YAML aliases"):
        resumed([f"resume={run_dir}"])
    (run_dir / ".hydra" / "config.yaml").write_text("[1]\n")
    with pytest.raises(ConfigError, match=r"config\.yaml holds no configuration"):
        resumed([f"resume={run_dir}"])


def directory(path, *, before=frozenset(), multirun=False):
    return RunDirectory(path, overrides=("seed=1",), multirun=multirun, existed_before=frozenset(before))


def made(path):
    (path / ".hydra").mkdir(parents=True)
    (path / ".hydra" / "config.yaml").touch()
    (path / "train.log").touch()
    return path


def test_an_unused_directory_goes_with_the_empty_folders_that_were_made_for_it(tmp_path):
    directory(made(tmp_path / "outputs" / "day" / "time"), before=[tmp_path]).discard_if_unused()
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_there_or_hold_something_stay(tmp_path):
    (tmp_path / "outputs" / "day" / "other").mkdir(parents=True)
    directory(made(tmp_path / "outputs" / "day" / "time"), before=[tmp_path]).discard_if_unused()
    assert [path.name for path in (tmp_path / "outputs" / "day").iterdir()] == ["other"]
    (tmp_path / "outputs" / "day" / "other").rmdir()
    directory(made(tmp_path / "outputs" / "day" / "time"), before=[tmp_path, tmp_path / "outputs"]).discard_if_unused()
    assert list((tmp_path / "outputs").iterdir()) == []


def test_a_directory_that_was_there_or_was_used_stays(tmp_path):
    path = made(tmp_path / "run")
    directory(path, before=[tmp_path, path]).discard_if_unused()
    assert path.is_dir()
    (path / "checkpoints").mkdir()
    directory(path, before=[tmp_path]).discard_if_unused()
    assert (path / "train.log").is_file()


def test_the_record_of_a_multirun_goes_with_its_only_job(tmp_path):
    path = made(tmp_path / "sweep" / "0")
    (tmp_path / "sweep" / "multirun.yaml").touch()
    directory(path, before=[tmp_path], multirun=True).discard_if_unused()
    assert list(tmp_path.iterdir()) == []


def test_a_job_of_a_multirun_can_be_started_alone(tmp_path):
    assert directory(tmp_path).single_run_args(["a=1", "--cfg", "job"], None) == ["a=1", "--cfg", "job"]
    alone = directory(tmp_path, multirun=True).single_run_args(["-m", "seed=1,2"], "/conf")
    assert alone == ["--config-dir", "/conf", "seed=1"]


def test_a_run_that_fails_before_it_begins_leaves_nothing_and_imported_nothing_for_others(tmp_path):
    args = ["data=idx", "data.root=/nonexistent"]
    code = (
        "import sys; from ovr.cli.main import main\n"
        f"for args in ({args}, {['-m', 'seed=1,2', *args]}):\n"
        "    assert main(['train', *args]) == 1\n"
        "    print('---', file=sys.stderr)\n"
        "assert 'torchmetrics' in sys.modules\n"
        "assert not {'matplotlib', 'scipy', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=importable(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for text in done.stderr.split("---\n")[:2]:
        assert text.splitlines()[-1].startswith("error: ")
        assert "nonexistent" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.exhaustive
@pytest.mark.slow
def test_every_job_of_a_multirun_starts_its_own_processes(tmp_path):
    trainer = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true", "trainer.max_epochs=1"]
    done = ovr("train", "-m", "seed=0,1", "report=false", *trainer, "hydra.sweep.dir=sweep", cwd=tmp_path, env=importable())
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / "sweep" / job / "bundle" / "manifest.json").is_file() for job in ("0", "1")] == [True, True]
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_its_directory_and_keeps_the_first_configuration(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "trainer.max_epochs=1", "report=false", "hydra.run.dir=run"]) == 0
    saved = (tmp_path / "run" / ".hydra" / "config.yaml").read_bytes()
    capsys.readouterr()
    assert "is a finished run" in error_of(capsys, "train", "resume=run")
    shutil.rmtree(tmp_path / "run" / "bundle")
    assert main(["train", "resume=run", "trainer.max_epochs=2"]) == 0
    assert (tmp_path / "run" / "bundle" / "manifest.json").is_file()
    assert (tmp_path / "run" / ".hydra" / "config.yaml").read_bytes() == saved
    record = yaml.safe_load((tmp_path / "run" / ".hydra" / "resumed" / "config.yaml").read_text())
    assert (record["resume"], record["trainer"]["max_epochs"]) == ("run", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
