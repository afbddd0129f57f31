"""Thresholds with a promise: the promised rate over draws from a known distribution, and the definition on small arrays."""

from functools import partial

import numpy as np
import pytest
from scipy import stats

from ovr.core.taxonomy import Taxonomy
from ovr.core.thresholds import Thresholds
from ovr.errors import ConfigError, DataError
from ovr.threshold.conformal import Conformal
from ovr.threshold.fit import rule_for
from ovr.threshold.precision_at_least import PrecisionAtLeast, cut_counts
from ovr.threshold.recall_at_least import RecallAtLeast
from tests.threshold.draws import draws, most_violations, true_precision_and_recall

NUM_DRAWS = 1000
SHAPES = [{"steep": 4.0, "shift": 0.0}, {"steep": 3.0, "shift": 1.0}]


@pytest.mark.parametrize("shape", SHAPES)
def test_precision_is_kept_as_often_as_promised_and_not_by_a_naive_choice(shape):
    prob_NR, target_NR = draws(num_rows=800, num_draws=NUM_DRAWS, **shape)
    found = PrecisionAtLeast(precision=0.8, delta=0.1, over="class").fit(prob_NR, target_NR, np.ones_like(target_NR))
    promised_R = np.array([status == "ok" for status in found.status_K])
    precision_R, recall_R = true_precision_and_recall(found.threshold_K, **shape)
    assert promised_R.mean() > 0.8
    assert recall_R[promised_R].mean() > 0.3  # and it is not kept by taking next to nothing
    assert (precision_R[promised_R] < 0.8).sum() <= most_violations(NUM_DRAWS, 0.1)
    # The lowest threshold whose precision on the calibration rows themselves is high enough.
    order = np.argsort(-prob_NR, axis=0)
    hits = np.cumsum(np.take_along_axis(target_NR, order, axis=0), axis=0) / np.arange(1, 801)[:, None]
    last_R = 799 - np.argmax((hits >= 0.8)[::-1], axis=0)
    naive_R = np.take_along_axis(np.take_along_axis(prob_NR, order, axis=0), last_R[None], axis=0)[0]
    assert (true_precision_and_recall(naive_R, **shape)[0] < 0.8).mean() > 0.4


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_rows", [60, 300])
def test_recall_is_kept_as_often_as_promised_and_not_by_a_naive_choice(shape, num_rows):
    prob_NR, target_NR = draws(num_rows=num_rows, num_draws=NUM_DRAWS, **shape)
    found = RecallAtLeast(recall=0.85, delta=0.1, over="class").fit(prob_NR, target_NR, np.ones_like(target_NR))
    recall_R = true_precision_and_recall(found.threshold_K, **shape)[1]
    broken = int((recall_R < 0.85).sum())
    assert broken <= most_violations(NUM_DRAWS, 0.1)
    assert broken > 0  # no larger than it has to be
    positive = np.where(target_NR, prob_NR, np.nan)
    naive_R = np.nanquantile(positive, 0.15, axis=0, method="lower")
    assert (true_precision_and_recall(naive_R, **shape)[1] < 0.85).mean() > 0.3


@pytest.mark.parametrize(
    ("make", "measure", "asked"),
    [(partial(PrecisionAtLeast, precision=0.75, delta=0.1), 0, 0.75), (partial(RecallAtLeast, recall=0.85, delta=0.1), 1, 0.85)],
)
def test_by_default_promises_over_all_classes_fail_together_as_rarely_as_one(make, measure, asked):
    models = (NUM_DRAWS, 5)  # of five classes each
    prob_NR, target_NR = draws(num_rows=300, num_draws=NUM_DRAWS * 5, **SHAPES[0])

    def broken(rule):
        found = rule_for(rule, Taxonomy.from_ids("abcde")).fit(prob_NR, target_NR, np.ones_like(target_NR))
        promised_R = np.array([status == "ok" for status in found.status_K])
        assert promised_R.mean() > 0.95
        short_R = true_precision_and_recall(found.threshold_K, **SHAPES[0])[measure] < asked
        return int((short_R & promised_R).reshape(models).any(axis=1).sum())

    assert broken(make()) <= most_violations(NUM_DRAWS, 0.1)
    assert broken(make(over="class")) > (1.5 * broken(make()))


def test_conformal_sets_hold_each_class_as_often_as_said():
    shape = SHAPES[1]
    prob_NR, target_NR = draws(num_rows=100, num_draws=NUM_DRAWS, **shape)
    found = Conformal(coverage=0.9).fit(prob_NR, target_NR, np.ones_like(target_NR))
    covered_R = true_precision_and_recall(found.threshold_K, **shape)[1]
    assert abs(covered_R.mean() - 0.9) < 0.03  # between 0.9 and 0.9 + 1 / (n + 1), n some 20
    assert covered_R.mean() > 0.9 - 4 * covered_R.std() / np.sqrt(NUM_DRAWS)


@pytest.mark.parametrize("num_positives", [1, 8, 9, 10, 25, 99])
def test_conformal_thresholds_are_the_quantile_of_the_positives(num_positives):
    rng = np.random.default_rng(num_positives)
    prob_N = rng.permutation(np.linspace(0.01, 0.99, 150))
    target_N = np.arange(150) < num_positives
    found = Conformal(coverage=0.9).fit(prob_N[:, None], target_N[:, None], np.ones((150, 1)))
    rank = int(np.floor(0.1 * (num_positives + 1) + 1e-9))
    assert (found.status_K[0] == "ok") == (rank > 0) == (num_positives >= 9)
    expected = np.sort(prob_N[target_N])[rank - 1] if rank else 0.0
    assert (prob_N[target_N] >= found.threshold_K[0]).sum() == num_positives - max(rank - 1, 0)
    assert found.threshold_K[0] <= np.float32(expected)


@pytest.mark.parametrize("num_levels", [5, 10**6])
def test_recall_thresholds_are_the_tolerance_limit(num_levels):
    rng = np.random.default_rng(3)
    prob_NK = rng.integers(1, num_levels, size=(300, 8)) / num_levels
    target_NK, mask_NK = rng.random((300, 8)) < np.linspace(0.02, 0.9, 8), rng.random((300, 8)) < 0.9
    found = RecallAtLeast(recall=0.9, delta=0.05, over="class").fit(prob_NK, target_NK, mask_NK)
    for k in range(8):
        positives = np.sort(prob_NK[target_NK[:, k] & mask_NK[:, k], k].astype(np.float32))
        fitting = [j for j in range(1, len(positives) + 1) if stats.binom.cdf(j - 1, len(positives), 0.1) <= 0.05]
        if not fitting:
            needed = next(n for n in range(1, 100) if 0.9**n <= 0.05)
            assert needed == 29
            assert found.status_K[k] == f"cannot_be_promised: n = {len(positives)} positives, needs at least {needed}"
            assert found.threshold_K[k] == 0.0
        else:
            limit = positives[fitting[-1] - 1]
            assert found.status_K[k] == "ok"
            assert (positives >= found.threshold_K[k]).sum() == (positives >= limit).sum()


@pytest.mark.parametrize("num_levels", [6, 10**6])
def test_precision_thresholds_are_those_of_the_procedure_step_by_step(num_levels):
    rng = np.random.default_rng(4)
    prob_NK = rng.integers(1, num_levels, size=(400, 12)) / num_levels
    target_NK = rng.random((400, 12)) < prob_NK ** np.linspace(0.05, 3, 12)
    mask_NK = rng.random((400, 12)) < 0.9
    found = PrecisionAtLeast(precision=0.7, delta=0.1).fit(prob_NK, target_NK, mask_NK)
    needed = next(n for n in range(1, 100) if 0.7**n <= 0.8 * 0.1 / 12)
    assert len(set(found.status_K)) > 3
    for k in range(12):
        known = mask_NK[:, k]
        prob_n, target_n = prob_NK[known, k].astype(np.float32), target_NK[known, k]
        counts = [m for m in cut_counts(needed, 400).tolist() if m <= known.sum()]
        held, lowest, tests = 0.0, None, []
        for g, count in enumerate(counts):
            share = 0.1 / 12 * (0.8 if g == 0 else 0.2 / (len(counts) - 1))
            held += share
            taken = prob_n >= np.sort(prob_n)[::-1][count - 1]
            chance = stats.binom.sf(target_n[taken].sum() - 1, taken.sum(), 0.7)
            tests.append((chance / share, target_n[taken].sum(), taken.sum(), chance, share))
            if chance <= held:
                lowest = taken
            else:
                held = 0.0
        if lowest is None:
            assert found.threshold_K[k] == 1.0
            reason = f"needs at least {needed}"
            if target_n.sum() >= needed:
                _, hits, taken, chance, share = min(tests)
                assert chance > share
                reason = (
                    f"none of {len(counts)} cuts passes: nearest, {hits} of the {taken} highest rows are "
                    f"(p = {chance:.2g}, allowed {share:.2g})"
                )
            assert found.status_K[k] == f"cannot_be_promised: n = {target_n.sum()} positives, {reason}"
        else:
            assert found.status_K[k] == "ok"
            np.testing.assert_array_equal(prob_n >= found.threshold_K[k], lowest)


def test_the_cuts_depend_on_the_number_of_rows_alone():
    assert cut_counts(29, 60).tolist() == [29, 32, 35, 39, 42, 47, 51, 57]
    assert cut_counts(1, 6).tolist() == [1, 2, 3, 4, 5, 6]
    assert cut_counts(29, 28).tolist() == []


@pytest.mark.parametrize(
    "rule",
    [RecallAtLeast(recall=0.8, over="class"), PrecisionAtLeast(precision=0.8, over="class"), Conformal(coverage=0.9)],
)
def test_only_ranks_count_and_a_head_ignores_the_others(rule):
    prob_NR, target_NR = draws(num_rows=300, num_draws=4, **SHAPES[0])
    every = rule.fit(prob_NR, target_NR, np.ones_like(target_NR))
    bent = rule.fit(prob_NR**3, target_NR, np.ones_like(target_NR))
    for k in range(4):
        alone = rule.fit(prob_NR[:, k : k + 1], target_NR[:, k : k + 1], np.ones((300, 1)))
        assert alone == Thresholds(alone.threshold_K, every.status_K[k : k + 1])
        assert alone.threshold_K[0] == every.threshold_K[k]
        np.testing.assert_array_equal(prob_NR[:, k] >= every.threshold_K[k], prob_NR[:, k] ** 3 >= bent.threshold_K[k])


@pytest.mark.parametrize("rule", [RecallAtLeast(recall=0.8), PrecisionAtLeast(precision=0.8), Conformal(coverage=0.9)])
def test_no_rows_promise_nothing(rule):
    found = rule.fit(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 2)))
    assert found.columns_without_promise() == [0, 1]
    np.testing.assert_array_equal(found.threshold_K, [rule.fallback] * 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RecallAtLeast(recall=1.0), r"recall is 1.0; expected a number between 0 and 1"),
        (lambda: RecallAtLeast(recall=0.9, delta=0), r"delta is 0; expected a number between 0 and 1"),
        (lambda: RecallAtLeast(recall=0.9, over="both"), r"over is 'both'; expected 'all' .* or 'class'"),
        (lambda: RecallAtLeast(recall=0.9, fallback=2), r"fallback is 2; expected a probability"),
        (lambda: PrecisionAtLeast(precision="high"), r"precision is 'high'; expected a number between"),
        (lambda: PrecisionAtLeast(precision=0.9, over=None), r"over is None"),
        (lambda: Conformal(coverage=90), r"coverage is 90; expected a number between"),
    ],
)
def test_settings_that_promise_nothing_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("rule", [RecallAtLeast(recall=0.8), PrecisionAtLeast(precision=0.8), Conformal(coverage=0.9)])
def test_values_that_are_no_probabilities_are_refused(rule):
    with pytest.raises(DataError, match="expected 0 to 1"):
        rule.fit([[2.0]], [[1]], [[1]])
