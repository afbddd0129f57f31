"""`ovr train`: turns the configuration into splits and a recipe, and runs it."""

import os
import sys
from dataclasses import fields, replace
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from omegaconf import DictConfig, ListConfig, OmegaConf

from ovr.cli.instantiate import build
from ovr.errors import ConfigError

if TYPE_CHECKING:
    from ovr.core.owners import Owners
    from ovr.data.splits import Splits
    from ovr.training.recipe import Recipe


def run(cfg: DictConfig) -> float | None:
    """Train and return the best validation macro average precision (what a sweeper maximises); None on ranks but the first."""
    if not cfg.allow_targets:
        _import_lightning()
    from ovr.training.run import run_training

    recipe, splits = prepare(cfg)
    run_dir = Path(cfg.paths.run_dir).absolute()
    result = run_training(recipe, splits, run_dir, resume=cfg.resume is not None or _was_queued_again(run_dir))
    if result is not None and cfg.report:
        from ovr.training.report import write_run_report

        write_run_report(result, splits, run_dir)
    return None if result is None else result.val_macro_ap


# What torchmetrics imports wherever it is installed, for plots, texts and audio: of 5.4 s of a start's CPU time 1.9.
_UNUSED = ("matplotlib", "scipy", "transformers")


def _import_lightning() -> None:
    """Import lightning, and torchmetrics with it, as if `_UNUSED` were not installed; for runs without plug-ins that may plot."""
    import ovr.training  # noqa: F401  declares what importing lightning may need

    if "torchmetrics" in sys.modules:
        return
    from lightning_utilities.core import imports

    def version_of(name: str) -> str:
        if name in _UNUSED:
            raise PackageNotFoundError(name)
        return version(name)

    def spec_of(name: str) -> ModuleSpec | None:
        return None if name in _UNUSED else find_spec(name)

    with patch.multiple(imports, create=True, _version=version_of, find_spec=spec_of):
        import lightning  # noqa: F401
    for asked in (imports.package_available, imports.module_available):  # they remember answers
        asked.cache_clear()


def _was_queued_again(run_dir: Path) -> bool:
    """Return whether Slurm runs this job once more, after a preemption or when its time was up, and it left a checkpoint."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0 and (run_dir / "checkpoints" / "last.ckpt").is_file()


def prepare(cfg: DictConfig) -> "tuple[Recipe, Splits]":
    """Return the recipe and the splits that the configuration describes.

    Raises:
        ConfigError, DataError, TaxonomyError: what is wrong with either, before any work.
    """
    from ovr.calibrator.cohort import CohortCalibrator
    from ovr.training.recipe import Recipe

    parts = {
        "callbacks": list(build(cfg.callback, cfg.allow_targets).values()),
        "loggers": list(build(cfg.logger, cfg.allow_targets).values()),
        "policy": build(cfg.decision.policy, cfg.allow_targets),
        "normalize": cfg.data.normalize,
        "cohort": CohortCalibrator(column=None) if cfg.cohort is None else build(cfg.cohort, cfg.allow_targets),
        "config": OmegaConf.to_container(cfg, resolve=False),
    }
    for field in fields(Recipe):
        if field.name not in parts:
            value = cfg[field.name]
            if isinstance(value, ListConfig):
                value = OmegaConf.to_container(value)
            parts[field.name] = build(value, cfg.allow_targets) if isinstance(value, DictConfig) else value
    owners = owners_of(cfg.owners)
    if cfg.owners is not None:
        parts["config"]["owners"] = [" ".join(rule) for rule in owners.rules]  # the bundle keeps the lines, not where they stood
    splits = build(cfg.data.source, cfg.allow_targets)
    taxonomy = splits.taxonomy.with_settings(owners.given(splits.taxonomy)).with_settings(class_settings(cfg.taxonomy))
    return Recipe(**parts), replace(splits, taxonomy=taxonomy)


def owners_of(value: object) -> "Owners":
    """Return the owners that a file or its lines name; those of null are none.

    Raises:
        ConfigError: a file that cannot be read, or something else.
        TaxonomyError: a line that is none of owners.
    """
    from ovr.core.owners import Owners

    if isinstance(value, str):
        try:
            return Owners.of_lines(Path(value).expanduser().read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"owners={value} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if value is not None and not (isinstance(value, ListConfig | list) and all(isinstance(line, str) for line in value)):
        raise ConfigError(f"owners is {value!r}; expected a file, or lines such as ['* @core','vehicle/* @traffic']")
    return Owners.of_lines(list(value or ()))


def class_settings(cfg: object) -> dict[str, Any]:
    """Return what the configuration says of some classes, by their ids.

    Raises:
        ConfigError: it is no mapping.
    """
    if cfg is None:
        return {}
    if not isinstance(cfg, DictConfig):
        raise ConfigError(f"taxonomy is {cfg!r}; expected fields by class id, such as {{fraud: {{false_negative: 50}}}}")
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    return {str(class_id): values for class_id, values in plain.items()}
