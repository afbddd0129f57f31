import numpy as np
import pytest

from ovr.core.taxonomy import ClassSpec, Taxonomy
from ovr.errors import ConfigError
from ovr.metric.binned import debiased_ece
from ovr.metric.bins import bin_sums
from ovr.metric.calibration_bound import ece_upper_bound, rows_needed
from ovr.metric.contract import judge, judge_cohorts, limits_of

IDS = ("good", "bad", "few", "none", "bad with few")
CLASSES = Taxonomy.from_ids(IDS)


def sample(rng, num_rows=4000):
    """Return a calibrated head, one that is far off, one of 60 rows, one without rows, and one far off with 500 rows."""
    prob_NK = np.repeat(rng.uniform(0.02, 0.98, (num_rows, 1)), 5, axis=1)
    truth_NK = prob_NK.copy()
    truth_NK[:, 1] = truth_NK[:, 4] = np.clip(prob_NK[:, 1] - 0.45, 0, 1)
    mask_NK = np.ones((num_rows, 5), bool)
    mask_NK[60:, 2] = mask_NK[:, 3] = mask_NK[500:, 4] = False
    return prob_NK, rng.random((num_rows, 5)) < truth_NK, mask_NK


def test_each_head_gets_the_verdict_that_its_rows_allow(rng):
    prob_NK, target_NK, mask_NK = sample(rng)
    verdicts = judge(prob_NK, target_NK, mask_NK, class_ids=IDS, limit_K=limits_of(CLASSES))
    assert [v.outcome for v in verdicts] == ["pass", "fail", "undecided", "undecided", "fail"]
    ece_K, upper_K = ece_upper_bound(prob_NK, target_NK, mask_NK)
    for k, verdict in enumerate(verdicts):
        assert verdict.class_id == IDS[k]
        assert verdict.upper == upper_K[k]
        assert verdict.ece == (None if k == 3 else ece_K[k])
        assert verdict.num_rows == mask_NK[:, k].sum()
        assert verdict.num_positives == (target_NK & mask_NK)[:, k].sum()
    assert 60 < verdicts[2].num_rows_needed <= 4000
    assert "'few': undecided (ECE" in str(verdicts[2])
    counts = f"60 rows, {verdicts[2].num_positives} positive"
    assert f"{counts}; it needs about {verdicts[2].num_rows_needed} rows to decide if it is perfectly calibrated" in str(
        verdicts[2]
    )
    assert str(verdicts[3]).startswith("'none': undecided (no known row; limit 0.05; 0 rows, 0 positive; it needs about ")
    assert "needs" not in str(verdicts[1])
    assert verdicts[0].to_json()["outcome"] == "pass"


def test_as_many_rows_as_are_needed_decide(rng):
    prob_NK, target_NK, mask_NK = sample(rng, 9000)
    needed = judge(prob_NK, target_NK, mask_NK, class_ids=IDS, limit_K=limits_of(CLASSES))[0].num_rows_needed
    known_N1, limit_K = np.ones((needed, 1), bool), limits_of(Taxonomy.from_ids("a"))
    outcomes = []
    for _ in range(40):
        p_N1 = rng.uniform(0.02, 0.98, (needed, 1))
        [verdict] = judge(p_N1, rng.random((needed, 1)) < p_N1, known_N1, class_ids=["a"], limit_K=limit_K)
        outcomes.append(verdict.outcome)
    assert outcomes.count("pass") >= 26  # 0.8 of 40 is promised; below 26 with probability 0.005


def test_a_class_has_its_own_limit(rng):
    prob_NK, target_NK, mask_NK = sample(rng)
    limit_K = limits_of(CLASSES, 0.05, {"bad": 0.9, "good": 0.001})
    assert limit_K.tolist() == [0.001, 0.9, 0.05, 0.05, 0.05]
    own = Taxonomy([ClassSpec("good", max_ece=0.02), ClassSpec("bad", max_ece=0.3), ClassSpec("few")])
    assert limits_of(own, 0.1, {"bad": 0.9}).tolist() == [0.02, 0.9, 0.1]
    verdicts = judge(prob_NK, target_NK, mask_NK, class_ids=IDS, limit_K=limit_K)
    assert verdicts[1].outcome == "pass"
    assert verdicts[0].outcome == "undecided"
    assert verdicts[0].num_rows_needed > 4000


def test_limits_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"the model of 1 classes does not have: 'owl', 'cet' \(nearest: cat\)$"):
        limits_of(Taxonomy.from_ids(["cat"]), of_class={"owl": 0.1, "cet": 0.1})
    for limit, of_class, message in (
        (0, {}, "the contract's limit is 0; expected a number above 0"),
        (True, {}, "limit is True"),
        ("a", {}, "limit is 'a'"),
        (0.05, {"cat": 1.5}, "limit of class 'cat' is 1.5"),
    ):
        with pytest.raises(ConfigError, match=message):
            limits_of(Taxonomy.from_ids(["cat"]), limit, of_class)


def test_more_rows_are_needed_by_a_head_whose_error_stays_what_it_is(rng):
    prob_NK = np.repeat(rng.uniform(0.02, 0.98, (300, 1)), 3, axis=1)
    target_NK, mask_NK = rng.random((300, 3)) < np.clip(prob_NK - [0.0, 0.03, 0.2], 0, 1), np.ones((300, 3))
    debiased_K = np.maximum(debiased_ece(bin_sums(prob_NK, target_NK, mask_NK)), 0)
    ids, limit = ["good", "off", "bad"], float(debiased_K[1]) + 0.02
    verdicts = judge(prob_NK, target_NK, mask_NK, class_ids=ids, limit_K=np.full(3, limit))
    assert [v.outcome for v in verdicts[:2]] == ["undecided", "undecided"]
    for k, verdict in enumerate(verdicts[:2]):
        (number,) = rows_needed(limit, prob_NK[:, [k]], mask_NK[:, [k]], assumed=float(debiased_K[k]))
        assert verdict.num_rows_needed_as_measured == number > verdict.num_rows_needed
        assert f" calibrated, {number} if its ECE is {debiased_K[k]:.4f} (as measured, less the noise of" in str(verdict)
    assert verdicts[2].num_rows_needed_as_measured is None
    (few,) = judge(prob_NK[:20, 2:], target_NK[:20, 2:], mask_NK[:20, 2:], class_ids=["bad"], limit_K=np.array([0.05]))
    assert few.outcome == "undecided"
    assert "; no number would do if its ECE is 0." in str(few)
    prob_N1 = rng.uniform(0.2, 0.8, (1500, 1))
    target_N1 = rng.random((1500, 1)) < prob_N1 - 0.1
    (unproven,) = judge(prob_N1, target_N1, np.ones((1500, 1)), class_ids=["off"], limit_K=np.array([0.12]))
    assert unproven.outcome == "fail"
    assert f"about {unproven.num_rows_needed_as_measured} rows would show that it keeps it if its ECE is" in str(unproven)


def test_a_head_that_is_right_on_average_is_off_in_each_cohort(rng):
    num_rows = 8000
    prob_NK = np.repeat(rng.uniform(0.2, 0.8, (num_rows, 1)), 2, axis=1)
    cohort_N = rng.choice(["F", "M", "few", ""], num_rows, p=[0.495, 0.495, 0.005, 0.005])
    shift_N = 0.15 * ((cohort_N == "F").astype(float) - (cohort_N == "M"))
    target_NK = rng.random((num_rows, 2)) < prob_NK + shift_N[:, None] * [1, 0]
    mask_NK = rng.random((num_rows, 2)) < 0.95
    about = {"class_ids": ["off", "good"], "limit_K": np.full(2, 0.05)}
    assert [v.outcome for v in judge(prob_NK, target_NK, mask_NK, **about)] == ["pass", "pass"]
    both, own = np.array([True, True]), np.array([False, True])
    fitted = {"F": both, "M": own, "few": own, "none": own, "pooled": ~both}
    verdicts = judge_cohorts(prob_NK, target_NK, mask_NK, cohort_N=cohort_N, fitted=fitted, **about)
    told = [(v.class_id, v.cohort, v.outcome) for v in verdicts]
    assert told == [
        ("off", "F", "fail"),
        ("good", "F", "pass"),
        ("good", "M", "pass"),
        ("good", "few", "undecided"),
        ("good", "none", "undecided"),
    ]
    assert str(verdicts[0]).startswith("'off (F)': fail (ECE 0.1")
    assert "'good (few)': undecided (ECE" in str(verdicts[3])
    assert "it needs about" in str(verdicts[3])
    assert str(verdicts[4]).startswith("'good (none)': undecided (no known row; limit 0.05; 0 rows, 0 positive; it needs about ")
    here = cohort_N == "F"
    alone = judge(prob_NK[here], target_NK[here], mask_NK[here], **about)
    for of_cohort, of_rows in zip(verdicts, alone, strict=False):
        assert (of_cohort.ece, of_cohort.upper, of_cohort.num_rows) == pytest.approx((of_rows.ece, of_rows.upper, of_rows.num_rows))
