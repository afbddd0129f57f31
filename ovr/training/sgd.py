"""The solver that trains backbone and heads in minibatches, through Lightning. Knows nothing of calibration or export.

N = rows, D = features
"""

import gc
import logging
import math
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from numpy.typing import NDArray

from ovr.core.scale import LARGE_K
from ovr.core.schema import InputSchema
from ovr.data.lazy import Inputs
from ovr.data.splits import Rows, Splits, TrainRows, ValRows
from ovr.errors import ConfigError
from ovr.model import OvrModel
from ovr.training.checkpoint import AtomicCheckpointIO, MovedCheckpoints, read_checkpoint
from ovr.training.chunked import ChunkedModule
from ovr.training.compiled import check_compile
from ovr.training.diverged import forget
from ovr.training.environment import record_environment
from ovr.training.features import has_frozen_part, rows_on_features, without_frozen_part
from ovr.training.feed import Feed
from ovr.training.fsdp import check_fsdp
from ovr.training.initial import start_from_bundle
from ovr.training.large_k import check_large_k, chunked_module, keep_in_bfloat16, memory_of
from ovr.training.memory import check_memory
from ovr.training.module import OvrModule
from ovr.training.plan import HeadPlan
from ovr.training.recipe import Fitted, Recipe, build_model, is_pretrained, plan_of, settings

log = logging.getLogger(__name__)


class Sgd:
    """Trains backbone and heads in minibatches, as the recipe's optimizer, scheduler, trainer and callbacks say; keeps the epoch
    with the best validation average precision."""

    def __init__(
        self,
        *,
        head_step: str,
        chunk_heads: int | None,
        head_dtype: str,
        loss_every: int,
        triton_kernels: bool,
        compile: bool,
        cache_features: bool,
        cache_dir: str | None,
    ) -> None:
        """Take how heads are stepped: all at once or in chunks ("auto" decides by their number), and the settings of chunks;
        whether the step of all at once is compiled; whether the features of a frozen backbone are computed once, and the directory
        that they are kept in, or None.

        Raises:
            ConfigError: a setting out of range.
        """
        for name, value, expected in (
            ("head_step", head_step, ("auto", "dense", "chunked")),
            ("head_dtype", head_dtype, ("float32", "bfloat16")),
        ):
            if value not in expected:
                raise ConfigError(f"solver.{name} is {value!r}; expected {' or '.join(map(repr, expected))}")
        for name, number in (("loss_every", loss_every), ("chunk_heads", 1 if chunk_heads is None else chunk_heads)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ConfigError(f"solver.{name} must be a whole number of at least 1, got {number!r}")
        if not isinstance(triton_kernels, bool):
            raise ConfigError(f"solver.triton_kernels must be true or false, got {triton_kernels!r}")
        self.head_step, self.chunk_heads, self.loss_every, self.triton_kernels = head_step, chunk_heads, loss_every, triton_kernels
        self.head_dtype: torch.dtype = getattr(torch, head_dtype)
        for name, flag in (("compile", compile), ("cache_features", cache_features)):
            if not isinstance(flag, bool):
                raise ConfigError(f"solver.{name} must be true or false, got {flag!r}")
        self.compile, self.cache_features = compile, cache_features
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()

    def fit(self, recipe: Recipe, splits: Splits, run_dir: Path, *, resume: bool) -> Fitted | None:
        """Return the best epoch's model.

        Raises:
            ConfigError: a setting that cannot be used, heads that do not fit the memory.
            TrainingError: NaN or infinity in a step; the last checkpoint is good.
        """
        chunked = self.head_step == "chunked" or (self.head_step == "auto" and len(splits.taxonomy) >= LARGE_K)
        fit = self._fit(recipe, splits, run_dir, resume, chunked)
        if fit is None:
            return None
        score, device = fit
        gc.collect()  # trainer and module hold each other, and the heads
        best = read_checkpoint(run_dir / "checkpoints" / "best.ckpt")
        model = build_model(recipe, splits)
        if chunked and self.head_dtype == torch.bfloat16:
            keep_in_bfloat16(model.head)
        weights = {key.removeprefix("model."): value for key, value in best["state_dict"].items() if key.startswith("model.")}
        provenance = {"best_epoch": int(best["epoch"])}
        if not self._on_features(model):
            model.load_state_dict(weights)
            return Fitted(model, lambda rows: features(model, rows.x, batch_size=recipe.batch_size), score, provenance)
        if recipe.init_from is not None:
            start_from_bundle(model, Path(recipe.init_from), taxonomy=splits.taxonomy, input=splits.input, needed=())
        rest = without_frozen_part(model, splits.input)  # whose weights are the model's own
        rest.load_state_dict(weights)

        def of_rows(rows: Rows) -> NDArray[np.float32]:
            x = rows_on_features(model, rows.x, cache_dir=self.cache_dir, device=device)
            return features(rest, x, batch_size=recipe.batch_size)

        return Fitted(model, of_rows, score, provenance)

    def _on_features(self, model: OvrModel) -> bool:
        """Return whether features of a frozen part are computed once, and a checkpoint holds the weights of the others alone."""
        return self.cache_features and has_frozen_part(model.backbone)

    def _fit(self, recipe: Recipe, splits: Splits, run_dir: Path, resume: bool, chunked: bool) -> tuple[float, str] | None:
        """Fit, and return the best score and the device of this process; None on every rank but the first."""
        # Lightning tells of devices and tips at INFO; a run's story is told by ovr.
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        if recipe.seed is not None:
            lightning.seed_everything(recipe.seed, workers=True, verbose=False)
        with settings("loss", recipe.loss):
            loss = recipe.loss(splits.taxonomy.ids, counts=splits.train.labels.counts())
        with settings("sampler", recipe.sampler):
            sampler = recipe.sampler(splits.train.labels)
        plan, trainer = plan_of(recipe, splits), _trainer(recipe, splits, run_dir, chunked)
        in_bfloat16 = self.head_dtype == torch.bfloat16
        if plan.frozen and trainer.precision in ("bf16-true", "16-true"):
            raise ConfigError(f"trainer.precision={trainer.precision} rounds every weight, and frozen_heads keep every bit")
        check_fsdp(recipe, trainer)
        if self.compile and chunked:
            raise ConfigError(
                f"solver.compile=true is for heads that are trained at once, and these {plan.num_heads} are trained in chunks, "
                "whose step has code of its own; use solver.compile=false, or solver.head_step=dense"
            )
        if self.compile:
            check_compile(trainer)
        if chunked:
            check_large_k(recipe, trainer, loss, plan, in_bfloat16=in_bfloat16)
        elif self.chunk_heads or in_bfloat16 or self.loss_every != 1 or self.triton_kernels or recipe.head_optimizer is not None:
            raise ConfigError(
                "solver.chunk_heads, solver.head_dtype, solver.loss_every, solver.triton_kernels and head_optimizer are for heads "
                f"that are trained in chunks, and these {plan.num_heads} are trained at once; add solver.head_step=chunked"
            )
        check_memory(
            memory_of(recipe, splits, loss, plan, trainer, chunked=chunked, chunk_heads=self.chunk_heads, in_bfloat16=in_bfloat16),
            trainer.strategy.root_device,
        )
        model = _start(recipe, splits, plan, resume)
        device = str(trainer.strategy.root_device)
        if self._on_features(model):
            x_train, x_val = (
                rows_on_features(model, rows.x, cache_dir=self.cache_dir, device=device) for rows in (splits.train, splits.val)
            )
            model = without_frozen_part(model, splits.input)
            train, val = TrainRows(x_train, splits.train.labels), ValRows(x_val, splits.val.labels)
            splits = replace(splits, input=InputSchema(x_train.shape[1:]), train=train, val=val)
        feed = Feed(splits, sampler, batch_size=recipe.batch_size, seed=recipe.seed)
        with settings(
            "optimizer", recipe.optimizer
        ):  # made for nothing: the fit makes its own when it is too late for a clear error
            optimizer = recipe.optimizer(model.trained_parameters())
        with settings("scheduler", recipe.scheduler):
            recipe.scheduler(optimizer)
        module: OvrModule | ChunkedModule
        if chunked:
            if in_bfloat16:
                keep_in_bfloat16(model.head)
            module = chunked_module(
                recipe,
                model,
                loss,
                feed,
                plan,
                trainer,
                chunk_heads=self.chunk_heads,
                loss_every=self.loss_every,
                triton_kernels=self.triton_kernels,
            )
        else:
            module = OvrModule(
                model, loss, feed=feed, plan=plan, optimizer=recipe.optimizer, scheduler=recipe.scheduler, compile=self.compile
            )
        if trainer.is_global_zero:
            record_environment(run_dir)
            forget(run_dir)
        with warnings.catch_warnings(), _interruptible(run_dir):
            # Rows lie in memory: worker processes would only copy them.
            warnings.filterwarnings("ignore", ".*does not have many workers.*")
            warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
            warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # a fixed backbone is, on purpose
            warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")  # Lightning's own, of torch's pytree
            trainer.fit(module, ckpt_path=run_dir / "checkpoints" / "last.ckpt" if resume else None, weights_only=True)
        for callback in recipe.callbacks:  # to which Lightning gave methods of the module
            vars(callback).pop("log", None)
            vars(callback).pop("log_dict", None)
        if not trainer.is_global_zero:
            return None
        scores = [getattr(callback, "best_model_score", None) for callback in trainer.checkpoint_callbacks]
        return next((float(value) for value in scores if value is not None), math.nan), device


def features(model: OvrModel, x: Inputs, *, batch_size: int) -> NDArray[np.float32]:
    """Return the model's features (N, D) float32 of raw rows, in eval mode, on the device that the model is on."""
    device = next(iter(model.state_dict().values())).device
    z_ND = np.empty((len(x), int(model.backbone.num_features)), np.float32)  # type: ignore[arg-type]  # every backbone has it
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(x), batch_size):
            here = slice(start, start + batch_size)
            z_ND[here] = model.features(torch.from_numpy(x[here]).to(device)).float().cpu().numpy()
    return z_ND


def _trainer(recipe: Recipe, splits: Splits, run_dir: Path, chunked: bool) -> lightning.Trainer:
    # Under inference mode autograd cannot be used, which the heads' step does for some kinds.
    more = {"inference_mode": False} if chunked else {}
    with settings("trainer", recipe.trainer):
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
            **more,
        )
    if not isinstance(trainer.max_epochs, int) or trainer.max_epochs < 1:
        raise ConfigError(f"trainer.max_epochs must be a whole number of at least 1, got {trainer.max_epochs}")
    if (trainer.gradient_clip_val or 0) < 0:
        raise ConfigError(f"trainer.gradient_clip_val must be at least 0, got {trainer.gradient_clip_val}")
    if len(splits.val) < trainer.world_size:
        raise ConfigError(
            f"{trainer.world_size} processes share the {len(splits.val)} rows of the val split, and each needs one; "
            "use fewer trainer.devices or more validation rows"
        )
    return trainer


def _start(recipe: Recipe, splits: Splits, plan: HeadPlan, resume: bool) -> OvrModel:
    """Return the model that the fit starts with."""
    model = build_model(recipe, splits)
    # A resumed run has its weights in its checkpoint, but for those of a frozen backbone.
    if recipe.init_from is not None and (not resume or has_frozen_part(model.backbone)):
        needed = tuple(splits.taxonomy[k].id for k in plan.frozen)
        start_from_bundle(model, Path(recipe.init_from), taxonomy=splits.taxonomy, input=splits.input, needed=needed)
    elif (
        model.fixed_backbone and any(True for _ in model.backbone.parameters()) and not resume and not is_pretrained(model.backbone)
    ):
        log.warning("backbone_grad=none without init_from: the backbone keeps the weights that were drawn for it")
    return model


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
