"""A bundle with thresholds and a policy chosen again, on its own calibration rows or on new ones. Needs no torch.

N = rows, K = heads, C = heads of one block
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from ovr.abstention.fit import CONSTANT, AbstentionRule, fit_abstention
from ovr.abstention.promises import heads_in_doubt, limit_in_doubt, without_promise
from ovr.calibrator.blocks import Probs
from ovr.core.artifact import DecisionPolicy
from ovr.core.bundle import ModelBundle
from ovr.core.thresholds import Thresholds
from ovr.errors import ConfigError
from ovr.lifecycle.assemble import Rewritten, check_out
from ovr.lifecycle.calibrate import some_columns
from ovr.lifecycle.cohorts import numbers_of_rows
from ovr.lifecycle.rewrite import calibrations_of, rewritten, thresholds_of
from ovr.lifecycle.rows import LabelledLogits
from ovr.threshold.fit import ThresholdRule, fit_thresholds, warn_of_fallbacks

STALE = "stale: chosen for what other thresholds decide"


def redecide(
    bundle: ModelBundle,
    out: Path,
    rows: LabelledLogits,
    *,
    threshold: ThresholdRule | None = None,
    policy: DecisionPolicy | None = None,
    abstention: AbstentionRule | None = None,
    class_ids: Collection[str] | None = None,
    settings: dict[str, Any] | None = None,
) -> Rewritten:
    """Write the bundle with `policy` and with thresholds that are chosen on `rows` to `out`; what is None stays as it is.

    A rule that promises something chooses on rows that the bundle was calibrated on too, but the status says that nothing is
    promised where such rows cannot bear it (`ovr.abstention.promises`).

    Args:
        policy: counts as a whole, its limit of abstention too.
        abstention: chooses the policy's limit on `rows`, given the thresholds; None: the policy's own, which is stale if a rule
            chose it for decisions that new thresholds change.
        class_ids: whose thresholds are chosen again; by default all. The policy is that of the whole bundle.
        settings: what the provenance tells of this step, in plain values.

    Raises:
        ConfigError: no class id, or nothing to choose.
        TaxonomyError: a class id that the bundle does not have.
        ArtifactError, DataError: what `rewritten` and the rule refuse.
    """
    if threshold is None and policy is None and abstention is None:
        raise ConfigError("there is nothing to choose; give decision=, threshold= or abstention=, or several of them")
    columns = some_columns(bundle, class_ids)
    check_out(bundle, out)
    calibrations = calibrations_of(bundle)
    threshold_K = np.array(bundle.card.thresholds, np.float64)
    status_K = list(thresholds_of(bundle).status_K)
    are: dict[str, Any] = {"kinds": calibrations.columns["kind"], "cohorts": bundle.cohorts is not None}
    doubt_K = heads_in_doubt(threshold, **are) & rows.calibrated_on
    blocks = Probs(rows.logits, calibrations, bundle.cohorts, numbers_of_rows(bundle.cohorts, rows.cohorts))
    for block, prob_NC in blocks if threshold is not None else ():
        assert threshold is not None
        target_NC, mask_NC = rows.labels.columns(block)
        found = fit_thresholds(threshold, prob_NC, target_NC, mask_NC, taxonomy=bundle.taxonomy, columns=block)
        found = without_promise(found, doubt_K[block])
        for k, number, said in zip(range(block.start, block.stop), found.threshold_K, found.status_K, strict=True):
            if columns is None or k in columns:
                threshold_K[k], status_K[k] = number, said
    thresholds = Thresholds(threshold_K, tuple(status_K))
    warn_of_fallbacks(thresholds, bundle.taxonomy.ids)
    entry = {"command": "decide", "data": rows.record, **(settings or {})}
    abstention_status = None if policy is None else CONSTANT
    ruled = bundle.policy.abstain_below > 0 and bundle.provenance.get("abstention_status") != CONSTANT
    if policy is None and ruled and bundle.policy.mode == "multilabel" and (threshold_K != bundle.card.thresholds).any():
        abstention_status = STALE
    policy = bundle.policy if policy is None else policy
    if abstention is not None:
        num_rows = len(rows.logits)
        chosen = threshold is not None or rows.calibrated_on
        doubt = limit_in_doubt(abstention, policy, **are, calibrated=rows.calibrated_on, chosen=chosen)
        policy, abstention_status = fit_abstention(
            abstention, blocks, rows.labels, num_rows=num_rows, threshold_K=threshold_K, policy=policy, doubt=doubt
        )
    return rewritten(
        bundle,
        out,
        calibrations=calibrations,
        threshold_K=threshold_K,
        policy=policy,
        cohorts=bundle.cohorts,
        entry=entry,
        threshold_status_K=status_K,
        abstention_status=abstention_status,
        digest_N=rows.digest_N,
    )
