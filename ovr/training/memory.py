"""Whether so many heads fit the memory: estimated from the parts of a fit before anything is allocated. Knows no data and no fit.

B = rows of a step, N = validation rows, K = heads
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ovr.core.scale import BLOCK_VALUES
from ovr.errors import ConfigError
from ovr.head_step.groups import fitting_heads
from ovr.optimizer.rowwise_adagrad import RowwiseAdagrad
from ovr.training.validation import LOSS_ROWS

GIB = 1 << 30
MIN_FREE_SHARE = 0.05  # of what is available, for what is not estimated
DENSE_BYTES = 26  # an entry of a batch: logit, target, mask, loss, gradient, and what the loss makes on the way
SCORE_BYTES = 32  # an entry of the validation: score and target in 64 bits, and again as they are put together
# Measured of an entry of a chunk, row by head: 8 to 15 bytes where the loss has a derivative of its own, else 77 to 120.
OWN_BYTES, AUTOGRAD_BYTES = 16, 128
HIDDEN_ARRAYS = 3  # of an entry's hidden units: before and behind the activation, and their gradient
RANKED_BYTES = 33  # measured of an entry of a block whose average precision is computed
LOSS_BYTES = 16  # a head: weights and shifts of loss and sampler

MakeOptimizer = Callable[..., torch.optim.Optimizer]


@dataclass(frozen=True, slots=True)
class HeadSizes:
    """Bytes of one head: its matrices and all of its weights in float32, and an optimizer's state of them."""

    matrix_bytes: int
    weight_bytes: int
    state_bytes: int
    rowwise_bytes: int  # the state of a row-wise optimizer
    hidden_bytes: int  # of its hidden units in one row: it has a bias for each, and one for its logit
    linear: bool  # of the kind that may be kept in bfloat16

    @classmethod
    def of(cls, make_head: Callable[..., nn.Module], num_features: int, make_optimizer: MakeOptimizer) -> "HeadSizes":
        """Return what two heads and a step of theirs take, halved; nothing is drawn from the generator of the process."""
        with torch.random.fork_rng(devices=[]):
            heads = make_head(num_features, num_heads=2)
        weights = [value.detach() for value in heads.parameters()]
        return cls(
            sum(value.nbytes for value in weights if value.ndim > 1) // 2,
            sum(value.nbytes for value in weights) // 2,
            _state_bytes(weights, make_optimizer) // 2,
            _state_bytes(weights, lambda parameters: RowwiseAdagrad(parameters, lr=0.1, eps=1e-8, weight_decay=0.0)) // 2,
            max(0, sum(value.nbytes for value in weights if value.ndim == 1) // 2 - 4),
            getattr(heads, "kind", None) == "linear",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What decides how much memory a fit takes. A rank holds its share of the heads if they are trained in chunks, else all."""

    head: HeadSizes
    num_heads: int
    batch_rows: int  # of a process
    val_rows: int
    num_features: int
    chunked: bool
    may_be_chunked: bool  # nothing else in the run rules it out
    chunk_heads: int | None
    loss_by_autograd: bool  # the loss has no derivative of its own
    bfloat16: bool
    in_groups: bool  # the heads are drawn, and then copied into groups
    backbone_bytes: int  # weights, gradient and state
    world_size: int
    processes_here: int  # that share this machine's memory
    device: str  # "cpu" or "cuda"

    def on_device(self) -> dict[str, int]:
        """Return the bytes, by part, that all processes of this machine take on a CPU, or one takes on its GPU."""
        head, num_own = self.head, self.num_heads
        parts = {"backbone": self.backbone_bytes}
        if self.chunked:
            num_own = -(-self.num_heads // self.world_size)
            parts["arrays of a chunk"] = max(
                self._chunk_bytes(num_own, self.batch_rows * self.world_size),
                self._chunk_bytes(num_own, min(LOSS_ROWS, self.val_rows)),  # the loss of validation rows
                min(BLOCK_VALUES, self.val_rows * num_own) * max(RANKED_BYTES, 2 * head.hidden_bytes),
            )
            parts["features of the validation rows and settings by head"] = (
                LOSS_BYTES * self.num_heads + 8 * self.val_rows * self.num_features
            )
        else:
            parts["gradient of the heads"] = num_own * head.weight_bytes
            parts["logits and targets of a batch"] = DENSE_BYTES * self.batch_rows * num_own
            parts["scores of the validation rows"] = SCORE_BYTES * self.val_rows * num_own
        parts["weights of the heads"] = num_own * (head.weight_bytes - (head.matrix_bytes // 2 if self.bfloat16 else 0))
        parts["state of the heads' optimizer"] = num_own * head.state_bytes
        if self.device == "cpu":
            parts = {name: size * self.processes_here for name, size in parts.items()}
            parts["weights while they are drawn"] = max(0, self.drawn() - sum(parts.values()))
        return parts

    def _chunk_bytes(self, num_own: int, num_rows: int) -> int:
        chunk = self.chunk_heads or fitting_heads(self.head.weight_bytes // 4, num_rows, self.device)
        entry_bytes = (AUTOGRAD_BYTES if self.loss_by_autograd else OWN_BYTES) + HIDDEN_ARRAYS * self.head.hidden_bytes
        return min(chunk, num_own) * (num_rows * entry_bytes + 6 * self.head.weight_bytes)

    def drawn(self) -> int:
        """Return the bytes that the processes of this machine take together as they draw all heads, each on its own."""
        return self.processes_here * self.num_heads * self.head.weight_bytes * (2 if self.in_groups or self.bfloat16 else 1)

    def total(self) -> int:
        """Return the bytes of all parts."""
        return sum(self.on_device().values())


def check_memory(fit: Fit, gpu: torch.device | None = None) -> None:
    """Raise ConfigError if the fit takes more memory than there is, with the figures and what would fit.

    Where the system does not tell how much there is, nothing is checked. `gpu` is that of this process, for a fit on one: until
    it begins, torch has the first in use.
    """
    memory = available_memory()
    if fit.device == "cuda":
        free, _ = torch.cuda.mem_get_info(gpu)
        _check(fit, fit.on_device(), free, "on the GPU", lambda other: other.total() <= usable(free))
        if memory is not None:
            _check(fit, {"weights while they are drawn": fit.drawn()}, *memory, lambda other: other.drawn() <= usable(memory[0]))
    elif memory is not None:
        _check(fit, fit.on_device(), *memory, lambda other: other.total() <= usable(memory[0]))


def available_memory() -> tuple[int, str] | None:
    """Return how many bytes this process may still take, and who says so; None where the system does not tell."""
    found = []
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found.append((int(lines["MemAvailable"].split()[0]) * 1024, "in this machine's memory"))
    except (OSError, KeyError, ValueError):
        pass
    if (limit := _cgroup_memory()) is not None:
        found.append((limit, "by the limit of the control group"))
    return min(found, default=None)


def _cgroup_memory() -> int | None:
    """Return the least that a control group of this process has left; its file cache counts as free."""
    left = []
    root = Path("/sys/fs/cgroup")
    try:
        names = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return None
    for _, controllers, name in names:
        if controllers not in ("", "memory"):
            continue
        base = root / controllers
        limit_name = "memory.limit_in_bytes" if controllers else "memory.max"  # of version 1 or 2
        usage_name = "memory.usage_in_bytes" if controllers else "memory.current"
        total = "total_" if controllers else ""  # what groups below take too, as in the usage
        group = base / name.lstrip("/")
        for place in (group, *group.parents):
            if not place.is_relative_to(base):
                break
            try:
                limit, usage = int((place / limit_name).read_text()), int((place / usage_name).read_text())
                stat = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # "max", or no such group seen from within a container
                continue
            file_cache = sum(int(stat.get(f"{total}{kind}", 0)) for kind in ("active_file", "inactive_file"))
            left.append(limit - usage + file_cache)
    return min(left, default=None)


def usable(available: int) -> int:
    """Return how many of the bytes that are there may be planned with."""
    return int(available * (1 - MIN_FREE_SHARE))


def _check(fit: Fit, parts: dict[str, int], available: int, source: str, fits: Callable[[Fit], bool]) -> None:
    refuse_unless(
        lambda num_heads: fits(replace(fit, num_heads=num_heads)),
        fit.num_heads,
        parts,
        available,
        source,
        remedies=lambda: _remedies(fit, fits),
    )


def refuse_unless(
    fits: Callable[[int], bool],
    num_heads: int,
    parts: dict[str, int],
    available: int,
    source: str,
    *,
    remedies: Callable[[], list[str]] = list,
) -> None:
    """Raise ConfigError unless `num_heads` fit, with the bytes of each part, the most that fit, and settings with which all would.

    Args:
        available: bytes, as `source` says.
    """
    if fits(num_heads):
        return
    shown = ", ".join(
        f"{name} {_gib(size)}" for name, size in sorted(parts.items(), key=lambda item: -item[1]) if size >= GIB >> 10
    )
    found = remedies()
    raise ConfigError(
        f"{num_heads:,} heads do not fit: {_gib(sum(parts.values()))} are needed ({shown}), and {_gib(available)} are there "
        f"{source}; at most {_largest(fits, num_heads):,} heads fit as it is configured"
        + (f"; all of them would fit with {' or with '.join(found)}" if found else "")
    )


def _remedies(fit: Fit, fits: Callable[[Fit], bool]) -> list[str]:
    """Return the settings with which all heads would fit: chunks if they are enough, else each that does with them, else all of
    them together. None is named that the run would then be refused for."""
    found: list[str] = []
    if fit.may_be_chunked:
        chunks = [] if fit.chunked else ["solver.head_step=chunked"]
        chunked = replace(fit, chunked=True)
        if chunks and fits(chunked):
            return chunks
        rowwise = replace(fit.head, state_bytes=min(fit.head.state_bytes, fit.head.rowwise_bytes))
        changes: list[tuple[str, dict[str, Any]]] = []
        if rowwise != fit.head:
            changes.append(("optimizer@head_optimizer=rowwise_adagrad", {"head": rowwise}))
        if not fit.bfloat16 and fit.head.linear:
            changes.append(("solver.head_dtype=bfloat16", {"bfloat16": True}))
        found = [" ".join([*chunks, text]) for text, change in changes if fits(replace(chunked, **change))]
        together = {name: value for _, change in changes for name, value in change.items()}
        if not found and len(changes) > 1 and fits(replace(chunked, **together)):
            found = [" ".join([*chunks, *(text for text, _ in changes)])]
    counts = (2**power for power in range(1, 11))
    spread = (num for num in counts if num > fit.world_size and fits(replace(fit, world_size=num, processes_here=1)))
    if fit.chunked and (num := next(spread, None)) is not None:
        found.append(f"{num} processes, each with this much memory of its own")
    return found


def _largest(fits: Callable[[int], bool], too_many: int) -> int:
    low, high = 0, too_many
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _state_bytes(weights: list[torch.Tensor], make_optimizer: MakeOptimizer) -> int:
    parameters = [nn.Parameter(value.clone()) for value in weights]
    optimizer = make_optimizer(parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(lambda: 0.0)  # LBFGS has no step without
    values = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor) and value.ndim)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f} GiB"
