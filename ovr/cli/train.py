"""`ovr train`: turns the configuration into splits and a recipe, and runs it."""

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from ovr.cli.instantiate import build
from ovr.errors import ConfigError

if TYPE_CHECKING:
    from ovr.data.splits import Splits
    from ovr.training.recipe import Recipe


def run(cfg: DictConfig) -> float | None:
    """Train and return the best validation macro average precision (what a sweeper maximises); None on ranks but the first."""
    from ovr.training.run import run_training

    recipe, splits = prepare(cfg)
    run_dir = Path(cfg.paths.run_dir).absolute()
    result = run_training(recipe, splits, run_dir, resume=cfg.resume is not None or _was_queued_again(run_dir))
    if result is not None and cfg.report:
        from ovr.training.report import write_run_report

        write_run_report(result, splits, run_dir)
    return None if result is None else result.val_macro_ap


def _was_queued_again(run_dir: Path) -> bool:
    """Return whether Slurm runs this job once more, after a preemption or when its time was up, and it left a checkpoint."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0 and (run_dir / "checkpoints" / "last.ckpt").is_file()


def prepare(cfg: DictConfig) -> "tuple[Recipe, Splits]":
    """Return the recipe and the splits that the configuration describes.

    Raises:
        ConfigError, DataError, TaxonomyError: what is wrong with either, before any work.
    """
    from ovr.training.recipe import Recipe

    parts = {
        "callbacks": list(build(cfg.callback, cfg.allow_targets).values()),
        "loggers": list(build(cfg.logger, cfg.allow_targets).values()),
        "policy": build(cfg.decision.policy, cfg.allow_targets),
        "normalize": cfg.data.normalize,
        "config": OmegaConf.to_container(cfg, resolve=False),
    }
    for field in fields(Recipe):
        if field.name not in parts:
            value = cfg[field.name]
            if isinstance(value, ListConfig):
                value = OmegaConf.to_container(value)
            parts[field.name] = build(value, cfg.allow_targets) if isinstance(value, DictConfig) else value
    splits = build(cfg.data.source, cfg.allow_targets)
    return Recipe(**parts), replace(splits, taxonomy=splits.taxonomy.with_settings(class_settings(cfg.taxonomy)))


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
