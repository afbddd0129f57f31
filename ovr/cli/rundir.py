"""The run directory that Hydra makes for a job: going on in an old one, and removing a new one that was never used."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import read_write

from ovr.cli.overrides import check_yaml_files
from ovr.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The run directory of one job, and which directories on the way to it were there before."""

    path: Path
    overrides: tuple[str, ...]  # of this one job
    multirun: bool
    existed_before: frozenset[Path]

    @classmethod
    def current(cls, *, existed_before: frozenset[Path]) -> "RunDirectory":
        """Return the directory of the job that Hydra is running."""
        hydra = HydraConfig.get()
        return cls(
            path=Path(hydra.runtime.output_dir),
            overrides=tuple(hydra.overrides.task),
            multirun=hydra.mode == RunMode.MULTIRUN,
            existed_before=existed_before,
        )

    def single_run_args(self, args: Sequence[str], config_dir: str | None) -> list[str]:
        """Return arguments that run this job alone: `args` themselves, or this job's share of a multirun."""
        if not self.multirun:
            return list(args)
        return [*(["--config-dir", config_dir] if config_dir else []), *self.overrides]

    def discard_if_unused(self) -> None:
        """Remove the directory if this process made it and it holds nothing but Hydra's record and log; then its empty parents."""
        if self.path in self.existed_before or not self.path.is_dir():
            return
        if any(entry.name != ".hydra" and entry.suffix != ".log" for entry in self.path.iterdir()):
            return
        shutil.rmtree(self.path)
        for parent in self.path.parents:
            if parent in self.existed_before:
                return
            left = list(parent.iterdir())
            if self.multirun and [entry.name for entry in left] == ["multirun.yaml"]:
                left[0].unlink()
            elif left:
                return
            parent.rmdir()


def point_run_dir_here() -> None:
    """Make `hydra.run.dir` the job's own directory, for launchers that pass it on to the processes they start."""
    hydra: Any = HydraConfig.get()
    with read_write(hydra.run):
        hydra.run.dir = hydra.runtime.output_dir


def resumed(args: Sequence[str]) -> list[str]:
    """Return `args` so that `resume=RUN_DIR` takes its configuration from RUN_DIR and runs there; others come back as they are.

    The configuration of the first run stays as it is in `.hydra/`; that of the resumed run is kept in `.hydra/resumed/`.
    Applying it again to what a launcher appended to the same arguments gives the same run.

    Raises:
        ConfigError: RUN_DIR is no run directory, a multirun, or a group option that a saved configuration cannot switch.
    """
    try:
        given = {o.key_or_group: o for o in OverridesParser.create().parse_overrides([a for a in args if _is_override(a)])}
    except HydraException:
        return list(args)  # reported with all other overrides
    resume = given.get("resume")
    if resume is None or resume.value() is None:
        return list(args)
    if resume.is_sweep_override() or {"-m", "--multirun"} & set(args):
        raise ConfigError("resume= continues one run and cannot be combined with multirun; resume each run on its own")
    run_dir = Path(str(resume.value())).absolute()
    record = run_dir / ".hydra"
    if not (record / "config.yaml").is_file():
        raise ConfigError(f"resume={resume.value()} is not a run directory: it has no .hydra/config.yaml")
    check_yaml_files(record)
    saved = yaml.safe_load((record / "config.yaml").read_text(encoding="utf-8"))
    if not isinstance(saved, dict):
        raise ConfigError(f"{record / 'config.yaml'} holds no configuration")
    for key, override in given.items():
        if isinstance(saved.get(key), dict) and not isinstance(override.value(), dict):
            example = f"{key}.{next(iter(saved[key]))}=..."
            raise ConfigError(f"{override.input_line}: a resumed run keeps its {key}; change single values, such as {example}")
    quoted = str(run_dir).replace("\\", "\\\\").replace('"', '\\"')
    place = [f'hydra.run.dir="{quoted}"', "hydra.output_subdir=.hydra/resumed"]
    return ["--config-path", str(record), "--config-name", "config", *place, *args]


def _is_override(arg: str) -> bool:
    return "=" in arg and not arg.startswith("-")
