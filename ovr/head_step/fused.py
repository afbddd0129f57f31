"""The head step of linear heads with cross-entropy on a GPU: no logit and no gradient of a weight is ever stored.

Four kernels a chunk: the targets' entries are marked, logits become gradients where they are computed, one product gives the
gradient of the features, and the optimizer is applied where the gradient of the weights is computed. No number is read by the host
between, so that all chunks of a step are captured as one CUDA graph when a batch's shape comes again. `kernels` are for the GPU;
`twins` are the same in plain torch, and with them this file runs anywhere. `HeadStep` is the reference, and what is used otherwise.

B = batch, D = features, G = heads of a group, C = heads of a chunk, P = positives, U = unknown targets, S, T = tiles of rows, heads
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from ovr.errors import ConfigError
from ovr.head.linear import Linear
from ovr.head_step.chunkable import StateTable
from ovr.head_step.targets import SparseTargets
from ovr.head_step.tiles import Optimizer, Settings, Tiles, scalars
from ovr.loss.bce import Bce
from ovr.optimizer.adamw import AdamW

CHUNK_BYTES = 3 << 26  # of a chunk's gradients and marks: long enough that kernels' ends do not count, small beside the weights
ALIGNED = 8  # entries of bfloat16 that the GPU's copy engine takes at a time
NUM_GRAPHS = 8  # a whole batch and the last one, each with and without loss, with and without unknown targets
MIN_CAPACITY = 1 << 10
POSITIVE, UNKNOWN = 1, 2


class Kernels(Protocol):
    """What `kernels` and `twins` have in common."""

    mark: Callable[..., None]
    differentiate: Callable[..., None]
    update: Callable[..., None]


def settings_of(optimizer: torch.optim.Optimizer) -> Settings | None:
    """Return what the kernels need to know of torch's SGD or AdamW; None for any other, or one with a setting they lack."""
    if len(optimizer.param_groups) != 1:
        return None
    group = optimizer.param_groups[0]
    if group.get("maximize") or isinstance(group.get("lr"), Tensor):
        return None
    if type(optimizer) is torch.optim.SGD and not group["dampening"]:
        state = ("momentum_buffer",) if group["momentum"] else ()
        return Settings(Optimizer.SGD, nesterov=bool(group["nesterov"]), state=state)
    if type(optimizer) in (torch.optim.AdamW, AdamW) and not group["amsgrad"]:
        return Settings(Optimizer.ADAMW, state=("exp_avg", "exp_avg_sq"))
    return None


def check_kernels(
    heads: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer, *, max_norm: float | None, compute_dtype: torch.dtype
) -> None:
    """Raise ConfigError, with all that is missing, unless a `FusedStep` with Triton-lang kernels can step these heads."""
    weight = heads.weight_KD if type(heads) is Linear else None
    on_gpu = weight is not None and weight.is_cuda
    needs = {
        f"linear heads on a GPU, got {type(heads).__name__} on {next(iter(heads.state_dict().values())).device}": on_gpu,
        "a GPU of compute capability 9.0 or later": on_gpu and torch.cuda.get_device_capability() >= (9, 0),
        f"features in a multiple of {ALIGNED}": weight is None or weight.shape[1] % ALIGNED == 0,
        f"loss=bce, got {type(loss).__name__}": type(loss) is Bce,
        f"SGD without dampening or AdamW without amsgrad, got {type(optimizer).__name__}": settings_of(optimizer) is not None,
        "trainer.gradient_clip_val=null": max_norm is None,
        f"products in bfloat16 (trainer.precision=bf16-mixed), got {compute_dtype}": compute_dtype == torch.bfloat16,
        "the package triton": find_spec("triton") is not None,
    }
    if missing := [need for need, met in needs.items() if not met]:
        raise ConfigError(f"solver.triton_kernels=true needs {'; '.join(missing)}")


class FusedStep:
    """Steps one group of linear heads, whose weights, optimizer and state belong to a `HeadStep`."""

    def __init__(
        self,
        heads: Linear,
        optimizer: torch.optim.Optimizer,
        tables: dict[str, StateTable],
        *,
        pos_weight_G: Tensor,
        shift_G: Tensor,
        generator: torch.Generator,
        kernels: Kernels,
        chunk_heads: int | None = None,
        tiles: Tiles | None = None,
        update_tiles: Tiles | None = None,
        graphs: bool = True,
    ) -> None:
        """Take G heads and what of the loss belongs to them.

        Args:
            tables: of the optimizer's state, by the weights' names.
            shift_G: added to the logits, with the heads' own bias.
            generator: draws a key for the stochastic rounding of each step.
            kernels: the module `kernels`, or `twins`.
            chunk_heads: C; None takes what `CHUNK_BYTES` hold.
            graphs: capture a step whose shapes were seen before.
        """
        settings = settings_of(optimizer)
        assert settings is not None
        self.heads, self.optimizer, self.tables, self.settings = heads, optimizer, tables, settings
        self.generator, self.kernels, self.chunk_heads = generator, kernels, chunk_heads
        self.tiles, self.update_tiles = tiles or Tiles(), update_tiles or Tiles()
        device = self.device = heads.weight_KD.device
        self.pos_weight_G, self.shift_G = pos_weight_G.float(), shift_G.float()
        self.bad_G = torch.zeros(len(heads.bias_K), dtype=torch.int8, device=device)
        self.any_bad = torch.zeros(1, dtype=torch.int8, device=device)
        self.scalar = torch.zeros(8, device=device)
        self.counter = torch.zeros(2, dtype=torch.int64, device=device)
        self.accumulate = _accumulate_of(device)
        self.graphs = graphs and device.type == "cuda"
        self._buffers: _Buffers | None = None
        self._captured: OrderedDict[tuple[Any, ...], torch.cuda.CUDAGraph | None] = OrderedDict()
        self._step: tuple[Any, int] = (None, 0)

    def __call__(
        self, z_BD: Tensor, targets: SparseTargets, *, num_rows: int, with_loss: bool, sends: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Make one step; return the loss, float64, and its gradient (B, D) float32, or None for what is not asked for.

        Heads of which a logit is not finite keep their weights; `bad_columns` names them.
        """
        state = self._state()
        group, step = self.optimizer.param_groups[0], self._count_step()
        self.scalar.copy_(torch.tensor(scalars(self.settings, group, num_rows=num_rows, step=step)))
        self.counter.random_(generator=self.generator)
        batch = self._fill(z_BD, targets)
        weights = (self.heads.weight_KD, self.heads.bias_K, *(value for pair in state.values() for value in pair))
        shape = len(z_BD), with_loss, sends, bool(len(targets.row_U))
        key = (*shape, *(value.data_ptr() for value in weights))
        if self.graphs and key in self._captured:
            graph = self._captured[key]
            if graph is None:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    self._run(batch, state, *shape[1:])
                self._captured[key] = graph
            self._captured.move_to_end(key)
            graph.replay()
        else:  # the first time also loads the kernels, which a capture cannot
            self._run(batch, state, *shape[1:])
            self._captured[key] = None
            while len(self._captured) > NUM_GRAPHS:
                self._captured.popitem(last=False)
        return batch.loss / num_rows if with_loss else None, batch.grad_z_BD.clone() if sends else None

    def bad_columns(self) -> list[int]:
        """Return the heads of the group that had a logit that was not finite since the last call; waits for the device."""
        if not bool(self.any_bad):
            return []
        columns: list[int] = self.bad_G.nonzero()[:, 0].tolist()
        self.bad_G.zero_()
        self.any_bad.zero_()
        return columns

    def _fill(self, z_BD: Tensor, targets: SparseTargets) -> "_Buffers":
        """Copy a batch to where the kernels, and a captured graph of them, read it."""
        longest, num_rows = max(len(targets.row_P), len(targets.row_U), 1), len(z_BD)
        held = self._buffers
        if held is None or held.capacity < longest or len(held.z_BD) < num_rows:
            num_rows = num_rows if held is None else max(num_rows, len(held.z_BD))
            chunk = min(len(self.heads.bias_K), self.chunk_heads or self._chunk_heads(num_rows))
            self._captured.clear()
            self._buffers = held = None  # before the new ones are made: they are large
            capacity = max(MIN_CAPACITY, 1 << (longest - 1).bit_length())
            self._buffers = held = _Buffers.make(self.heads, num_rows, chunk, capacity, self.tiles)
        held.z_BD[: len(z_BD)].copy_(z_BD)
        lists = (targets.row_P, targets.column_P), (targets.row_U, targets.column_U)
        for (row, column), entries in zip(lists, (held.positive, held.unknown), strict=True):
            if len(row) or entries.filled:
                entries.row[: len(row)].copy_(row)
                entries.column[: len(row)].copy_(column)
                torch.searchsorted(column.contiguous(), held.edges, out=entries.bounds)
                entries.filled = bool(len(row))
        return held.of_rows(len(z_BD), self.tiles)

    def _chunk_heads(self, num_rows: int) -> int:
        wide = self.heads.weight_KD.dtype != torch.bfloat16
        size_bytes = 3 * num_rows + (2 * self.heads.weight_KD.shape[1] if wide else 0)
        return max(1, CHUNK_BYTES // size_bytes // self.tiles.heads) * self.tiles.heads

    def _run(
        self, buffers: "_Buffers", state: dict[str, tuple[Tensor, Tensor]], with_loss: bool, sends: bool, has_unknown: bool
    ) -> None:
        weight_GD, bias_G = self.heads.weight_KD.detach(), self.heads.bias_K.detach()
        marked = [(buffers.positive, POSITIVE), (buffers.unknown, UNKNOWN)][: 1 + has_unknown]
        tiles, chunk = self.tiles, buffers.chunk
        buffers.loss.zero_()
        buffers.grad_z_BD.zero_()
        for i, start in enumerate(range(0, len(bias_G), chunk)):
            some = slice(start, min(start + chunk, len(bias_G)))
            size = some.stop - start
            code_CB, grad_CB, bias_grad_SC = buffers.code_CB[:size], buffers.grad_CB[:size], buffers.bias_grad_SC[:, :size]
            loss_SC = buffers.loss_SC[:, :size] if with_loss else None
            weight_CD, bias_C = weight_GD[some], bias_G[some]
            low_CD = weight_CD if buffers.low_CD is None else buffers.low_CD[:size].copy_(weight_CD)
            for entries, code in marked:
                self.kernels.mark(entries.row, entries.column, entries.bounds, i, start, code, code_CB, buffers.flag_TS, tiles)
            self.kernels.differentiate(
                low_CD, buffers.z_BD, bias_C, self.shift_G[some], self.pos_weight_G[some], code_CB, buffers.flag_TS, grad_CB,
                bias_grad_SC, loss_SC, tiles,
            )  # fmt: skip
            for entries, _ in marked:
                self.kernels.mark(entries.row, entries.column, entries.bounds, i, start, 0, code_CB, buffers.flag_TS, tiles)
            if loss_SC is not None:
                buffers.loss.add_(loss_SC.sum(dtype=torch.float64))
            if sends:  # with the weights as they were
                self.accumulate(buffers.grad_z_BD, grad_CB.T, low_CD)
            self.kernels.update(
                weight_CD, bias_C, grad_CB, buffers.z_BD, bias_grad_SC,
                {name: (value[some], of_bias[some]) for name, (value, of_bias) in state.items()},
                self.settings, self.scalar, self.counter, start, self.bad_G[some], self.any_bad, self.update_tiles,
            )  # fmt: skip
        buffers.grad_z_BD.mul_(self.scalar[0])

    def _state(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the optimizer's tensors of weights and biases by name, made if they are not there yet."""
        for name, table in self.tables.items():
            for key in self.settings.state:
                if key not in table.tensors:
                    table.tensors[key] = torch.zeros_like(self.heads.get_parameter(name), dtype=torch.float32)
        weights, biases = self.tables["weight_KD"].tensors, self.tables["bias_K"].tensors
        return {key: (weights[key], biases[key]) for key in self.settings.state}

    def _count_step(self) -> int:
        """Return the number of this step and write it into the tables, as torch would."""
        tables = self.tables.values()
        if self.settings.optimizer is not Optimizer.ADAMW:
            for table in tables:
                table.scalars, table.made = {}, True
            return 1
        held = self.tables["weight_KD"].scalars.get("step")
        step = (self._step[1] if held is self._step[0] and held is not None else 0 if held is None else int(held)) + 1
        for table in tables:
            table.scalars, table.made = {"step": torch.tensor(float(step), device=self.device)}, True
        self._step = self.tables["weight_KD"].scalars["step"], step
        return step


class _Entries:
    """One list of targets on the device, as long as the capacity, and where each chunk's part of it begins."""

    def __init__(self, capacity: int, num_edges: int, device: torch.device) -> None:
        self.row, self.column = (torch.zeros(capacity, dtype=torch.int64, device=device) for _ in range(2))
        self.bounds = torch.zeros(num_edges, dtype=torch.int64, device=device)
        self.filled = False


@dataclass(frozen=True, slots=True)
class _Buffers:
    """What a step reads and writes besides the weights, made for the largest batch so far."""

    chunk: int
    capacity: int
    edges: Tensor
    positive: _Entries
    unknown: _Entries
    loss: Tensor
    z_BD: Tensor
    grad_z_BD: Tensor
    grad_CB: Tensor
    code_CB: Tensor
    flag_TS: Tensor
    bias_grad_SC: Tensor
    loss_SC: Tensor
    low_CD: Tensor | None  # the weights of a chunk, where they are not in bfloat16 themselves

    @classmethod
    def make(cls, heads: Linear, num_rows: int, chunk: int, capacity: int, tiles: Tiles) -> Self:
        device, (num_heads, num_features) = heads.weight_KD.device, heads.weight_KD.shape
        edges = torch.arange(0, num_heads + chunk, chunk, device=device).clamp_(max=num_heads)
        is_low = heads.weight_KD.dtype == torch.bfloat16
        empty, blocks_S = partial(torch.empty, device=device), -(-num_rows // tiles.rows)
        low = partial(empty, dtype=torch.bfloat16)
        return cls(
            chunk=chunk,
            capacity=capacity,
            edges=edges,
            positive=_Entries(capacity, len(edges), device),
            unknown=_Entries(capacity, len(edges), device),
            loss=torch.zeros((), dtype=torch.float64, device=device),
            z_BD=low(num_rows, num_features),
            grad_z_BD=empty(num_rows, num_features),
            grad_CB=low(chunk, -(-num_rows // ALIGNED) * ALIGNED),
            code_CB=torch.zeros(chunk, num_rows, dtype=torch.int8, device=device),
            flag_TS=torch.zeros(-(-chunk // tiles.heads), blocks_S, dtype=torch.int32, device=device),
            bias_grad_SC=empty(blocks_S, chunk),
            loss_SC=empty(blocks_S, chunk),
            low_CD=None if is_low else low(chunk, num_features),
        )

    def of_rows(self, num_rows: int, tiles: Tiles) -> Self:
        """Return views for a batch of so many rows, at the same addresses each time."""
        blocks_S = -(-num_rows // tiles.rows)
        return replace(
            self,
            z_BD=self.z_BD[:num_rows],
            grad_z_BD=self.grad_z_BD[:num_rows],
            grad_CB=self.grad_CB[:, :num_rows],
            code_CB=self.code_CB[:, :num_rows],
            bias_grad_SC=self.bias_grad_SC[:blocks_S],
            loss_SC=self.loss_SC[:blocks_S],
        )


def _accumulate_of(device: torch.device) -> Callable[[Tensor, Tensor, Tensor], None]:
    """Return a function that adds a product of bfloat16 matrices to one of float32, summed in float32 throughout."""
    if device.type != "cuda":
        return _add_wide
    total = torch.zeros(16, 16, device=device)
    low = torch.zeros(16, 16, dtype=torch.bfloat16, device=device)
    try:
        _add_at_once(total, low, low)
    except (RuntimeError, TypeError):  # some versions of torch want the sum in the factors' dtype, or know no other
        return _add_after
    return _add_at_once


def _add_at_once(total: Tensor, a: Tensor, b: Tensor) -> None:
    torch.addmm(total, a, b, out_dtype=torch.float32, out=total)


def _add_after(total: Tensor, a: Tensor, b: Tensor) -> None:
    total += torch.mm(a, b, out_dtype=torch.float32)


def _add_wide(total: Tensor, a: Tensor, b: Tensor) -> None:
    total.addmm_(a.float(), b.float())
