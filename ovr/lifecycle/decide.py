"""A bundle with thresholds and a policy chosen again, on its own calibration rows or on new ones. Needs no torch.

N = rows, K = heads, C = heads of one block
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.apply import calibrated_prob
from ovr.core.artifact import DecisionPolicy
from ovr.core.bundle import ModelBundle
from ovr.lifecycle.calibrate import some_columns
from ovr.lifecycle.rewrite import Rewritten, calibrations_of, check_out, rewritten
from ovr.lifecycle.rows import LabelledLogits


class ThresholdRule(Protocol):
    """Chooses one threshold a head on probabilities (N, K), of all heads or of some of them."""

    def fit(self, prob_NK: NDArray[Any], target_NK: NDArray[Any], mask_NK: NDArray[Any]) -> NDArray[np.float64]: ...


def redecide(
    bundle: ModelBundle,
    out: Path,
    rows: LabelledLogits,
    *,
    threshold: ThresholdRule,
    policy: DecisionPolicy,
    class_ids: Collection[str] | None = None,
    settings: dict[str, Any] | None = None,
) -> Rewritten:
    """Write the bundle with `policy` and with thresholds that are chosen on `rows` to `out`.

    Args:
        class_ids: whose thresholds are chosen again; by default all. The policy is that of the whole bundle.
        settings: what the provenance tells of this step, in plain values.

    Raises:
        ConfigError: no class id.
        TaxonomyError: a class id that the bundle does not have.
        ArtifactError, DataError: what `rewritten` and the rule refuse.
    """
    columns = some_columns(bundle, class_ids)
    check_out(bundle, out)
    calibrations = calibrations_of(bundle)
    threshold_K = np.array(bundle.card.thresholds, np.float64)
    for block, logit_NC in rows.logits:
        target_NC, mask_NC = rows.labels.columns(block)
        prob_NC = calibrated_prob(logit_NC, calibrations[block]).astype(np.float32)
        chosen_C = threshold.fit(prob_NC, target_NC, mask_NC)
        wanted_C = [columns is None or k in columns for k in range(block.start, block.stop)]
        threshold_K[block] = np.where(wanted_C, chosen_C, threshold_K[block])
    entry = {"command": "decide", "data": rows.record, **(settings or {})}
    return rewritten(bundle, out, calibrations=calibrations, threshold_K=threshold_K, policy=policy, entry=entry)
