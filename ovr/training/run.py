"""One training run from splits to bundle: fit, calibrate, choose thresholds, evaluate, export.

Knows the order of the steps and which rows each may see; the steps themselves live elsewhere.

N = rows, K = heads
"""

import logging
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import lightning
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException
from numpy.typing import NDArray
from torch import nn

from ovr.calibrator.apply import calibrated_prob, scale_and_bias
from ovr.core.artifact import Calibration, DecisionPolicy
from ovr.core.bundle import ModelBundle
from ovr.data.labels import Labels
from ovr.data.splits import CalibRows, Rows, Splits, standardization
from ovr.errors import ArtifactError, ConfigError
from ovr.export.bundle import export_bundle
from ovr.head.bank import HeadBank, check_heads_first
from ovr.model import Normalizer, OvrModel
from ovr.training.checkpoint import AtomicCheckpointIO, MovedCheckpoints, read_checkpoint
from ovr.training.environment import environment, record_environment
from ovr.training.evaluate import evaluate
from ovr.training.initial import start_from_bundle
from ovr.training.module import OvrModule, RowSampler
from ovr.training.plan import HeadPlan, head_plan

log = logging.getLogger(__name__)

MONITORS = ("train/loss", "val/loss", "val/macro_ap")  # what `OvrModule` logs once an epoch
MAX_SEED = 2**32 - 1  # numpy's


class Calibrator(Protocol):
    """Fits one `Calibration` a head, in column order, on logits (N, K)."""

    def fit(self, logit_NK: NDArray[Any], target_NK: NDArray[Any], mask_NK: NDArray[Any]) -> list[Calibration]: ...


class ThresholdRule(Protocol):
    """Chooses one threshold a head on probabilities (N, K)."""

    def fit(self, prob_NK: NDArray[Any], target_NK: NDArray[Any], mask_NK: NDArray[Any]) -> NDArray[np.float64]: ...


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained model on the CPU, the logits (N, K) float32 that it gives for rows, its macro average precision on the validation
    rows, and what the bundle's provenance tells of the fit."""

    model: OvrModel
    logits: Callable[[Rows], NDArray[np.float32]]
    val_macro_ap: float
    provenance: dict[str, Any]


class Solver(Protocol):
    """Fits the model that a recipe describes; None on every rank but the first."""

    def fit(self, recipe: "Recipe", splits: Splits, run_dir: Path, *, resume: bool) -> Fitted | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train, as plain values and constructors that still lack what only the data tells."""

    normalize: str
    backbone: Callable[[tuple[int, ...]], nn.Module]  # row shape -> module with num_features
    head: Callable[..., nn.Module]  # (num_features, num_heads=K)
    loss: Callable[..., nn.Module]  # (class ids, counts=ClassCounts of the training rows) -> module that returns (B, K)
    sampler: Callable[[Labels], RowSampler]  # labels of the training rows -> what draws an epoch's rows
    optimizer: Callable[..., torch.optim.Optimizer]
    scheduler: Callable[..., Any]
    trainer: Callable[..., lightning.Trainer]
    callbacks: list[lightning.Callback]
    loggers: list[Any]
    calibrator: Calibrator
    threshold: ThresholdRule
    solver: Solver
    policy: DecisionPolicy
    batch_size: int
    seed: int | None
    version: int
    reference_rows: int
    init_from: str | None  # a bundle
    frozen_heads: list[str | int]  # class ids
    backbone_grad: str | list[str | int]  # "all", "none" or class ids
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run leaves: the bundle, the test report, torch's probabilities (N, K) float32 for the test rows, the best validation
    macro average precision, the largest differences between torch and what was exported, and seconds a stage."""

    bundle: ModelBundle
    report: dict[str, Any]
    test_prob_NK: NDArray[np.float32]
    val_macro_ap: float
    max_abs_diff: dict[str, float]
    seconds: dict[str, float]


class Sgd:
    """Trains backbone and heads in minibatches, as the recipe's optimizer, scheduler, trainer and callbacks say; keeps the epoch
    with the best validation average precision."""

    def fit(self, recipe: Recipe, splits: Splits, run_dir: Path, *, resume: bool) -> Fitted | None:
        """Return the best epoch's model."""
        trainer = _fit(recipe, splits, run_dir, resume)
        if not trainer.is_global_zero:
            return None
        best = read_checkpoint(run_dir / "checkpoints" / "best.ckpt")
        model = build_model(recipe, splits)
        model.load_state_dict(
            {key.removeprefix("model."): value for key, value in best["state_dict"].items() if key.startswith("model.")}
        )
        scores = [getattr(callback, "best_model_score", None) for callback in trainer.checkpoint_callbacks]
        return Fitted(
            model,
            lambda rows: logits(model, rows, batch_size=recipe.batch_size),
            next((float(value) for value in scores if value is not None), math.nan),
            {"best_epoch": int(best["epoch"])},
        )


def run_training(recipe: Recipe, splits: Splits, run_dir: Path, *, resume: bool = False) -> TrainResult | None:
    """Train into `run_dir` and return the result; None on every rank but the first.

    With `resume`, the fit goes on from `run_dir`/checkpoints/last.ckpt and gives what an uninterrupted run gives.

    Raises:
        ConfigError: a setting that cannot be used, or training that diverges.
        ArtifactError: nothing to resume, the run has its bundle already, or the bundle to start from is damaged.
        KeyboardInterrupt: SIGINT during the fit, which can be resumed; SystemExit(143): SIGTERM likewise.
    """
    _check(recipe, run_dir, resume)
    seconds: dict[str, float] = {}
    with _timed(seconds, "fit"):
        fitted = recipe.solver.fit(recipe, splits, run_dir, resume=resume)
    if fitted is None:
        return None
    with _timed(seconds, "calibrate"):
        calib_logit_NK = fitted.logits(splits.calib)
        calibrations, threshold_K = _calibrate(recipe, calib_logit_NK, splits.calib)
    with _timed(seconds, "evaluate"):
        test_logit_NK = fitted.logits(splits.test)
        report = evaluate(
            test_logit_NK,
            *splits.test.labels.dense(),
            taxonomy=splits.taxonomy,
            calibrations=calibrations,
            threshold_K=threshold_K,
            policy=recipe.policy,
        )
    with _timed(seconds, "export"):
        target_NK, mask_NK = splits.calib.labels.dense()
        bundle, max_abs_diff = export_bundle(
            run_dir / "bundle",
            model=fitted.model,
            taxonomy=splits.taxonomy,
            input=splits.input,
            policy=recipe.policy,
            calibrations=calibrations,
            thresholds=threshold_K.tolist(),
            versions=[recipe.version] * len(splits.taxonomy),
            metrics=[{"test": row} for row in report["classes"]],
            reference_rows=splits.calib.x[: recipe.reference_rows],
            calibration_arrays={"logit": calib_logit_NK, "target": target_NK, "mask": mask_NK},
            report=report,
            provenance={
                "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "environment": environment(),
                "num_rows": {name: len(getattr(splits, name)) for name in ("train", "val", "calib", "test")},
                **fitted.provenance,
                "config": recipe.config,
            },
        )
    log.info("bundle %s with %d heads in %s", bundle.bundle_sha256[:12], len(bundle.heads), bundle.path)
    return TrainResult(bundle, report, _prob(test_logit_NK, calibrations), fitted.val_macro_ap, max_abs_diff, seconds)


def build_model(recipe: Recipe, splits: Splits) -> OvrModel:
    """Return the untrained model; its normaliser is fitted on the training rows, and its heads start at their base rates.

    From even odds, the bias of a rare class has several logits to go, and meanwhile its many negatives drown what few positives
    say (Lin et al. 2017, section 4.1). On page-blocks (5 classes, 175 : 1; 4 splits) it raised the macro average precision from
    0.867 to 0.891.

    Raises:
        ConfigError: parts that cannot be made, or nothing to train.
    """
    plan = _plan(recipe, splits)
    shift, scale = standardization(splits.train, per=recipe.normalize)
    with _settings("backbone", recipe.backbone):
        backbone: Any = recipe.backbone(splits.input.shape)
    head: nn.Module
    with _settings("head", recipe.head):
        if plan.is_plain:
            head = recipe.head(backbone.num_features, num_heads=plan.num_heads)
            check_heads_first(head, num_heads=plan.num_heads)
        else:
            head = HeadBank(
                recipe.head, backbone.num_features, num_heads=plan.num_heads, frozen=plan.frozen, to_backbone=plan.to_backbone
            )
    _start_at_base_rates(head, splits.train.labels)
    normalizer = Normalizer(torch.from_numpy(shift), torch.from_numpy(scale))
    model = OvrModel(normalizer, backbone, head, fixed_backbone=not plan.to_backbone)
    if not model.trained_parameters():
        raise ConfigError(
            "nothing is left to train: every head is in frozen_heads, and the backbone "
            + ("has no weights" if plan.to_backbone else "is fixed by backbone_grad=none")
        )
    return model


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


def logits(model: OvrModel, rows: Rows, *, batch_size: int) -> NDArray[np.float32]:
    """Return the model's logits (N, K) float32, in eval mode, on the device that the model is on."""
    device = next(iter(model.state_dict().values())).device
    model.eval()
    with torch.inference_mode():
        parts = [
            model(torch.from_numpy(rows.x[start : start + batch_size]).to(device)).float().cpu().numpy()
            for start in range(0, len(rows), batch_size)
        ]
    return np.concatenate(parts)


def _fit(recipe: Recipe, splits: Splits, run_dir: Path, resume: bool) -> lightning.Trainer:
    # Lightning tells of devices and tips at INFO; a run's story is told by ovr.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    if recipe.seed is not None:
        lightning.seed_everything(recipe.seed, workers=True, verbose=False)
    with _settings("loss", recipe.loss):
        loss = recipe.loss(splits.taxonomy.ids, counts=splits.train.labels.counts())
    with _settings("sampler", recipe.sampler):
        sampler = recipe.sampler(splits.train.labels)
    model, plan = build_model(recipe, splits), _plan(recipe, splits)
    if recipe.init_from is not None and not resume:  # a resumed run has its weights in its checkpoint
        needed = tuple(splits.taxonomy[k].id for k in plan.frozen)
        start_from_bundle(model, Path(recipe.init_from), taxonomy=splits.taxonomy, input=splits.input, needed=needed)
    elif model.fixed_backbone and any(True for _ in model.backbone.parameters()) and not resume:
        log.warning("backbone_grad=none without init_from: the backbone keeps the weights that were drawn for it")
    module = OvrModule(
        model,
        loss,
        splits=splits,
        plan=plan,
        sampler=sampler,
        optimizer=recipe.optimizer,
        scheduler=recipe.scheduler,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
    )
    with _settings("optimizer", recipe.optimizer):  # made for nothing: the fit makes its own when it is too late for a clear error
        optimizer = recipe.optimizer(model.trained_parameters())
    with _settings("scheduler", recipe.scheduler):
        recipe.scheduler(optimizer)
    with _settings("trainer", recipe.trainer):
        trainer = recipe.trainer(
            callbacks=[*recipe.callbacks, MovedCheckpoints()],
            logger=recipe.loggers,
            plugins=[AtomicCheckpointIO()],
            default_root_dir=run_dir,
            use_distributed_sampler=False,  # `loader` shares the rows among the ranks itself, as a function of (seed, epoch)
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
    if not isinstance(trainer.max_epochs, int) or trainer.max_epochs < 1:
        raise ConfigError(f"trainer.max_epochs must be a whole number of at least 1, got {trainer.max_epochs}")
    if len(splits.val) < trainer.world_size:
        raise ConfigError(
            f"{trainer.world_size} processes share the {len(splits.val)} rows of the val split, and each needs one; "
            "use fewer trainer.devices or more validation rows"
        )
    if trainer.is_global_zero:
        record_environment(run_dir)
    with warnings.catch_warnings(), _interruptible(run_dir):
        # Rows lie in memory: worker processes would only copy them.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
        warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # a fixed backbone is, on purpose
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")  # Lightning's own, of torch's pytree
        trainer.fit(module, ckpt_path=run_dir / "checkpoints" / "last.ckpt" if resume else None, weights_only=True)
    return trainer


def _calibrate(recipe: Recipe, logit_NK: NDArray[Any], rows: CalibRows) -> tuple[list[Calibration], NDArray[np.float64]]:
    target_NK, mask_NK = rows.labels.dense()
    calibrations = recipe.calibrator.fit(logit_NK, target_NK, mask_NK)
    for status in sorted({c.status for c in calibrations} - {"ok"}):
        log.warning(
            "calibration status %r for %d of %d heads", status, sum(c.status == status for c in calibrations), len(calibrations)
        )
    return calibrations, recipe.threshold.fit(_prob(logit_NK, calibrations), target_NK, mask_NK)


def _prob(logit_NK: NDArray[Any], calibrations: list[Calibration]) -> NDArray[np.float32]:
    return calibrated_prob(logit_NK, *scale_and_bias(calibrations)).astype(np.float32)


def _plan(recipe: Recipe, splits: Splits) -> HeadPlan:
    plan = head_plan(splits.taxonomy, frozen_heads=recipe.frozen_heads, backbone_grad=recipe.backbone_grad)
    if plan.frozen and recipe.init_from is None:
        raise ConfigError("frozen_heads keep the weights of an earlier bundle: add init_from=BUNDLE")
    return plan


def _check(recipe: Recipe, run_dir: Path, resume: bool) -> None:
    for name, value, least in (
        ("batch_size", recipe.batch_size, 1),
        ("version", recipe.version, 1),
        ("reference_rows", recipe.reference_rows, 1),
        ("seed", recipe.seed, 0),
    ):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if recipe.seed is not None and recipe.seed > MAX_SEED:
        raise ConfigError(f"seed must be at most {MAX_SEED}, got {recipe.seed}")
    saved = {f"{getattr(callback, 'dirpath', '')}/{getattr(callback, 'filename', '')}" for callback in recipe.callbacks}
    if not {str(run_dir / "checkpoints" / name) for name in ("best", "last")} <= saved:
        raise ConfigError(
            'the callbacks must keep checkpoints with filename "best" and "last" in ${paths.run_dir}/checkpoints, '
            "as conf/callback/default.yaml does"
        )
    for callback in recipe.callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and monitor not in MONITORS:
            raise ConfigError(f"a callback monitors {monitor!r}; expected one of {', '.join(MONITORS)}")
    if (run_dir / "bundle").exists():
        raise ArtifactError(f"{run_dir} is a finished run: it has its bundle; start a new run instead")
    if resume and not (run_dir / "checkpoints" / "last.ckpt").is_file():
        raise ArtifactError(f"{run_dir} has no checkpoints/last.ckpt to resume from; start a new run instead")


@contextmanager
def _settings(part: str, made: Callable[..., Any]) -> Iterator[None]:
    """Report what the constructor of `part` refuses among its settings, values of another type among them."""
    try:
        yield
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        settings = ", ".join(f"{name}={value!r}" for name, value in getattr(made, "keywords", {}).items())
        raise ConfigError(f"the {part} cannot be made with {settings}: {error}") from error


@contextmanager
def _interruptible(run_dir: Path) -> Iterator[None]:
    """Let signals come out as what they are: Lightning exits without a word, with status 0 after SIGTERM, and ignores SIGINT on."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stopped:
        by_sigint = isinstance(stopped.__context__, KeyboardInterrupt)
        if not by_sigint and not isinstance(stopped, SIGTERMException):
            raise
        if (run_dir / "checkpoints" / "last.ckpt").is_file():
            log.warning("stopped by %s; resume=%s goes on from the last checkpoint", "SIGINT" if by_sigint else "SIGTERM", run_dir)
        if not by_sigint:
            raise SystemExit(128 + signal.SIGTERM) from None  # what shells report of a process that SIGTERM ended
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    log.info("%s", stage)
    began = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - began, 3)
