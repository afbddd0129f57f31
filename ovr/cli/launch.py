"""Runs of several processes that something else starts: torchrun, srun, or a launcher of Hydra's that submits to Slurm.

Knows their environment variables and Hydra's settings for them, nothing of training.
"""

import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from ovr.errors import ConfigError

LOCAL = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
SLURM = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that run the same command."""

    started_by: str
    rank: int
    num_ranks: int


def ranks(environ: Mapping[str, str]) -> Ranks | None:
    """Return which process this is of several that torchrun or srun started; None where it was started alone.

    Processes that Lightning starts by itself are not among them: their arguments say where they belong.
    """
    found = None
    if "TORCHELASTIC_RUN_ID" in environ:
        found = Ranks("torchrun", int(environ["RANK"]), int(environ["WORLD_SIZE"]))
    elif "SLURM_STEP_ID" in environ and environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):  # Lightning's rule too
        found = Ranks("srun", int(environ.get("SLURM_PROCID", "0")), int(environ.get("SLURM_NTASKS", "1")))
    return found if found is not None and found.num_ranks > 1 else None


def own_record(command: str, rank: Ranks | None) -> list[str]:
    """Return overrides that keep this process from writing the record and the log of the first one."""
    if rank is None or rank.rank == 0:
        return []
    return ["hydra.output_subdir=null", f"hydra.job.name={command}_rank_{rank.rank}"]


def check_directory(cfg: DictConfig, rank: Ranks | None, *, multirun: bool) -> None:
    """Check that every process would come to the same run directory.

    Raises:
        ConfigError: its name has the time in it, and each process reads its own clock.
    """
    key = "hydra.sweep.dir" if multirun else "hydra.run.dir"
    node = cfg.hydra.sweep if multirun else cfg.hydra.run
    raw = OmegaConf.to_container(node, resolve=False)
    assert isinstance(raw, dict)
    if rank is not None and "${now:" in str(raw["dir"]):
        raise ConfigError(
            f"{rank.started_by} started {rank.num_ranks} processes, and each would name the run directory by its own clock; "
            f"give them one: {key}=DIR"
        )


def check_launcher(cfg: DictConfig, *, multirun: bool) -> None:
    """Check what Hydra's launcher is asked for before it submits anything.

    Raises:
        ConfigError: a launcher without -m, which Hydra passes over in silence, or one that is not installed; a Slurm job whose
            processes are not one a device of the trainer, or with GPUs for a trainer on CPUs; a machine without Slurm's programs.
    """
    launcher = cfg.hydra.launcher
    target = str(launcher.get("_target_"))
    if target == LOCAL:
        return
    if not multirun:
        raise ConfigError(f"hydra/launcher={_name(cfg)} starts the jobs of a multirun: add -m")
    parts = target.split(".")
    if importlib.util.find_spec(parts[0]) is None or importlib.util.find_spec(".".join(parts[:2])) is None:
        raise ConfigError(f"hydra/launcher={_name(cfg)} needs {parts[1]}, which is not installed; pip install 'ovr[slurm]'")
    if target != SLURM or "trainer" not in cfg:
        return
    for key, setting in (("nodes", "num_nodes"), ("tasks_per_node", "devices")):
        asked, trained = launcher[key], cfg.trainer[setting]
        if type(trained) is not int or trained < 1:
            raise ConfigError(
                f"Slurm is to start one process a device on every node: trainer.{setting} must be a whole number, got {trained!r}"
            )
        if asked != trained:
            raise ConfigError(f"hydra.launcher.{key} must be trainer.{setting}, got {asked!r} and {trained}")
    if cfg.trainer.accelerator == "cpu" and launcher.gpus_per_node is not None:
        raise ConfigError(
            f"trainer.accelerator=cpu uses none of the {launcher.gpus_per_node} GPUs that hydra.launcher.gpus_per_node asks for on "
            "each node; add hydra.launcher.gpus_per_node=null"
        )
    if missing := [program for program in ("sbatch", "srun") if shutil.which(program) is None]:
        raise ConfigError(
            f"hydra/launcher={_name(cfg)} submits with {' and '.join(missing)}, not found here; run it on a login node"
        )


def _name(cfg: DictConfig) -> str:
    return str(cfg.hydra.runtime.choices.get("hydra/launcher"))
