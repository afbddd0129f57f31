import numpy as np
import pytest

from ovr.core.artifact import Calibration, DecisionPolicy
from ovr.core.taxonomy import Taxonomy
from ovr.data.labels import Labels
from ovr.report.mistakes import MAX_OF_CLASS, confused, decisions, thinned, worst_examples
from ovr.training.evaluate import evaluate
from tests.report.sample import OneBlock


def one_hot(column_N, num_heads):
    return np.eye(num_heads, dtype=bool)[column_N]


def test_with_one_class_a_row_and_argmax_it_is_the_confusion_matrix(rng):
    metrics = pytest.importorskip("sklearn.metrics")
    prob_NK, column_N = rng.random((500, 6)), rng.integers(6, size=500)
    target_NK = one_hot(column_N, 6)
    decided_NK = decisions(prob_NK, np.full(6, 0.5), DecisionPolicy())
    column_H, count_HH = confused(decided_NK, target_NK, np.ones_like(target_NK)).part(10)
    assert column_H.tolist() == list(range(6))
    np.testing.assert_array_equal(count_HH[:, :6], metrics.confusion_matrix(column_N, prob_NK.argmax(1)))
    assert not count_HH[:, 6:].any()


def test_the_map_of_several_classes_a_row_has_the_pairs_of_the_report_and_those_of_a_loop_over_rows(rng):
    logit_NK, target_NK = rng.normal(size=(300, 5)), rng.random((300, 5)) < 0.3
    mask_NK, threshold_K = rng.random((300, 5)) < 0.8, rng.uniform(0.3, 0.9, 5)
    policy = DecisionPolicy("multilabel", abstain_below=0.6)
    prob_NK, taxonomy = 1 / (1 + np.exp(-logit_NK)), Taxonomy.from_ids("abcde")
    decided_NK = decisions(prob_NK, threshold_K, policy)
    _, count_HH = confused(decided_NK, target_NK, mask_NK).part(5)

    expected_HH = np.zeros((5, 7), int)
    for decided_K, target_K, mask_K in zip(decided_NK, target_NK, mask_NK, strict=True):
        wrong = np.flatnonzero(decided_K & ~target_K & mask_K)
        for k in np.flatnonzero(target_K & mask_K):
            taken = [k] if decided_K[k] else wrong if len(wrong) else [6]
            expected_HH[k, taken] += 1
    np.testing.assert_array_equal(count_HH, expected_HH)

    evaluation = evaluate(
        OneBlock(logit_NK),
        Labels.from_dense(target_NK, mask_NK),
        calibrations=[Calibration(status="ok")] * 5,
        threshold_K=threshold_K,
        policy=policy,
        small_K=np.zeros(5, bool),
        propensity_K=np.ones(5),
    )
    pairs = evaluation.report(taxonomy, [Calibration(status="ok")] * 5)["confused_pairs"]
    told = {(pair["class_id"], pair["decided_id"]): pair["rows"] for pair in pairs["instead"]}
    assert told == {("abcde"[k], "abcde"[j]): count_HH[k, j] for k in range(5) for j in range(5) if k != j and count_HH[k, j]}
    assert pairs["nothing"] == count_HH[:, 6].sum()


def test_of_many_classes_the_most_confused_are_shown_and_the_rest_counted_as_other():
    column_N = np.array([0, 0, 0, 1, 7, 7])
    taken_N = np.array([5, 5, 0, 2, 0, 7])
    found = confused(one_hot(taken_N, 9), one_hot(column_N, 9), np.ones((6, 9), bool))
    column_H, count_HH = found.part(2)
    assert column_H.tolist() == [0, 5]
    assert count_HH.tolist() == [[1, 2, 0, 0], [0, 0, 0, 0]]
    column_H, count_HH = found.part(3)  # 1 and 2 would be four; 7 is taken for 0
    assert column_H.tolist() == [0, 5, 7]
    assert count_HH.tolist() == [[1, 2, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 1, 0, 0]]


def test_the_worst_examples_are_those_of_the_least_probable_known_truth(rng):
    prob_NK, target_NK = rng.random((400, 4)), rng.random((400, 4)) < 0.4
    mask_NK = rng.random((400, 4)) < 0.7
    decided_NK = prob_NK >= 0.5
    true_NK = np.where(mask_NK, np.where(target_NK, prob_NK, 1 - prob_NK), 2)
    examples = worst_examples(prob_NK, decided_NK, target_NK, mask_NK, most=9)
    assert examples[0].row == true_NK.min(1).argmin()
    assert [example.prob for example in examples] == pytest.approx([true_NK[e.row, e.column] for e in examples])
    assert sorted(example.prob for example in examples) == [example.prob for example in examples]
    assert max(np.bincount([example.column for example in examples])) <= MAX_OF_CLASS
    first = examples[0]
    assert first.given == tuple(np.flatnonzero(target_NK[first.row] & mask_NK[first.row]))
    assert first.decided == tuple(np.flatnonzero(decided_NK[first.row]))
    assert [k for k, _ in first.top] == np.argsort(-prob_NK[first.row])[:3].tolist()


def test_rows_that_the_model_is_right_about_are_no_examples():
    target_NK = one_hot(np.arange(3), 3)
    assert worst_examples(np.where(target_NK, 0.9, 0.1), target_NK, target_NK, np.ones((3, 3), bool), most=5) == []


def test_thinning_keeps_both_ends():
    assert thinned(5, 10).tolist() == [0, 1, 2, 3, 4]
    kept = thinned(1000, 7).tolist()
    assert (kept[0], kept[-1], len(kept)) == (0, 999, 7)
