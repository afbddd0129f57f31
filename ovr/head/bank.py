"""Heads of one backbone that are not all trained alike: some frozen, some without a say in the backbone. Knows no class ids.

Heads that are treated alike are one module of the head's own kind, so that each group is one product, whatever the kind.

B = batch, D = features, K = heads, G = heads of one group
"""

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import reduce
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ovr.errors import ConfigError
from ovr.head import EVERY
from ovr.head.linear import Linear


class HeadBank(nn.Module):
    """K heads in at most four groups: `trained` or `frozen`, and `_stopped` where their gradient ends at the features.

    The weights of frozen heads are buffers, not parameters: no optimizer, weight decay, clipping or averaging sees them.
    Entries of the state dict are `groups.<group>.<name of the head's own kind>`, with a group's heads in column order.
    """

    position_K: Tensor | None

    def __init__(
        self,
        make: Callable[..., nn.Module],
        num_features: int,
        *,
        num_heads: int,
        frozen: Collection[int],
        to_backbone: Collection[int],
    ) -> None:
        """Take a constructor of heads, D, K, the columns that keep their weights and those whose gradient reaches the features.

        A head begins with the weights that it would have without groups.

        Raises:
            ConfigError: heads whose weights cannot be told apart by rows (see `check_heads_first`).
        """
        super().__init__()
        every: Any = make(num_features, num_heads=num_heads)
        check_heads_first(every, num_heads=num_heads)
        self.kind, self.num_heads = every.kind, num_heads
        self.groups = nn.ModuleDict()
        self.columns = group_columns(num_heads, frozen=frozen, to_backbone=to_backbone)
        for name, column_G in self.columns.items():
            group = make(num_features, num_heads=len(column_G))
            rows_G = torch.from_numpy(column_G)
            group.load_state_dict({key: _rows(value, rows_G, num_heads) for key, value in every.state_dict().items()})
            if name.startswith("frozen"):
                _parameters_to_buffers(group)
            self.groups[name] = group
        self.register_buffer("position_K", _position(self.columns, next(iter(self.state_dict().values())).device), persistent=False)

    def forward(self, z_BD: Tensor, columns: slice = EVERY) -> Tensor:
        """Return logits (B, C) of features (B, D) in column order, of the heads in `columns` (start and stop only)."""
        fixed_BD = z_BD.detach()
        start, stop, _ = columns.indices(self.num_heads)
        whole = stop - start == self.num_heads  # of which torch.compile sees no array of numpy, at which it would stop
        parts, part_columns = [], []
        for name, group in self.groups.items():
            column_G, rows = self.columns[name], EVERY
            if not whole:
                rows = slice(*(int(row) for row in np.searchsorted(column_G, (start, stop))))
                part_columns.append(column_G[rows])
            parts.append(group(fixed_BD if name.endswith("_stopped") else z_BD, rows))
        logit_BC: Tensor = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        position_C = self.position_K
        if not whole:
            position_C = torch.from_numpy(np.argsort(np.concatenate(part_columns))).to(z_BD.device)
        return logit_BC if position_C is None else logit_BC.index_select(1, position_C)

    def head_weights(self, column: int) -> dict[str, NDArray[np.float32]]:
        """Return the weights of one head, as its kind gives them."""
        group, row = self._place(column)
        weights: dict[str, NDArray[np.float32]] = group.head_weights(row)
        return weights

    def set_head_weights(self, column: int, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Give one head, frozen or not, the weights that `head_weights` gave of another."""
        group, row = self._place(column)
        group.set_head_weights(row, weights)

    def _place(self, column: int) -> tuple[Any, int]:
        for name, column_G in self.columns.items():
            row = int(np.searchsorted(column_G, column))
            if row < len(column_G) and column_G[row] == column:
                return self.groups[name], row
        raise IndexError(f"there is no head in column {column}")


def group_columns(num_heads: int, *, frozen: Collection[int], to_backbone: Collection[int]) -> dict[str, NDArray[np.int64]]:
    """Return the columns of each group of a bank, ascending; no group is empty."""
    is_frozen_K, sends_K = np.zeros(num_heads, bool), np.zeros(num_heads, bool)
    is_frozen_K[list(frozen)], sends_K[list(to_backbone)] = True, True
    columns = {}
    for held, sends in product((False, True), (True, False)):
        column_G = np.flatnonzero((is_frozen_K == held) & (sends_K == sends))
        if len(column_G):
            columns[("frozen" if held else "trained") + ("" if sends else "_stopped")] = column_G
    return columns


def some_heads(heads: Any, column_C: NDArray[np.int64]) -> Any:
    """Return a module of the same kind with a copy of the heads in `column_C`, ascending, whose columns are 0 .. C - 1 then."""
    part = copy.copy(heads)
    part._modules, part._parameters, part._buffers = {}, {}, {}
    part.num_heads = len(column_C)
    if not isinstance(heads, HeadBank):
        num_heads, rows_C = count_heads(heads), torch.from_numpy(column_C)
        for name, value in heads._parameters.items():
            taken = _rows(value.detach(), rows_C.to(value.device), num_heads)
            part._parameters[name] = nn.Parameter(taken, requires_grad=value.requires_grad)
        part._buffers = {name: _rows(value, rows_C.to(value.device), num_heads) for name, value in heads._buffers.items()}
        return part
    groups, part.columns = {}, {}
    for name, column_G in heads.columns.items():
        place_C = np.searchsorted(column_C, column_G).clip(max=len(column_C) - 1)
        here_G = np.flatnonzero(column_C[place_C] == column_G)
        if len(here_G):
            groups[name], part.columns[name] = some_heads(heads.groups[name], here_G), place_C[here_G]
    part.groups = nn.ModuleDict(groups)
    device = next(iter(heads.state_dict().values())).device
    part.register_buffer("position_K", _position(part.columns, device), persistent=False)
    return part


def count_heads(heads: Any) -> int:
    """Return K."""
    num_heads: int = len(heads.bias_K) if isinstance(heads, Linear) else heads.num_heads
    return num_heads


def check_heads_first(heads: nn.Module, *, num_heads: int) -> None:
    """Raise ConfigError unless every weight has as many rows for each head, one head after the other."""
    for name, value in heads.state_dict().items():
        if value.ndim == 0 or value.shape[0] % num_heads:
            raise ConfigError(
                f"head {type(heads).__name__} has {name} of shape {tuple(value.shape)} for {num_heads} heads; "
                f"expected a multiple of {num_heads} rows, one head after the other"
            )


def clip_head_gradients(heads: nn.Module, *, num_heads: int, max_norm: float) -> list[Tensor]:
    """Scale the gradient of each head to a Euclidean norm of at most `max_norm`, whatever the other heads' gradients are.

    Return the norms that they had, by groups of heads; of heads without a gradient there are none.
    """
    groups = [(heads, num_heads)]
    if isinstance(heads, HeadBank):
        groups = [(heads.groups[name], len(column_G)) for name, column_G in heads.columns.items()]
    norms = (clip_by_head(group.parameters(), num_heads=size, max_norm=max_norm) for group, size in groups)
    return [norm_G for norm_G in norms if norm_G is not None]


def clip_by_head(parameters: Iterable[nn.Parameter], *, num_heads: int, max_norm: float) -> Tensor | None:
    """Do the same for parameters that hold the rows of one head after the other; those without a gradient are left out."""
    grads = [parameter.grad.view(num_heads, -1) for parameter in parameters if parameter.grad is not None]
    if not grads:
        return None
    norms = [torch.linalg.vector_norm(grad, dim=1) for grad in grads]
    norm_K: Tensor = reduce(torch.hypot, norms)
    # As torch.nn.utils.clip_grad_norm_ has it, so that a single head is clipped as torch clips it.
    factor_K = (max_norm / (norm_K + 1e-6)).clamp_(max=1.0)
    for grad in grads:
        grad.mul_(factor_K[:, None])
    return norm_K


def _position(columns: Mapping[str, NDArray[np.int64]], device: torch.device) -> Tensor | None:
    """Return where among the groups, one after the other, each column is, on `device`; None where they are in order already."""
    position_K = np.argsort(np.concatenate(list(columns.values())))
    in_order = bool((position_K == np.arange(len(position_K))).all())
    return None if in_order else torch.from_numpy(position_K).to(device)


def _rows(value: Tensor, column_G: Tensor, num_heads: int) -> Tensor:
    """Return the rows of some heads, out of (K * rows a head, ...)."""
    return value.reshape(num_heads, -1, *value.shape[1:])[column_G].flatten(0, 1)


def _parameters_to_buffers(module: nn.Module) -> None:
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
