"""Validation of very many heads from the features of all validation rows, some heads at a time. Knows nothing of Lightning.

N = rows, D = features, E = heads with a positive validation row, C = heads of one block
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ovr.core.scale import column_blocks
from ovr.data.labels import Labels
from ovr.head.bank import some_heads
from ovr.head_step.step import HeadStep
from ovr.head_step.targets import SparseTargets
from ovr.metric.classification import average_precision
from ovr.training.loader import sparse_targets

LOSS_ROWS = 1024  # at a time: the heads are gone through once for each


def true_loss(step: HeadStep, z_ND: Tensor, labels: Labels, columns: slice) -> Tensor:
    """Return the loss, a float64 scalar: the mean over rows of the sum over the known heads in `columns`, which `step` has."""
    loss = torch.zeros((), dtype=torch.float64, device=z_ND.device)
    for start in range(0, len(z_ND), LOSS_ROWS):
        row_B = np.arange(start, min(start + LOSS_ROWS, len(z_ND)))
        targets = SparseTargets(*(value.to(z_ND.device) for value in sparse_targets(labels, row_B, columns)))
        loss += step.true_loss(z_ND[start : start + LOSS_ROWS], targets, num_rows=len(z_ND))
    return loss


@torch.no_grad()
def average_precisions(head: nn.Module, z_ND: Tensor, labels: Labels, columns: slice) -> NDArray[np.float64]:
    """Return the average precision (E,) of each of the heads in `columns`, which `head` has, that has a positive row."""
    column_E = columns.start + np.flatnonzero(labels.num_positives_K()[columns])
    ap_E = np.empty(len(column_E))
    for block in column_blocks(len(z_ND), len(column_E)):
        column_C = column_E[block]
        # float64: in float32 sigmoid(17) is 1, and all rows above it would tie.
        prob_NC = some_heads(head, column_C - columns.start)(z_ND).double().sigmoid()
        ap_E[block] = average_precision(prob_NC.cpu().numpy(), *labels.some_columns(column_C))
    return ap_E
