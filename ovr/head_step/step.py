"""One training step of K heads in bounded memory: a chunk of heads at a time is scored, differentiated and updated in place.

Neither logits nor targets (B, K) nor the gradient of the weights (K, D) is ever held. No term of the loss joins two heads, so a
chunk's gradient is known once its logits are: there is no second pass. Knows one process and one device, and nothing of backbones,
epochs or files. Updating in place rules out accumulated gradients, a norm over all heads and scaled losses; clipping each head by
its own norm stays exact.

B = batch, D = features, K = heads, G = heads of one group, C = heads of a chunk
"""

import copy
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ovr.errors import ConfigError, OvrError
from ovr.head.bank import clip_by_head
from ovr.head.linear import Linear
from ovr.head_step.chunkable import MakeOptimizer, StateTable, check_loss, loss_and_grad, loss_of, make_optimizer, scalar_device
from ovr.head_step.fused import FusedStep, Kernels, check_kernels
from ovr.head_step.groups import Chunk, Group, groups_of
from ovr.head_step.rounding import round_stochastically
from ovr.head_step.targets import SparseTargets
from ovr.loss.bce import Bce


class NonFiniteStep(OvrError):
    """NaN or infinity in the logits, the loss or the gradient of the heads in `columns`."""

    def __init__(self, columns: list[int]) -> None:
        more = f" and {len(columns) - 10} more" if len(columns) > 10 else ""
        super().__init__(f"NaN or infinity in the step of the heads in columns {columns[:10]}{more}; expected finite logits")
        self.columns = columns


class StepResult(NamedTuple):
    """The loss before the update, a float64 scalar, None if not asked for; its gradient (B, D), None if no head passes one on."""

    loss: Tensor | None
    grad_z_BD: Tensor | None


class HeadStep:
    """Trains K heads in place. To rounding, the size of the chunks does not matter."""

    def __init__(
        self,
        heads: nn.Module,
        loss: nn.Module,
        optimizer: MakeOptimizer,
        *,
        chunk_heads: int | None = None,
        max_norm: float | None = None,
        compute_dtype: torch.dtype = torch.float32,
        log_odds_shift_K: Tensor | None = None,
        first_column: int = 0,
        seed: int | None = None,
        triton_kernels: bool = False,
    ) -> None:
        """Take heads, on the device that they stay on, and the loss that they are trained with.

        Args:
            heads: K heads of a kind, or a bank of them. Weights in bfloat16 are rounded stochastically after each step. Autograd
                sees none of them from now on.
            loss: as `check_loss` demands, on the same device.
            optimizer: makes one that `make_optimizer` accepts; `self.optimizer` may be given to a scheduler.
            chunk_heads: C; None takes what fits the cache.
            max_norm: largest Euclidean norm of one head's gradient; None clips none.
            compute_dtype: of the matrix products of linear heads, float32 or bfloat16. Loss and update are never below float32.
            log_odds_shift_K: added to the logits in a step, but not in `true_loss`; of as many heads as the loss.
            first_column: the column of the loss that the first of `heads` has.
            seed: of the stochastic rounding; None draws one.

        Raises:
            ConfigError: a part that cannot be used in chunks, by name.
        """
        if chunk_heads is not None and (not isinstance(chunk_heads, int) or chunk_heads < 1):
            raise ConfigError(f"chunk_heads must be a whole number above 0, got {chunk_heads!r}")
        check_loss(loss)
        self.loss_module, self.log_odds_shift_K, self.first_column = loss, log_odds_shift_K, first_column
        self.chunk_heads, self.max_norm, self.compute_dtype = chunk_heads, max_norm, compute_dtype
        heads.requires_grad_(False)
        self.groups = list(groups_of(heads))
        self.num_heads = sum(group.size for group in self.groups)
        shells = [shell for group in self.groups if group.trained for shell in group.shells.values()]
        device = next(iter(heads.state_dict().values())).device
        # Where every head is frozen, one that is never stepped.
        self.optimizer = make_optimizer(optimizer, shells or [nn.Parameter(torch.zeros(1, device=device))])
        for group in self.groups:
            for name, value in group.heads.named_parameters():  # of a frozen group there are none
                group.tables[name] = StateTable(len(value), self.optimizer.state.get(group.shells[name], {}))
        if device.type == "cpu":
            _keep_freed_memory()
        self.generator = torch.Generator(device)
        self.generator.manual_seed(torch.seed() if seed is None else seed)

        self.fused: dict[str, FusedStep] = {}  # by group: what makes its steps instead
        if triton_kernels:
            for group in self.groups:
                if group.trained:
                    check_kernels(group.heads, loss, self.optimizer, max_norm=max_norm, compute_dtype=compute_dtype)
            from ovr.head_step import kernels  # needs Triton-lang

            self.fuse(kernels)

    def fuse(self, kernels: Kernels, **settings: Any) -> None:
        """Let the trained groups be stepped by `kernels`, or by their twins; all must be linear heads with `Bce`."""
        for group in self.groups:
            if not group.trained:
                continue
            assert isinstance(group.heads, Linear)
            assert isinstance(self.loss_module, Bce)
            columns = slice(0, group.size) if group.column_G is None else group.column_G
            of_loss = _moved(columns, self.first_column)
            shift_G = self.loss_module.log_weight_K[of_loss]
            if self.log_odds_shift_K is not None:
                shift_G = shift_G + self.log_odds_shift_K[of_loss]
            self.fused[group.prefix] = FusedStep(
                group.heads,
                self.optimizer,
                group.tables,
                pos_weight_G=self.loss_module.pos_weight_K[of_loss],
                shift_G=shift_G,
                generator=self.generator,
                kernels=kernels,
                **{"chunk_heads": self.chunk_heads, **settings},
            )

    def __call__(self, z_BD: Tensor, targets: SparseTargets, *, num_rows: int, with_loss: bool = True) -> StepResult:
        """Make one step on features (B, D), where the loss is the sum over rows and known heads, divided by `num_rows`.

        Raises:
            NonFiniteStep: with all such heads; on a CPU no weight is written from their first chunk on, on a GPU the step is done.
        """
        return self._run(z_BD, targets, num_rows=num_rows, with_loss=with_loss, update=True)

    def true_loss(self, z_BD: Tensor, targets: SparseTargets, *, num_rows: int) -> Tensor:
        """Return the loss of features (B, D), a float64 scalar, in eval mode and without the shift of training; nothing changes."""
        was_training = self.loss_module.training
        self.loss_module.eval()
        try:
            loss = self._run(z_BD, targets, num_rows=num_rows, with_loss=True, update=False).loss
        finally:
            self.loss_module.train(was_training)
        assert loss is not None
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's settings and its state by weight: of all K heads at once, so the same for any chunk size."""
        tables = {group.prefix + name: table for group in self.groups for name, table in group.tables.items()}
        return {
            "settings": {key: value for key, value in self.optimizer.param_groups[0].items() if key != "params"},
            "states": {name: table.state_dict() for name, table in tables.items()},
            "generator": self.generator.get_state(),
            "generator_device": self.generator.device.type,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state that `state_dict` gave of the same heads and optimizer, on any device. Tensors are copied.

        Kinds of devices draw from generators that have nothing in common: from another kind's, the own one goes on as it is.
        """
        settings = self.optimizer.param_groups[0]
        settings.update(state["settings"])
        device = self.generator.device
        if state["generator_device"] == device.type:
            self.generator.set_state(state["generator"])
        common = scalar_device(settings, device)
        for group in self.groups:
            for name, table in group.tables.items():
                table.load_state_dict(state["states"][group.prefix + name], device, scalar_device=common)

    @torch.no_grad()
    def _run(self, z_BD: Tensor, targets: SparseTargets, *, num_rows: int, with_loss: bool, update: bool) -> StepResult:
        z_BD = z_BD.detach() if z_BD.dtype == torch.float64 else z_BD.detach().float()
        low_BD = z_BD if z_BD.dtype == torch.float64 else z_BD.to(self.compute_dtype)
        grad_z_BD = torch.zeros_like(z_BD) if update and any(group.sends for group in self.groups) else None
        loss = torch.zeros((), dtype=torch.float64, device=z_BD.device) if with_loss else None
        unchecked: list[tuple[Chunk, Tensor]] = []
        on_cpu = z_BD.device.type == "cpu"
        for group in self.groups:
            trained, sends = update and group.trained, update and group.sends
            if not (trained or sends or with_loss):
                continue
            if trained and group.prefix in self.fused:
                some = targets if group.column_G is None else targets.within(group.column_G)
                step = self.fused[group.prefix]
                value, grad = step(z_BD, some, num_rows=num_rows, with_loss=with_loss, sends=sends)
                loss = loss if loss is None or value is None else loss + value
                grad_z_BD = grad_z_BD if grad_z_BD is None or grad is None else grad_z_BD.add_(grad)
                continue
            differentiate = self._linear if isinstance(group.heads, Linear) else self._any_kind
            values = group.heads.state_dict()
            for chunk in self._chunks(group, targets, num_rows=len(z_BD), shifted=update):
                for name, shell in group.shells.items():  # the weights themselves, or a copy of those in bfloat16
                    shell.data = values[name][chunk.rows(values[name], group.size)].to(shell.dtype)
                passed_on_BD = grad_z_BD if sends else None
                loss_C, checked_C = differentiate(
                    group, chunk, low_BD, passed_on_BD, scale=1 / num_rows, with_loss=with_loss, trained=trained
                )
                if loss is not None and loss_C is not None:
                    loss.add_(loss_C.sum(dtype=torch.float64), alpha=1 / num_rows)
                if update and not (on_cpu and math.isfinite(checked_C.sum().item())):
                    finite_C = checked_C.isfinite()
                    if not (on_cpu and bool(finite_C.all())):
                        unchecked.append((chunk, finite_C))
                # On a CPU those are bad, and the rest is gone over to name all heads.
                if trained and not (on_cpu and unchecked):
                    self._update(group, chunk, values)
            if trained:
                for table in group.tables.values():
                    table.end_step()
        _check_finite(unchecked)
        if update:
            self._check_fused()
        return StepResult(loss, grad_z_BD)

    def _check_fused(self) -> None:
        bad: list[int] = []
        for group in self.groups:
            if group.prefix in self.fused:
                rows = self.fused[group.prefix].bad_columns()
                bad += rows if group.column_G is None else group.column_G[rows].tolist()
        if bad:
            raise NonFiniteStep(sorted(bad))

    def _chunks(self, group: Group, targets: SparseTargets, *, num_rows: int, shifted: bool) -> Iterator[Chunk]:
        if group.column_G is not None:
            targets = targets.within(group.column_G)
        size = self.chunk_heads or group.fitting_heads(num_rows)
        first = self.first_column
        for start, part in zip(range(0, group.size, size), targets.chunks(size, group.size), strict=True):
            stop = min(start + size, group.size)
            columns = slice(start, stop) if group.column_G is None else group.column_G[start:stop]
            of_loss = _moved(columns, first)
            shift_C = self.log_odds_shift_K[of_loss] if shifted and self.log_odds_shift_K is not None else None
            yield Chunk(start, stop, columns, loss_of(self.loss_module, of_loss), shift_C, part)

    def _linear(
        self,
        group: Group,
        chunk: Chunk,
        z_BD: Tensor,
        grad_z_BD: Tensor | None,
        *,
        scale: float,
        with_loss: bool,
        trained: bool,
    ) -> tuple[Tensor | None, Tensor]:
        """Give the shells their gradients, add to that of the features, and return the loss (C,), and sums (C,) that are finite
        where the step is.
        """
        weight, bias = group.shells["weight_KD"], group.shells["bias_K"]
        bias_C = bias.detach() if chunk.shift_C is None else bias + chunk.shift_C
        weight_CD = weight.detach().to(z_BD.dtype)
        if z_BD.dtype == weight.dtype:
            logit_BC = torch.addmm(bias_C, z_BD, weight_CD.T)
        else:
            logit_BC = torch.mm(z_BD, weight_CD.T).to(weight.dtype).add_(bias_C)
        # Beside the gradient, which is finite where a logit is not: 1 to 2% of a step. Before the loss writes to the logits.
        logit_C = logit_BC.sum(0)
        loss_C, grad_BC = loss_and_grad(chunk.loss, logit_BC, chunk.targets, with_loss=with_loss)
        grad_C, low_BC = grad_BC.sum(0), grad_BC.to(z_BD.dtype)
        if grad_z_BD is not None and z_BD.dtype == weight.dtype:
            grad_z_BD.addmm_(low_BC, weight_CD, alpha=scale)
        elif grad_z_BD is not None:
            grad_z_BD.add_(torch.mm(low_BC, weight_CD), alpha=scale)
        if trained:
            weight.grad = torch.mm(low_BC.T, z_BD * scale).to(weight.dtype)
            bias.grad = grad_C * scale
        return loss_C, _added(logit_C, grad_C, loss_C)

    def _any_kind(
        self,
        group: Group,
        chunk: Chunk,
        z_BD: Tensor,
        grad_z_BD: Tensor | None,
        *,
        scale: float,
        with_loss: bool,
        trained: bool,
    ) -> tuple[Tensor | None, Tensor]:
        """Do what `_linear` does, for heads whose gradients only autograd knows."""
        heads: Any = copy.copy(group.heads)
        # The weights of frozen heads are buffers.
        heads._parameters, heads._buffers = dict(group.shells), {}
        heads.num_heads = chunk.stop - chunk.start
        with torch.enable_grad():
            z_BD = z_BD.to(next(iter(group.shells.values())).dtype).requires_grad_()
            logit_BC = heads(z_BD)
        shifted_BC = logit_BC.detach() if chunk.shift_C is None else logit_BC.detach() + chunk.shift_C
        logit_C = shifted_BC.sum(0)
        loss_C, grad_BC = loss_and_grad(chunk.loss, shifted_BC, chunk.targets, with_loss=with_loss)
        shells = list(group.shells.values()) if trained else []
        inputs = [*shells, *([z_BD] if grad_z_BD is not None else [])]
        grads = torch.autograd.grad(logit_BC, inputs, grad_BC * scale) if inputs else ()
        for shell, grad in zip(shells, grads, strict=False):
            shell.grad = grad
        if grad_z_BD is not None:
            grad_z_BD += grads[-1]
        return loss_C, _added(logit_C, grad_BC.sum(0), loss_C)

    def _update(self, group: Group, chunk: Chunk, values: dict[str, Tensor]) -> None:
        """Make the optimizer's step for a chunk, whose shells have their gradients."""
        if self.max_norm is not None:
            clip_by_head(group.shells.values(), num_heads=chunk.stop - chunk.start, max_norm=self.max_norm)
        rows = {name: chunk.rows(values[name], group.size) for name in group.shells}
        for name, shell in group.shells.items():
            self.optimizer.state[shell] = group.tables[name].lend(rows[name])
        self.optimizer.step()
        for name, shell in group.shells.items():
            group.tables[name].take_back(rows[name], self.optimizer.state.pop(shell))
            shell.grad = None
            if values[name].dtype != shell.dtype:
                values[name][rows[name]] = round_stochastically(shell.detach(), self.generator)


def _moved(columns: slice | Tensor, by: int) -> slice | Tensor:
    return slice(columns.start + by, columns.stop + by) if isinstance(columns, slice) else columns + by


def _added(logit_C: Tensor, grad_C: Tensor, loss_C: Tensor | None) -> Tensor:
    sum_C = logit_C + grad_C
    return sum_C if loss_C is None else sum_C.add_(loss_C)


def _keep_freed_memory() -> None:
    """Let the C library keep what a chunk frees for the next one, instead of returning it to the system each time.

    A block that is freed raises the limits of glibc up to 32 MiB; until then a step takes up to 60,000 page faults, 40% of it.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def _check_finite(chunks: list[tuple[Chunk, Tensor]]) -> None:
    if chunks and not bool(torch.cat([finite_C for _, finite_C in chunks]).all()):
        raise NonFiniteStep(
            [
                column
                for chunk, finite_C in chunks
                for column, finite in zip(chunk.column_list(), finite_C.tolist(), strict=True)
                if not finite
            ]
        )
