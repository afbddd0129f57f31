"""Calibrations, thresholds and abstention limit of a run, and which calibration rows each of them is fitted on.

A rule that promises something is given rows that the calibrations were not fitted on, where it could promise nothing on those
(`ovr.abstention.promises`). Knows no files and no model, but the logits that it gives.

N = rows, C = heads of one block
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.abstention.fit import CONSTANT, fit_abstention
from ovr.abstention.promises import heads_in_doubt, limit_in_doubt, looks_at_thresholds, without_promise
from ovr.calibrator.blocks import Probs, as_one, wants_all_heads
from ovr.calibrator.cohort import cohort_prob
from ovr.core import scale
from ovr.core.artifact import DecisionPolicy
from ovr.core.calibrations import Calibrations
from ovr.core.cohorts import CohortCalibrations
from ovr.core.taxonomy import Taxonomy
from ovr.core.thresholds import Thresholds
from ovr.data.cohorts import Cohorts
from ovr.data.labels import Labels
from ovr.data.splits import CalibRows
from ovr.threshold.fit import fit_thresholds, warn_of_fallbacks
from ovr.training.blocks import LogitBlocks
from ovr.training.recipe import Recipe

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What a run found on its calibration rows; `num_rows` says on how many of them each was fitted."""

    calibrations: Calibrations
    cohorts: CohortCalibrations | None
    thresholds: Thresholds
    policy: DecisionPolicy
    abstention_status: str
    num_rows: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Part:
    """Some of the calibration rows."""

    logits: LogitBlocks
    labels: Labels
    cohorts: Cohorts

    def take(self, row_B: NDArray[np.int64]) -> "_Part":
        cohorts = {name: cohort_N[row_B] for name, cohort_N in self.cohorts.items()}
        return _Part(self.logits.take(row_B), self.labels.take(row_B), cohorts)

    def probs(self, calibrations: Calibrations, cohorts: CohortCalibrations | None) -> Probs:
        number_N = None if cohorts is None else cohorts.numbers(self.cohorts[cohorts.column])
        return Probs(self.logits, calibrations, cohorts, number_N)


def calibrate(recipe: Recipe, logits: LogitBlocks, rows: CalibRows, taxonomy: Taxonomy) -> Calibrated:
    """Return calibrations, thresholds and limit; where a promise needs it, a share `recipe.promise_share` of the rows, drawn by the
    run's seed, is kept from the calibrations for the rules that promise something.

    Raises:
        ConfigError, DataError: what calibrator and rules refuse.
        ArtifactError: calibrations that a bundle of so many heads cannot keep.
    """
    every = _Part(logits, rows.labels, rows.cohorts)
    may: dict[str, Any] = {"kinds": recipe.calibrator.kinds, "cohorts": recipe.cohort.column is not None}
    apart = bool(heads_in_doubt(recipe.threshold, **may).any())
    limit_apart = limit_in_doubt(recipe.abstention, recipe.policy, **may, calibrated=True, chosen=True) is not None
    fitted_on = kept = every
    if apart or limit_apart:
        fitted_on, kept = _parted(every, recipe)
    by_decisions = looks_at_thresholds(recipe.abstention, recipe.policy)
    chosen_on = kept if apart else fitted_on if by_decisions else every
    limit_on = kept if limit_apart else every

    calibrations, cohorts, thresholds = _fit(recipe, fitted_on, chosen_on, taxonomy)
    are: dict[str, Any] = {"kinds": calibrations.columns["kind"], "cohorts": cohorts is not None}
    if kept is every:
        thresholds = without_promise(thresholds, heads_in_doubt(recipe.threshold, **are))
    warn_of_fallbacks(thresholds, taxonomy.ids)
    policy, status = recipe.policy, CONSTANT
    if recipe.abstention is not None:
        policy, status = fit_abstention(
            recipe.abstention,
            limit_on.probs(calibrations, cohorts),
            limit_on.labels,
            num_rows=len(limit_on.logits),
            threshold_K=thresholds.threshold_K,
            policy=policy,
            doubt=limit_in_doubt(recipe.abstention, policy, **are, calibrated=kept is every, chosen=limit_on is chosen_on),
        )
    fitted = {"calibrations": fitted_on, "thresholds": chosen_on, "abstain_below": limit_on}
    return Calibrated(calibrations, cohorts, thresholds, policy, status, {name: len(part.logits) for name, part in fitted.items()})


def _parted(every: _Part, recipe: Recipe) -> tuple[_Part, _Part]:
    """Return the rows for the calibrations and those kept for promises: all for both where one of them would have none."""
    num_rows = len(every.logits)
    num_kept = round(recipe.promise_share * num_rows)
    if not 0 < num_kept < num_rows:
        return every, every
    row_N = np.random.default_rng(recipe.seed).permutation(num_rows)
    log.info("%d of %d calibration rows are kept from the calibrations, for what is promised", num_kept, num_rows)
    return every.take(np.sort(row_N[num_kept:])), every.take(np.sort(row_N[:num_kept]))


def _fit(
    recipe: Recipe, fitted_on: _Part, chosen_on: _Part, taxonomy: Taxonomy
) -> tuple[Calibrations, CohortCalibrations | None, Thresholds]:
    parts, fits, chosen = [], [], []

    def choose(columns: slice, prob_NC: NDArray[np.float32]) -> None:
        labels = chosen_on.labels.columns(columns)
        chosen.append(fit_thresholds(recipe.threshold, prob_NC, *labels, taxonomy=taxonomy, columns=columns))

    logits = fitted_on.logits
    at_once = chosen_on is fitted_on and recipe.cohort.column is None  # logits need be made but once
    for columns, logit_NC in as_one(logits) if wants_all_heads(recipe.calibrator) else logits:
        target_NC, mask_NC = fitted_on.labels.columns(columns)
        parts.append(Calibrations.of(recipe.calibrator.fit(logit_NC, target_NC, mask_NC)))
        if logits.num_heads >= scale.LARGE_K:
            parts[-1].check_affine(where=f"a bundle of {scale.LARGE_K} heads or more")
        if at_once:
            choose(columns, cohort_prob(logit_NC, parts[-1], None, None).astype(np.float32))
        elif recipe.cohort.column is not None:
            cohort_N = fitted_on.cohorts[recipe.cohort.column]
            fits.append(recipe.cohort.fit(logit_NC, target_NC, mask_NC, cohort_N, parts[-1]))
    calibrations = Calibrations.joined(parts)
    cohorts = recipe.cohort.joined(fits) if fits else None
    if not at_once:
        for columns, prob_NC in chosen_on.probs(calibrations, cohorts):
            choose(columns, prob_NC)
    if cohorts is not None:
        log.info(
            "calibrations for %s; %d of %d heads of a cohort keep the pooled one",
            ", ".join(f"{cohorts.column}={name}" for name in cohorts.names),
            sum(row.count("pooled") for row in cohorts.status),
            len(cohorts.names) * cohorts.num_heads,
        )
    for status, count in calibrations.num_by_status().items():
        if status != "ok":
            log.warning("calibration status %r for %d of %d heads", status, count, len(calibrations))
    return calibrations, cohorts, Thresholds.joined(chosen)
