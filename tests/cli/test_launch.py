"""Runs of several processes: torchrun and Slurm start them, each takes its place, all come to one run directory."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ovr.cli.launch import Ranks, own_record, ranks
from ovr.core.bundle import open_bundle
from tests.cli.fake_slurm import install, options
from tests.cli.test_main import error_of, importable, ovr

ON_CPU = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true", "report=false"]
SLURM = ["-m", "hydra/launcher=slurm", *ON_CPU, "trainer.num_nodes=2", "trainer.devices=1", "hydra.launcher.gpus_per_node=null"]
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_PROCID": "3"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, None),  # Lightning's own
        ({**TORCHRUN, "RANK": "1"}, Ranks("torchrun", 1, 2)),
        ({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}, None),
        (SRUN, Ranks("srun", 3, 4)),
        ({**SRUN, "SLURM_JOB_NAME": "bash"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # the batch script itself
    ],
)
def test_a_process_knows_its_place_among_those_that_were_started_with_it(environ, expected):
    assert ranks(environ) == expected


def test_ranks_but_the_first_keep_no_record():
    assert own_record("train", None) == own_record("train", Ranks("srun", 0, 2)) == []
    assert own_record("train", Ranks("srun", 1, 2)) == ["hydra.output_subdir=null", "hydra.job.name=train_rank_1"]


@pytest.mark.parametrize(("flags", "key"), [([], "hydra.run.dir"), (["-m"], "hydra.sweep.dir")])
def test_several_processes_must_be_told_the_run_directory(capsys, monkeypatch, flags, key):
    for name, value in {**TORCHRUN, "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert error_of(capsys, "train", *flags) == (
        f"torchrun started 2 processes, and each would name the run directory by its own clock; give them one: {key}=DIR"
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (SLURM[1:], "hydra/launcher=slurm starts the jobs of a multirun: add -m"),
        ([*SLURM, "trainer.devices=auto"], "trainer.devices must be a whole number, got 'auto'"),
        ([*SLURM, "trainer.num_nodes=0"], "trainer.num_nodes must be a whole number, got 0"),
        ([*SLURM, "hydra.launcher.nodes=3"], "hydra.launcher.nodes must be trainer.num_nodes, got 3 and 2"),
        (["-m", "hydra/launcher=slurm"], "trainer.accelerator=cpu uses none of the 1 GPUs that hydra.launcher.gpus_per_node asks"),
        ([*SLURM, "hydra.launcher.partitoin=long"], "config key 'hydra.launcher.partitoin' does not exist"),
        (
            [*SLURM, "hydra/launcher=slrm"],
            "Could not find 'hydra/launcher/slrm' Available options in 'hydra/launcher': basic slurm",
        ),
        (SLURM, "hydra/launcher=slurm submits with sbatch and srun, not found here; run it on a login node"),
    ],
)
def test_what_slurm_cannot_run_is_refused_before_it_is_submitted(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert message in error_of(capsys, "train", *args)
    assert list(tmp_path.iterdir()) == []


def test_a_launcher_that_is_not_installed_is_named_with_its_extra(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert error_of(capsys, "train", *SLURM) == (
        "hydra/launcher=slurm needs hydra_submitit_launcher, which is not installed; pip install 'ovr[slurm]'"
    )


def test_every_option_of_the_launcher_is_one_that_it_takes():
    from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
    from submitit.slurm.slurm import _get_default_parameters

    given = yaml.safe_load((Path(__file__).parents[2] / "conf" / "hydra" / "launcher" / "slurm.yaml").read_text())
    assert set(given) <= {*SlurmQueueConf.__dataclass_fields__, *_get_default_parameters()}


def submit(tmp_path, *args, preempt_when=None):
    """Run a multirun that submits to Slurm, until its jobs have ended; return what it printed and what sbatch was given."""
    env = install(tmp_path / "slurm", preempt_when=preempt_when)
    here = tmp_path / "here"
    here.mkdir()
    done = ovr("train", *SLURM, "hydra.sweep.dir=sweep", *args, cwd=here, env=importable() | env)
    return done, (tmp_path / "slurm" / "batch.sh").read_text()


@pytest.mark.exhaustive
@pytest.mark.slow
def test_submitted_jobs_are_one_array_and_train_with_a_process_a_node(tmp_path):
    queue = ["hydra.launcher.partition=long", "hydra.launcher.account=team", "+hydra.launcher.exclude=node7"]
    done, script = submit(tmp_path, "seed=0,1", "trainer.max_epochs=1", "hydra.launcher.timeout_min=30", *queue)
    assert done.returncode == 0, done.stderr
    asked = options(script)
    assert (asked["nodes"], asked["ntasks-per-node"], asked["cpus-per-task"], asked["time"]) == ("2", "1", "4", "30")
    assert (asked["partition"], asked["account"], asked["exclude"]) == ("long", "team", "node7")
    assert asked["array"] == "0-1%2"
    assert "gpus-per-node" not in asked
    command = next(line for line in script.splitlines() if line.startswith("srun"))
    assert f"--kill-on-bad-exit=1 --wait=0 {sys.executable} -u -m submitit.core._submit " in command
    assert (tmp_path / "slurm" / "cpus").read_text() == "4"
    run_dirs = [tmp_path / "here" / "sweep" / job for job in ("0", "1")]
    bundles = [open_bundle(run_dir / "bundle") for run_dir in run_dirs]
    assert [len(bundle.heads) for bundle in bundles] == [10, 10]
    assert [bundle.provenance["config"]["seed"] for bundle in bundles] == [0, 1]
    assert all((run_dir / ".hydra" / "config.yaml").is_file() for run_dir in run_dirs)
    for job in ("0", "1"):
        logs = sorted((tmp_path / "here" / "sweep" / ".submitit").glob(f"*_{job}/*_log.out"))
        assert [f"GLOBAL_RANK: {rank}, MEMBER: {rank + 1}/2" in log.read_text() for rank, log in enumerate(logs)] == [True, True]
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["sweep"]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_preempted_job_goes_on_from_its_last_checkpoint(tmp_path):
    run_dir = tmp_path / "here" / "sweep" / "0"
    longer = ["trainer.max_epochs=40", "callback.early_stopping.patience=100"]
    done, _ = submit(tmp_path, *longer, preempt_when=run_dir / "checkpoints" / "last.ckpt")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "slurm" / "requeue").read_text().startswith("requeue ")
    last = sorted((run_dir / "metrics").glob("*/metrics.csv"))[-1]
    epochs = [int(line.partition(",")[0]) for line in last.read_text().splitlines()[1:]]
    assert 0 < min(epochs) < max(epochs) == 39
    assert (run_dir / "bundle" / "manifest.json").is_file()


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_job_that_fails_says_why_and_ends_with_an_error(tmp_path):
    done, script = submit(tmp_path, "optimizer.lr=fast")
    assert done.returncode == 1
    assert "array" not in options(script)
    assert "error: the optimizer cannot be made with lr='fast'" in done.stderr
    state = tmp_path / "slurm" / "state"
    deadline = time.monotonic() + 60
    while state.read_text() == "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert state.read_text() == "FAILED"


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_job_of_submitit_on_this_machine_trains_the_digits(tmp_path):
    args = ["-m", "hydra/launcher=submitit_local", "experiment=digits", "trainer.max_epochs=2", "hydra.sweep.dir=sweep"]
    done = ovr("train", *args, cwd=tmp_path, env=importable())
    assert done.returncode == 0, done.stderr
    assert len(open_bundle(tmp_path / "sweep" / "0" / "bundle").heads) == 10


def torchrun(*args):
    program = Path(sys.executable).parent / "torchrun"
    return [sys.executable, str(program), *args[: args.index("--")], "-m", "ovr", "train", *ON_CPU, *args[args.index("--") + 1 :]]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_torchrun_starts_processes_that_train_one_bundle(tmp_path):
    command = torchrun(
        "--standalone", "--nproc-per-node", "2", "--", "trainer.devices=2", "trainer.max_epochs=2", "hydra.run.dir=run"
    )
    done = subprocess.run(command, cwd=tmp_path, env=importable(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "MEMBER: 2/2" in done.stdout + done.stderr
    assert (tmp_path / "run" / "bundle" / "manifest.json").is_file()
    assert (tmp_path / "run" / ".hydra" / "config.yaml").is_file()
    assert {path.name for path in (tmp_path / "run").glob("*.log")} == {"train.log", "train_rank_1.log"}


@pytest.mark.exhaustive
@pytest.mark.slow
def test_torchrun_on_two_nodes_trains_one_bundle(tmp_path):
    port = str(20000 + os.getpid() % 9000)
    nodes = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "digits", "--local-addr", "127.0.0.1"]
    args = ["trainer.num_nodes=2", "trainer.devices=1", "trainer.max_epochs=2", "hydra.run.dir=run"]
    command = torchrun(*nodes, "--rdzv-endpoint", f"127.0.0.1:{port}", "--", *args)
    agents = [subprocess.Popen(command, cwd=tmp_path, env=importable(), stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [agent.wait(timeout=120) for agent in agents] == [0, 0]
    assert (tmp_path / "run" / "bundle" / "manifest.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
