"""Exact linear heads on a backbone that is not trained. Knows a run's recipe and splits; the mathematics is in `logistic`.

N = rows, D = features, K = heads, C = heads of one block
"""

import logging
import os
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from numpy.typing import NDArray

from ovr.core.taxonomy import Taxonomy
from ovr.data.splits import Rows, Splits
from ovr.errors import ConfigError
from ovr.head.linear import Linear
from ovr.loss.bce import Bce
from ovr.metric.classification import average_precision, mean_defined
from ovr.model import OvrModel
from ovr.sampler.shuffled import Shuffled
from ovr.training.blocks import LogitBlocks
from ovr.training.diverged import forget
from ovr.training.environment import record_environment
from ovr.training.exact_memory import check_exact_memory
from ovr.training.features import frozen_features
from ovr.training.initial import start_from_bundle
from ovr.training.large_k import sized
from ovr.training.logistic import LogisticFit, check_settings, fit_logistic_blocks
from ovr.training.recipe import Fitted, Recipe, build_model, is_pretrained, settings

log = logging.getLogger(__name__)


class Convex:
    """All heads at the optimum of L2-regularised logistic loss; the same rows and settings give the same bits."""

    def __init__(
        self, *, C: float, tol: float, max_iter: int, device: str, untrained_backbone: bool, cache_dir: str | None
    ) -> None:
        """Take the settings of `fit_logistic` and the directory that features are kept in, or None.

        Raises:
            ConfigError: a setting out of range, or a device that is not there.
        """
        check_settings(C=C, tol=tol, max_iter=max_iter)
        if device not in ("cpu", "cuda"):
            raise ConfigError(f"solver.device is {device!r}; expected 'cpu' or 'cuda'")
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("solver.device is 'cuda', but torch sees no CUDA device; use solver.device=cpu")
        self.C, self.tol, self.max_iter, self.device = C, tol, max_iter, device
        self.untrained_backbone = untrained_backbone
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()

    def fit(self, recipe: Recipe, splits: Splits, run_dir: Path, *, resume: bool) -> Fitted:
        """Return the model with every head at its optimum for the training rows; nothing is drawn but an untrained backbone.

        Raises:
            ConfigError: heads that are not linear, another loss than bce, an untrained backbone, a run to resume, several
                processes, or more heads than fit the memory; nothing is written then.
        """
        model, head, pos_weight_K = self._parts(recipe, splits, resume)
        record_environment(run_dir)
        forget(run_dir)
        fit = fit_logistic_blocks(
            self._features(model, splits.train),
            splits.train.labels.counts(),
            splits.train.labels.some_columns,
            C=self.C,
            tol=self.tol,
            max_iter=self.max_iter,
            pos_weight_K=pos_weight_K,
            device=self.device,
        )
        unsolved = _report(fit, splits.taxonomy)
        with torch.no_grad():
            head.weight_KD.copy_(torch.from_numpy(fit.weight_KD))
            # The loss is at the optimum at the logit plus log of the positive weight; see `Bce`. Log odds of counts have no weight.
            weighted_K = np.isin(fit.status, ("ok", "not_converged"))
            head.bias_K.copy_(torch.from_numpy(fit.bias_K - np.where(weighted_K, np.log(pos_weight_K), 0)))

        val_logits = LogitBlocks(head, self._features(model, splits.val), num_heads=len(splits.taxonomy))
        ap_K = [average_precision(logit_NC, *splits.val.labels.columns(columns)) for columns, logit_NC in val_logits]
        return Fitted(
            model,
            lambda rows: self._features(model, rows),
            mean_defined(np.concatenate(ap_K)),
            {"max_steps": int(fit.num_steps_K.max()), "unsolved_heads": unsolved},
        )

    def _parts(self, recipe: Recipe, splits: Splits, resume: bool) -> tuple[OvrModel, Linear, NDArray[np.float32]]:
        if resume:
            raise ConfigError("solver=convex keeps no checkpoints and cannot resume; start the run again")
        in_step = "SLURM_STEP_ID" in os.environ  # SLURM_NTASKS alone may tell of an allocation in which this is one process
        for name in ("WORLD_SIZE", *(["SLURM_NTASKS"] if in_step else [])):
            if int(os.environ.get(name, "1")) > 1:
                raise ConfigError(f"solver=convex runs in one process, got {name}={os.environ[name]}; start it alone")
        if recipe.seed is not None:
            lightning.seed_everything(recipe.seed, workers=True, verbose=False)
        if recipe.augment is not None:
            raise ConfigError("solver=convex computes the features of every row once, and augment changes rows; use solver=sgd")
        with torch.random.fork_rng(devices=[]), settings("backbone", recipe.backbone):
            backbone: Any = sized(recipe.backbone, splits.input.shape)
        check_exact_memory(
            num_heads=len(splits.taxonomy), num_rows=len(splits.train), num_features=backbone.num_features, device=self.device
        )
        model = build_model(recipe, splits)
        if not isinstance(model.head, Linear):
            raise ConfigError(f"solver=convex solves head=linear, got {type(model.head).__name__}; use solver=sgd")
        sampler = recipe.sampler(splits.train.labels)
        if not isinstance(sampler, Shuffled):
            raise ConfigError(
                f"solver=convex takes every training row once, got {type(sampler).__name__}; use sampler=shuffled or solver=sgd"
            )
        loss = recipe.loss(splits.taxonomy.ids, counts=splits.train.labels.counts())
        if not isinstance(loss, Bce):
            raise ConfigError(f"solver=convex solves loss=bce, got {type(loss).__name__}; use solver=sgd")
        if recipe.init_from is not None:
            start_from_bundle(model, Path(recipe.init_from), taxonomy=splits.taxonomy, input=splits.input, needed=())
        trained = recipe.init_from is not None or is_pretrained(model.backbone)
        num_untrained = 0 if trained else sum(parameter.numel() for parameter in model.backbone.parameters())
        if num_untrained and not self.untrained_backbone:
            raise ConfigError(
                f"solver=convex trains no backbone, and the {num_untrained} weights of {type(model.backbone).__name__} are "
                "untrained; use backbone=identity, backbone=transformer or init_from=BUNDLE, or "
                "solver.untrained_backbone=true where its constructor loads what it needs"
            )
        model.requires_grad_(False)
        return model, model.head, loss.pos_weight_K.numpy()

    def _features(self, model: OvrModel, rows: Rows) -> NDArray[np.float32]:
        return frozen_features(model, rows.x, cache_dir=self.cache_dir, device=self.device)


def _report(fit: LogisticFit, taxonomy: Taxonomy) -> dict[str, str]:
    """Log how the fit went, and return the status of each head that has one other than "ok", by class id."""
    unsolved: dict[str, str] = {spec.id: status for spec, status in zip(taxonomy, fit.status, strict=True) if status != "ok"}
    log.info("%d of %d heads solved in at most %d steps", len(taxonomy) - len(unsolved), len(taxonomy), fit.num_steps_K.max())
    for status in sorted(set(unsolved.values())):
        ids = [class_id for class_id, other in unsolved.items() if other == status]
        log.warning("fit status %r for %d heads: %s%s", status, len(ids), ", ".join(map(repr, ids[:5])), ", ..." if ids[5:] else "")
    return unsolved
