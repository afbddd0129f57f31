"""A bundle whose heads are calibrated again, on its own calibration rows or on new ones. Needs no torch.

N = rows, K = heads, C = heads of one block
"""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.apply import calibrated_prob
from ovr.calibrator.blocks import as_one, check_calibration_rows, check_calibrator, wants_all_heads
from ovr.calibrator.cohort import CohortCalibrator
from ovr.core.artifact import Calibration
from ovr.core.bundle import ModelBundle
from ovr.core.calibrations import Calibrations
from ovr.core.thresholds import NOT_PROMISED, OK
from ovr.data.cohorts import Cohorts
from ovr.data.labels import Labels
from ovr.errors import ConfigError
from ovr.lifecycle.assemble import Rewritten, check_out
from ovr.lifecycle.cohorts import cohort_of_rows, merged
from ovr.lifecycle.rewrite import calibrations_of, differ, rewritten, thresholds_of
from ovr.lifecycle.rows import LabelledLogits

log = logging.getLogger(__name__)

THRESHOLDS = ("same_rows", "same_numbers")
JOINED = f"{NOT_PROMISED}: the calibration since then gives rows on both sides of the threshold one probability"
STALE = "stale: chosen before the heads were calibrated again"
FAR = 1e4  # logits of which every calibration has come to its end
BISECTIONS = 100
STEP = 1e-3  # of a logit, by which rows on both sides of a cut differ


class Calibrator(Protocol):
    """Fits one `Calibration` a head, in column order, on logits (N, K), of all heads or of some of them."""

    kinds: tuple[str, ...]  # of the calibrations that it may give

    def fit(self, logit_NK: NDArray[Any], target_NK: NDArray[Any], mask_NK: NDArray[Any]) -> list[Calibration]: ...


def calibrate(
    bundle: ModelBundle,
    out: Path,
    rows: LabelledLogits,
    *,
    calibrator: Calibrator,
    class_ids: Collection[str] | None = None,
    thresholds: str = "same_rows",
    cohort: CohortCalibrator | None = None,
    settings: dict[str, Any] | None = None,
) -> Rewritten:
    """Write the bundle with calibrations that are fitted on `rows` to `out`.

    All heads are fitted, block by block or, for a calibrator with a true `all_heads`, at once; those of `class_ids` alone take what
    was fitted.

    Args:
        thresholds: of heads that change. "same_rows" moves each so that it takes the rows that it took, which keeps what was chosen
            or promised of it (of a bundle with cohorts: of rows without one); where the new calibration gives rows on both sides
            one probability, as isotonic does, no number would, which the threshold's status then says. Fallbacks stay.
            "same_numbers" keeps the numbers, for thresholds that are probabilities of their own meaning (costs).
        cohort: fits a calibration a cohort, by its column or, where it names none, by that of a bundle that has cohorts.
        settings: what the provenance tells of this step, in plain values.

    Raises:
        ConfigError: another `thresholds`, no class id, or what `check_settings` refuses.
        TaxonomyError: a class id that the bundle does not have.
        ArtifactError, DataError: what `rewritten`, `check_rows` and the calibrator refuse.
    """
    if thresholds not in THRESHOLDS:
        raise ConfigError(f"thresholds is {thresholds!r}; expected {' or '.join(THRESHOLDS)}")
    columns = some_columns(bundle, class_ids)
    check_out(bundle, out)
    before = calibrations_of(bundle)
    parts, fits = [], []
    cohort = check_settings(bundle, calibrator, cohort)
    check_rows(rows.labels, rows.cohorts, calibrator, cohort)
    cohort_N = None if cohort.column is None else cohort_of_rows(cohort.column, rows.cohorts)
    for block, logit_NC in as_one(rows.logits) if wants_all_heads(calibrator) else rows.logits:
        target_NC, mask_NC = rows.labels.columns(block)
        fitted = calibrator.fit(logit_NC, target_NC, mask_NC)
        chosen = [
            new if columns is None or block.start + c in columns else old
            for c, (new, old) in enumerate(zip(fitted, before[block], strict=True))
        ]
        parts.append(Calibrations.of(chosen))
        if cohort_N is not None:
            fits.append(cohort.fit(logit_NC, target_NC, mask_NC, cohort_N, parts[-1]))
    after = Calibrations.joined(parts)
    threshold_K = np.array(bundle.card.thresholds, np.float64)
    status_K = list(thresholds_of(bundle).status_K)
    if thresholds == "same_rows":
        chosen_K = np.array([status == OK for status in status_K])
        moved_K, joined_K = moved_thresholds(threshold_K, before, after)
        threshold_K = np.where(chosen_K, moved_K, threshold_K)
        for k in np.flatnonzero(chosen_K & joined_K):
            status_K[k] = JOINED
        if (chosen_K & joined_K).any():
            shown = ", ".join(repr(bundle.taxonomy[k].id) for k in np.flatnonzero(chosen_K & joined_K)[:5])
            log.warning(
                "%d thresholds no longer take the rows that they took: %s; `ovr decide threshold=NAME` chooses them again",
                int((chosen_K & joined_K).sum()),
                shown,
            )
    stale = bundle.policy.abstain_below > 0 and bool(differ(before, after).any())
    if stale:
        log.warning(
            "abstain_below=%.4f was chosen on other probabilities; `ovr decide abstention=NAME` chooses it again",
            bundle.policy.abstain_below,
        )
    entry = {"command": "calibrate", "thresholds": thresholds, "data": rows.record, **(settings or {})}
    cohorts = merged(bundle.cohorts, cohort.joined(fits), columns, after) if fits else None
    if cohorts is not None and bundle.cohorts is not None and (lost := sorted(set(bundle.cohorts.names) - set(cohorts.names))):
        log.warning(
            "no row here is of cohort %s, which the bundle had: it gets the pooled calibration from now on, unless its rows are "
            "added or classes= names the heads to change",
            ", ".join(map(repr, lost[:10])),
        )
    return rewritten(
        bundle,
        out,
        calibrations=after,
        threshold_K=threshold_K,
        policy=bundle.policy,
        cohorts=cohorts,
        entry=entry,
        threshold_status_K=status_K,
        abstention_status=STALE if stale else None,
        digest_N=rows.digest_N,
    )


def check_settings(bundle: ModelBundle, calibrator: Calibrator, cohort: CohortCalibrator | None) -> CohortCalibrator:
    """Return the calibrator of cohorts, with the column of a bundle that has cohorts where it names none; needs no row.

    Raises:
        ConfigError: what `check_calibrator` refuses.
    """
    cohort = cohort or CohortCalibrator(column=None)
    if cohort.column is None and bundle.cohorts is not None:
        column = bundle.cohorts.column
        cohort = CohortCalibrator(column=column, min_positives=cohort.min_positives, prior_strength=cohort.prior_strength)
    check_calibrator(calibrator, num_heads=len(bundle.heads), cohort_column=cohort.column)
    return cohort


def check_rows(labels: Labels, cohorts: Cohorts, calibrator: Calibrator, cohort: CohortCalibrator) -> None:
    """Check labelled rows before logits are made of them.

    Raises:
        DataError: they carry no cohorts of the column, or labels that the calibrator does not take.
    """
    if cohort.column is not None:
        cohort_of_rows(cohort.column, cohorts)
    check_calibration_rows(calibrator, *labels.classes_of_rows())


def some_columns(bundle: ModelBundle, class_ids: Collection[str] | None) -> frozenset[int] | None:
    """Return the columns of classes; None of None, which are all.

    Raises:
        ConfigError: no class id.
        TaxonomyError: a class id that the bundle does not have.
    """
    if class_ids is None:
        return None
    if not class_ids:
        raise ConfigError("classes is an empty list; name the class ids of the heads to change, or leave it out for all")
    return frozenset(bundle.taxonomy.column(class_id) for class_id in class_ids)


def moved_thresholds(
    threshold_K: NDArray[np.float64], before: Calibrations, after: Calibrations
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the thresholds (K,) by which the calibrations `after` take the rows that those `before` took, to float32.

    With them come the heads (K,) where no number does that, because `after` gives rows below the cut the probability of those at
    it: these thresholds lie above all of them, so that no row is taken that was not.

    The least logit that was taken is found by bisection. Heads whose calibration stays keep their threshold, and so do thresholds
    outside 0 to 1 and those that took all rows or none, for which there is no cut.
    """
    low_K, high_K = np.full(len(threshold_K), -FAR), np.full(len(threshold_K), FAR)
    taken_32 = threshold_K.astype(np.float32)

    def takes(logit_K: NDArray[np.float64]) -> NDArray[np.bool_]:
        prob_K: NDArray[np.float32] = calibrated_prob(logit_K[None], before)[0].astype(np.float32)
        return prob_K >= taken_32

    inside_K = differ(before, after) & takes(high_K) & ~takes(low_K) & (threshold_K < 1)
    for _ in range(BISECTIONS):
        middle_K = (low_K + high_K) / 2
        taken_K = takes(middle_K)
        high_K, low_K = np.where(taken_K, middle_K, high_K), np.where(taken_K, low_K, middle_K)
    moved_32 = calibrated_prob(high_K[None], after)[0].astype(np.float32)
    joined_K = inside_K & (calibrated_prob(high_K[None] - STEP, after)[0].astype(np.float32) == moved_32)
    moved_32 = np.where(joined_K, np.nextafter(moved_32, np.float32(2)), moved_32)
    return np.where(inside_K, moved_32.astype(np.float64), threshold_K), joined_K
