"""What a run is made of: the recipe, what a solver gives, and the untrained model. Knows neither how it is fitted nor exported.

N = rows, D = features, K = heads
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import lightning
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from torch import Tensor, nn

from ovr.abstention.fit import AbstentionRule
from ovr.calibrator.cohort import CohortCalibrator
from ovr.core.artifact import Calibration, DecisionPolicy
from ovr.data.labels import Labels
from ovr.data.splits import Rows, Splits, standardization
from ovr.errors import ConfigError
from ovr.head.bank import HeadBank, check_heads_first
from ovr.metric.at_k import Propensity
from ovr.model import Normalizer, OvrModel
from ovr.threshold.fit import ThresholdRule
from ovr.training.feed import RowSampler
from ovr.training.plan import HeadPlan, head_plan


class Calibrator(Protocol):
    """Fits one `Calibration` a head, in column order, on logits (N, K), of all heads or of some of them."""

    kinds: tuple[str, ...]  # of the calibrations that it may give

    def fit(self, logit_NK: NDArray[Any], target_NK: NDArray[Any], mask_NK: NDArray[Any]) -> list[Calibration]: ...


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained model on the CPU, the features (N, D) float32 that it gives for rows, its macro average precision on the validation
    rows, and what the bundle's provenance tells of the fit."""

    model: OvrModel
    features: Callable[[Rows], NDArray[np.float32]]
    val_macro_ap: float
    provenance: dict[str, Any]


class Solver(Protocol):
    """Fits the model that a recipe describes; None on every rank but the first."""

    def fit(self, recipe: "Recipe", splits: Splits, run_dir: Path, *, resume: bool) -> Fitted | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train, as plain values and constructors that still lack what only the data tells."""

    normalize: str
    augment: Callable[[tuple[int, ...]], Callable[[Tensor], Tensor]] | None  # row shape -> what changes training batches
    backbone: Callable[[tuple[int, ...]], nn.Module]  # row shape -> module with num_features
    head: Callable[..., nn.Module]  # (num_features, num_heads=K)
    loss: Callable[..., nn.Module]  # (class ids, counts=ClassCounts of the training rows) -> module that returns (B, K)
    sampler: Callable[[Labels], RowSampler]  # labels of the training rows -> what draws an epoch's rows
    optimizer: Callable[..., torch.optim.Optimizer]
    head_optimizer: Callable[..., torch.optim.Optimizer] | None  # of heads that are trained in chunks; None: as the optimizer
    scheduler: Callable[..., Any]
    trainer: Callable[..., lightning.Trainer]
    callbacks: list[lightning.Callback]
    loggers: list[Any]
    calibrator: Calibrator
    cohort: CohortCalibrator  # a calibration for each value of its column, beside that of all rows
    threshold: ThresholdRule
    abstention: AbstentionRule | None  # None: the policy's own limit
    promise_share: float  # of the calibration rows, kept for rules whose promise would not hold on those of the calibrations
    solver: Solver
    policy: DecisionPolicy
    propensity: Propensity  # of the classes of multi-label rows, for PSP@k
    batch_size: int
    seed: int | None
    version: int
    reference_rows: int
    max_leakage: float | None  # share of a split's rows; None: not looked for
    calib_overlap: str  # of calibration rows that are also training rows: one of `CALIB_OVERLAPS`
    min_positives: Mapping[str, int]  # of each class, by split
    allow_small_classes: bool
    init_from: str | None  # a bundle
    frozen_heads: list[str | int]  # class ids
    backbone_grad: str | list[str | int]  # "all", "none" or class ids
    config: dict[str, Any]


def build_model(recipe: Recipe, splits: Splits) -> OvrModel:
    """Return the untrained model; its normaliser, and a backbone that has `fit`, are fitted on the training rows, and its heads
    start at their base rates.

    From even odds, the bias of a rare class has several logits to go, and meanwhile its many negatives drown what few positives
    say (Lin et al. 2017, section 4.1). On page-blocks (5 classes, 175 : 1; 4 splits) it raised the macro average precision from
    0.867 to 0.891.

    Raises:
        ConfigError: parts that cannot be made, or nothing to train.
    """
    plan = plan_of(recipe, splits)
    shift, scale = standardization(splits.train, per=recipe.normalize)
    with settings("backbone", recipe.backbone):
        backbone: Any = recipe.backbone(splits.input.shape)
        if hasattr(backbone, "fit"):  # what it takes from the rows themselves, as the normaliser does: token frequencies, say
            backbone.fit(splits.train.x)
    head: nn.Module
    with settings("head", recipe.head):
        if plan.is_plain:
            head = recipe.head(backbone.num_features, num_heads=plan.num_heads)
            check_heads_first(head, num_heads=plan.num_heads)
        else:
            head = HeadBank(
                recipe.head, backbone.num_features, num_heads=plan.num_heads, frozen=plan.frozen, to_backbone=plan.to_backbone
            )
    _start_at_base_rates(head, splits.train.labels)
    normalizer = Normalizer(torch.from_numpy(shift), torch.from_numpy(scale))
    augment = None
    if recipe.augment is not None:
        with settings("augmentation", recipe.augment):
            augment = recipe.augment(splits.input.shape)
    model = OvrModel(normalizer, backbone, head, fixed_backbone=not plan.to_backbone, augment=augment)
    if not model.trained_parameters():
        raise ConfigError(
            "nothing is left to train: every head is in frozen_heads, and the backbone "
            + ("has no weights" if plan.to_backbone else "is fixed by backbone_grad=none")
        )
    return model


def is_pretrained(backbone: nn.Module) -> bool:
    """Return whether the backbone's constructor loads its weights; such a backbone says so by an attribute `pretrained`."""
    return getattr(backbone, "pretrained", False) is True


def is_frozen(backbone: nn.Module) -> bool:
    """Return whether the backbone's own settings keep every weight and its eval mode; it says so by an attribute `frozen`."""
    return getattr(backbone, "frozen", False) is True


@torch.no_grad()
def _start_at_base_rates(head: nn.Module, labels: Labels) -> None:
    """Add each head's log odds among the training rows to its bias; a kind of head without a `bias_K` starts as it is drawn."""
    logit_K = torch.from_numpy(labels.counts().base_logit_K()).float()
    groups: list[tuple[nn.Module, Any]] = [(head, slice(None))]
    if isinstance(head, HeadBank):
        groups = [(group, head.columns[name]) for name, group in head.groups.items()]
    for group, column_G in groups:
        if isinstance(bias_G := getattr(group, "bias_K", None), torch.Tensor):
            bias_G += logit_K[column_G]


def plan_of(recipe: Recipe, splits: Splits) -> HeadPlan:
    """Return which heads are trained and which reach the backbone.

    Raises:
        ConfigError: class ids that are not there, or frozen heads with nothing to start from.
    """
    plan = head_plan(splits.taxonomy, frozen_heads=recipe.frozen_heads, backbone_grad=recipe.backbone_grad)
    if plan.frozen and recipe.init_from is None:
        raise ConfigError("frozen_heads keep the weights of an earlier bundle: add init_from=BUNDLE")
    return plan


@contextmanager
def settings(part: str, made: Callable[..., Any]) -> Iterator[None]:
    """Report what the constructor of `part` refuses among its settings, values of another type among them."""
    try:
        yield
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        settings = ", ".join(f"{name}={value!r}" for name, value in getattr(made, "keywords", {}).items())
        raise ConfigError(f"the {part} cannot be made with {settings}: {error}") from error
