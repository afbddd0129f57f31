"""What each number of a row adds to a logit, by captum: integrated gradients and occlusion. Knows tensors, not rows.

A function of logits takes rows (B, *S) and gives (B, K); one row is explained at a time, in float64.

K = heads, S = shape of a row
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ovr.errors import ConfigError

F64 = NDArray[np.float64]
Logits = Callable[[Tensor], Tensor]

ROWS_AT_ONCE = 32


def captum_attr() -> Any:
    """Return captum.attr.

    Raises:
        ConfigError: captum is not installed.
    """
    try:
        return import_module("captum.attr")
    except ImportError as error:
        raise ConfigError(f"explanations are made by captum: pip install 'ovr[explain]' ({error})") from None


def integrated_gradients(
    logits: Logits, x: Tensor, baseline: Tensor, *, num_heads: int, steps: int, layer: Any = None, rows_at_once: int = ROWS_AT_ONCE
) -> tuple[F64, F64]:
    """Return what each number adds to each logit, (K, *S), and by how much their sums miss logit(x) - logit(baseline), (K,).

    The gradient is integrated on the straight line from `baseline` to `x` with `steps` Gauss-Legendre points (Sundararajan et al.
    2017, "Axiomatic Attribution for Deep Networks"); the sums miss by the error of that integral.

    Args:
        x, baseline: (1, *S).
        layer: a module whose output is integrated over in place of x, such as an embedding; (K, *its shape) is returned.
    """
    attr = captum_attr()
    method = attr.IntegratedGradients(logits) if layer is None else attr.LayerIntegratedGradients(logits, layer)
    values, missed = [], []
    for head in range(num_heads):
        value, delta = method.attribute(
            x,
            baselines=baseline,
            target=head,
            n_steps=steps,
            method="gausslegendre",
            internal_batch_size=rows_at_once,
            return_convergence_delta=True,
        )
        values.append(value[0].detach().numpy().astype(np.float64))
        missed.append(float(delta[0]))
    return np.stack(values), np.array(missed)


def ablation(logits: Logits, x: Tensor, baseline: Tensor, group: Tensor, *, num_heads: int) -> F64:
    """Return by how much each logit falls when a group of numbers is set to the baseline's, (K, groups).

    Args:
        x, baseline: (1, *S).
        group: whole numbers (1, *S) from 0 on: which group each number is of.
    """
    method = captum_attr().FeatureAblation(logits)
    num_groups = int(group.max()) + 1
    place_G = torch.stack([(group.flatten() == g).nonzero()[0, 0] for g in range(num_groups)])
    values = []
    for head in range(num_heads):
        with torch.no_grad():
            value = method.attribute(x, baselines=baseline, target=head, feature_mask=group, perturbations_per_eval=ROWS_AT_ONCE)
        values.append(value.flatten()[place_G].numpy().astype(np.float64))  # captum gives every number of a group the same
    return np.stack(values)


def occlusion(logits: Logits, x: Tensor, baseline: Tensor, *, num_heads: int, window: int) -> F64:
    """Return by how much each logit falls when a square of an image is covered by the baseline, (K, C, H, W).

    Squares of `window` pixels move by half their side; a pixel has the mean over the squares that cover it (Zeiler and Fergus
    2014, "Visualizing and Understanding Convolutional Networks").
    """
    method = captum_attr().Occlusion(logits)
    channels = x.shape[1]
    stride = max(1, window // 2)
    values = []
    for head in range(num_heads):
        with torch.no_grad():
            value = method.attribute(
                x,
                baselines=baseline,
                target=head,
                sliding_window_shapes=(channels, window, window),
                strides=(channels, stride, stride),
                perturbations_per_eval=ROWS_AT_ONCE,
            )
        values.append(value[0].numpy().astype(np.float64))
    return np.stack(values)
