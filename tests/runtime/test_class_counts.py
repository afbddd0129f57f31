import numpy as np
import pytest

from ovr.runtime.triton.class_counts import LATENCY_BOUNDS_E, POOLED, SCORE_BOUNDS_E, Answered, ClassCounts

IDS = ("a", "b", "c", "d")


def answer(rng, *rows_R, column_C=None, versions=(1, 1, 1, 1), latency_s=0.003):
    num_rows = sum(rows_R)
    versions = np.array(versions) if column_C is None else np.array(versions)[column_C]
    prob_BC = rng.random((num_rows, len(versions))).astype(np.float32)
    prob_BC[rng.random(prob_BC.shape) < 0.1] = np.nan
    abstained_B = rng.random(num_rows) < 0.3
    label_BC = (prob_BC > 0.5) & ~abstained_B[:, None]
    top_B = np.where(np.isnan(prob_BC).all(axis=1), -1, np.nan_to_num(prob_BC, nan=-1).argmax(axis=1))
    version_BC = np.where(np.isnan(prob_BC), 0, versions)
    return Answered(column_C, prob_BC, label_BC, abstained_B, top_B, version_BC, rows_R, latency_s)


def test_counts_are_those_of_a_loop_over_rows_and_classes(rng):
    counts = ClassCounts(IDS, is_critical=[False, False, False, True], max_classes=3)
    noted = [
        answer(rng, 8, 1, 11),
        answer(rng, 7, column_C=np.array([3, 0])),
        answer(rng, 1, column_C=np.array([2]), latency_s=9.0),
        answer(rng, 3, 2, versions=(2, 1, 1, 1)),
    ]
    for one in noted:
        counts.note(one)
    assert counts.num_noted == 20 * 4 + 7 * 2 + 1 + 5 * 4
    groups = counts.count(counts.take())
    assert set(groups) == {("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("d", 0), ("d", 1), (POOLED, 0)}
    expected: dict = {}
    for one in noted:
        columns = range(4) if one.column_C is None else one.column_C.tolist()
        first_rows = set(np.cumsum([0, *one.rows_R[:-1]]).tolist())
        seen: set = set()
        for row in range(len(one.prob_BC)):
            for c, column in enumerate(columns):
                key = (POOLED, 0) if IDS[column] == "c" else (IDS[column], int(one.head_version_BC[row, c]))
                group = expected.setdefault(key, dict.fromkeys(("requests", "rows", "decided", "abstained", "unavailable"), 0))
                group.setdefault("scores", [])
                group["rows"] += 1
                group["decided"] += int(one.label_BC[row, c])
                group["abstained"] += int(one.abstained_B[row] and one.top_B[row] == c)
                missing = bool(np.isnan(one.prob_BC[row, c]))
                group["unavailable"] += int(missing)
                group["scores"] += [] if missing else [one.prob_BC[row, c]]
                if row in first_rows and (row, key) not in seen:
                    seen.add((row, key))
                    group["requests"] += 1
    for key, wanted in expected.items():
        got = groups[key]
        for name in ("requests", "rows", "decided", "abstained", "unavailable"):
            assert getattr(got, name) == wanted[name], (key, name)
        assert got.score_sum == pytest.approx(sum(map(float, wanted["scores"])))
        told = {(name, bound): value for name, bound, value in got.increments()}
        for bound in SCORE_BOUNDS_E:
            assert told.get(("score", f"{bound:.4g}"), 0) == sum(score <= bound for score in wanted["scores"])
        assert told.get(("score", "+Inf"), 0) == len(wanted["scores"])
    assert groups[POOLED, 0].latency[-1] - groups[POOLED, 0].latency[-2] == 1  # above all bounds
    assert groups["b", 1].latency_s_sum == pytest.approx(0.003 * groups["b", 1].requests)
    assert counts.count(counts.take()) == {}
    assert counts.num_noted == 0


def test_as_many_classes_as_are_allowed_have_groups_of_their_own_critical_ones_first(rng):
    for max_classes, own in ((0, set()), (1, {"d"}), (2, {"a", "d"}), (9, set(IDS))):
        counts = ClassCounts(IDS, is_critical=[False, False, False, True], max_classes=max_classes)
        counts.note(answer(rng, 50))
        assert {class_id for class_id, _ in counts.count(counts.take())} - {POOLED} == own


def test_only_what_was_counted_is_told(rng):
    counts = ClassCounts(("a",), is_critical=[False], max_classes=1)
    one = Answered(None, np.full((1, 1), np.nan, np.float32), *map(np.array, ([[False]], [False], [-1], [[0]])), [1], 0.001)
    counts.note(one)
    (group,) = counts.count(counts.take()).values()
    told = list(group.increments())
    assert [name for name, _, _ in told if name == "score"] == []
    assert ("unavailable", None, 1) in told
    assert ("latency", f"{LATENCY_BOUNDS_E[0]:.4g}", 1) in told  # at the bound is within it
