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
from ovr.core.calibrations import Calibrations, cohort_calibrations
from ovr.core.cohorts import CohortCalibrations
from ovr.core.thresholds import NOT_PROMISED, OK
from ovr.data.cohorts import Cohorts
from ovr.data.labels import Labels
from ovr.errors import ConfigError
from ovr.lifecycle.assemble import Rewritten, check_out
from ovr.lifecycle.cohorts import cohort_of_rows, differing, merged
from ovr.lifecycle.rewrite import calibrations_of, differ, rewritten, thresholds_of
from ovr.lifecycle.rows import LabelledLogits

log = logging.getLogger(__name__)

THRESHOLDS = ("same_rows", "same_numbers")
JOINED = f"{NOT_PROMISED}: the calibration since then gives rows on both sides of the threshold one probability"
PARTED = f"{NOT_PROMISED}: with the calibrations of cohorts since then no one threshold takes the rows that it took"
STALE = "stale: chosen before the heads were calibrated again"
FAR = 1e4  # logits of which every calibration has come to its end
BISECTIONS = 100
STEP = 1e-3  # of a logit, by which rows on both sides of a cut differ
CLOSE = 1e-6  # of a threshold: some of float32's last digits
BY_BUNDLE = CohortCalibrator(column=None)  # by the column of a bundle that has cohorts


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
    cohort: CohortCalibrator | None = BY_BUNDLE,
    settings: dict[str, Any] | None = None,
) -> Rewritten:
    """Write the bundle with calibrations that are fitted on `rows` to `out`.

    All heads are fitted, block by block or, for a calibrator with a true `all_heads`, at once; those of `class_ids` alone take what
    was fitted. A head of which no row is labelled keeps what it had.

    Args:
        thresholds: of heads that change. "same_rows" moves each so that it takes the rows that it took, which keeps what was chosen
            or promised of it. No number does where the new calibration gives rows on both sides one probability, as isotonic does,
            nor where those of cohorts would move it elsewhere than the pooled one, by which it is moved: the threshold's status
            then says so. Fallbacks stay.
            "same_numbers" keeps the numbers, for thresholds that are probabilities of their own meaning (costs).
        cohort: fits a calibration a cohort, by its column or, where it names none, by that of a bundle that has cohorts; None
            leaves the pooled calibrations alone: the new bundle has no cohorts.
        settings: what the provenance tells of this step, in plain values.

    Raises:
        ConfigError: another `thresholds`, no class id, some where cohorts are taken off, which all heads share, or what
            `check_settings` refuses.
        TaxonomyError: a class id that the bundle does not have.
        ArtifactError, DataError: what `rewritten`, `check_rows` and the calibrator refuse.
    """
    if thresholds not in THRESHOLDS:
        raise ConfigError(f"thresholds is {thresholds!r}; expected {' or '.join(THRESHOLDS)}")
    columns = some_columns(bundle, class_ids)
    check_out(bundle, out)
    before = calibrations_of(bundle)
    parts, fits = [], []
    if cohort is None and bundle.cohorts is not None and columns is not None:
        raise ConfigError("cohort=null takes the calibrations of cohorts off all heads at once; leave classes out")
    cohort = check_settings(bundle, calibrator, cohort) or BY_BUNDLE  # which, of rows of no column, has nothing to fit
    check_rows(rows.labels, rows.cohorts, calibrator, cohort)
    cohort_N = None if cohort.column is None else cohort_of_rows(cohort.column, rows.cohorts)
    for block, logit_NC in as_one(rows.logits) if wants_all_heads(calibrator) else rows.logits:
        target_NC, mask_NC = rows.labels.columns(block)
        fitted = calibrator.fit(logit_NC, target_NC, mask_NC)
        chosen = [
            new if (columns is None or block.start + c in columns) and new.status != "no_rows" else old
            for c, (new, old) in enumerate(zip(fitted, before[block], strict=True))
        ]
        parts.append(Calibrations.of(chosen))
        if cohort_N is not None:
            fits.append(cohort.fit(logit_NC, target_NC, mask_NC, cohort_N, parts[-1]))
    after = Calibrations.joined(parts)
    cohorts = merged(bundle.cohorts, cohort.joined(fits), columns, after) if fits else None
    threshold_K = np.array(bundle.card.thresholds, np.float64)
    status_K = list(thresholds_of(bundle).status_K)
    if thresholds == "same_rows":
        chosen_K = np.array([status == OK for status in status_K])
        moved_K, joined_K = moved_thresholds(threshold_K, before, after)
        parted_K = _parted(threshold_K, moved_K, (before, bundle.cohorts), (after, cohorts))
        threshold_K = np.where(chosen_K, moved_K, threshold_K)
        spoilt = np.flatnonzero(chosen_K & (joined_K | parted_K)).tolist()
        for k in spoilt:
            status_K[k] = JOINED if joined_K[k] else PARTED
        if spoilt:
            shown = ", ".join(repr(bundle.taxonomy[k].id) for k in spoilt[:5])
            log.warning(
                "%d thresholds no longer take the rows that they took: %s; `ovr decide threshold=NAME` chooses them again",
                len(spoilt),
                shown,
            )
    changed_K = differ(before, after) | differing(bundle.cohorts, cohorts, len(bundle.heads))
    stale = bundle.policy.abstain_below > 0 and bool(changed_K.any())
    if stale:
        log.warning(
            "abstain_below=%.4f was chosen on other probabilities; `ovr decide abstention=NAME` chooses it again",
            bundle.policy.abstain_below,
        )
    entry = {"command": "calibrate", "thresholds": thresholds, "data": rows.record, **(settings or {})}
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


def check_settings(bundle: ModelBundle, calibrator: Calibrator, cohort: CohortCalibrator | None) -> CohortCalibrator | None:
    """Return the calibrator of cohorts, with the column of a bundle that has cohorts where it names none; needs no row.

    None, which takes cohorts off, stays None.

    Raises:
        ConfigError: what `check_calibrator` refuses.
    """
    if cohort is not None and cohort.column is None and bundle.cohorts is not None:
        column = bundle.cohorts.column
        cohort = CohortCalibrator(column=column, min_positives=cohort.min_positives, prior_strength=cohort.prior_strength)
    check_calibrator(calibrator, num_heads=len(bundle.heads), cohort_column=None if cohort is None else cohort.column)
    return cohort


def check_rows(labels: Labels, cohorts: Cohorts, calibrator: Calibrator, cohort: CohortCalibrator | None) -> None:
    """Check labelled rows before logits are made of them.

    Raises:
        DataError: they carry no cohorts of the column, or labels that the calibrator does not take.
    """
    if cohort is not None and cohort.column is not None:
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


def _parted(
    threshold_K: NDArray[np.float64],
    moved_K: NDArray[np.float64],
    before: tuple[Calibrations, CohortCalibrations | None],
    after: tuple[Calibrations, CohortCalibrations | None],
) -> NDArray[np.bool_]:
    """Return which heads (K,) have rows of a cohort whose calibration moves the threshold elsewhere than to `moved_K`."""
    (old_pooled, old), (new_pooled, new) = before, after
    parted_K = np.zeros(len(threshold_K), np.bool_)
    if old is None and new is None:
        return parted_K
    if old is not None and new is not None and old.column == new.column:
        pairs: list[tuple[str | None, str | None]] = [(name, name) for name in sorted({*old.names, *new.names})]
    else:
        pairs = [(a, b) for a in (*(old.names if old else ()), None) for b in (*(new.names if new else ()), None)]
    for a, b in pairs:
        elsewhere_K, _ = moved_thresholds(threshold_K, _calibrations(old_pooled, old, a), _calibrations(new_pooled, new, b))
        parted_K |= ~np.isclose(elsewhere_K, moved_K, rtol=CLOSE, atol=0)
    return parted_K


def _calibrations(pooled: Calibrations, cohorts: CohortCalibrations | None, name: str | None) -> Calibrations:
    """Return the calibrations of rows of a cohort: the pooled ones where it has none."""
    if cohorts is None or name not in cohorts.names:
        return pooled
    return cohort_calibrations(cohorts, cohorts.names.index(name))
