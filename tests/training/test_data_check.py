"""Planted faults are found: errors, conflicts, copies that were changed a little, classes with too few rows."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.data.labels import Labels
from ovr.data.origin import Origin
from ovr.data.splits import SPLIT_NAMES, make_splits
from ovr.data.splitting import SplitRule, split_rows
from ovr.errors import ConfigError
from ovr.input.text import HashedText
from ovr.training.data_check import check_data
from ovr.training.out_of_fold import out_of_fold

SETTINGS = {
    "min_positives": {"train": 5, "val": 0, "calib": 1, "test": 1},
    "folds": 5,
    "max_rows": 20_000,
    "min_cosine": 0.9,
    "max_difference": 0.02,
    "seed": 0,
}
RULE = SplitRule("stratified", None, {"train": 0.6, "val": 0.1, "calib": 0.15, "test": 0.15})


def splits_of(x, labels, ids, *, encoder=None, columns=()):
    rows = split_rows(RULE, labels)
    parts = {name: (x[row_B], labels.take(row_B)) for name, row_B in rows.items()}
    schema = InputSchema(x.shape[1:], columns)
    return make_splits(Taxonomy.from_ids(ids), schema, parts, encoder=encoder, origin=Origin(rule=RULE, row_numbers=rows))


def source_row(report, splits, row):
    """Return the row of the source that a row of the report is."""
    return int(splits.origin.row_numbers[SPLIT_NAMES[report.split_N[row]]][report.number_N[row]])


def found(report, splits, kind):
    return {source_row(report, splits, finding.row): finding for finding in report.findings if finding.kind == kind}


def scores(rows, wrong):
    hits = len(set(rows) & set(wrong))
    return hits / len(rows), hits / len(wrong)


def test_planted_label_errors_of_digits_are_found(rng):
    x, true_N = load_digits(return_X_y=True)
    wrong = rng.choice(len(x), 90, replace=False)  # 5 %
    given_N = true_N.copy()
    given_N[wrong] = (true_N[wrong] + rng.integers(1, 10, size=90)) % 10
    splits = splits_of(x, Labels.from_columns(given_N, num_heads=10), map(str, range(10)))
    report = check_data(splits, **SETTINGS)
    errors = found(report, splits, "label_error")
    precision, recall = scores(errors, wrong)
    assert precision > 0.88  # 0.94
    assert recall > 0.8  # 0.86
    right = [n for n in set(errors) & set(wrong.tolist()) if errors[n].suggested == str(true_N[n])]
    assert len(right) / len(set(errors) & set(wrong.tolist())) > 0.9
    assert all(errors[n].given == str(given_N[n]) for n in errors)
    assert report.classes["label_error"].sum() == len(errors)


def test_planted_label_errors_of_texts_with_several_labels_are_found(rng):
    words = [[f"w{k}x{n}" for n in range(12)] for k in range(4)]
    target_NK = rng.random((600, 4)) < 0.35
    texts = [
        " ".join([w for k in np.flatnonzero(row) for w in rng.choice(words[k], 5)] + [f"c{n}" for n in rng.integers(200, size=6)])
        for row in target_NK
    ]
    given_NK = target_NK.copy()
    wrong = rng.choice(600, 24, replace=False)
    given_NK[wrong, 1] ^= True
    encoder = HashedText(num_tokens=4096, max_tokens=64)
    x = encoder.encode(texts)
    splits = splits_of(x, Labels.from_dense(given_NK), "abcd", encoder=encoder)
    report = check_data(splits, **SETTINGS)
    errors = found(report, splits, "label_error")
    precision, recall = scores([n for n, finding in errors.items() if "b" in (finding.given, finding.suggested)], wrong)
    assert precision > 0.9  # 1.00
    assert recall > 0.65  # 0.71
    for n in set(errors) & set(wrong.tolist()):
        assert (errors[n].given, errors[n].suggested) == (("b", "not b") if given_NK[n, 1] else ("not b", "b"))


def test_equal_rows_of_other_labels_and_rows_that_are_almost_equal_are_found(rng):
    x = rng.normal(size=(300, 6))
    column_N = (x[:, 0] > 0).astype(int)
    x[7], column_N[7] = x[3], 1 - column_N[3]
    x[11] = x[5]  # equal rows of one label are repeats, not conflicts
    column_N[11] = column_N[5]
    x[20] = x[30] + 1e-3 * rng.normal(size=6)
    splits = splits_of(x, Labels.from_columns(column_N, num_heads=2), "ab")
    report = check_data(splits, **SETTINGS)
    conflicts = found(report, splits, "conflict")
    assert set(conflicts) == {3, 7}
    assert {source_row(report, splits, finding.other) for finding in conflicts.values()} == {3, 7}
    near = found(report, splits, "near_duplicate")
    ((row, finding),) = near.items()
    assert {row, source_row(report, splits, finding.other)} == {20, 30}
    assert finding.score < 0.002
    assert sum(leak.num_rows for leak in report.leakage.leaks) + sum(report.leakage.num_repeated.values()) == 2


def test_texts_that_differ_in_a_word_are_near_duplicates(rng):
    texts = [" ".join(f"w{n}" for n in rng.integers(3000, size=30)) for _ in range(200)]
    texts[150] = texts[20] + " indeed"
    encoder = HashedText(num_tokens=65536, max_tokens=512)
    x = encoder.encode(texts)
    splits = splits_of(x, Labels.from_columns(np.arange(200) % 2, num_heads=2), "ab", encoder=encoder)
    near = found(check_data(splits, **SETTINGS), splits, "near_duplicate")
    assert len(near) == 1
    assert set(near) <= {20, 150}
    assert next(iter(near.values())).score > 0.9


def test_classes_are_counted_and_small_ones_told_and_rows_drawn(rng):
    x = rng.normal(size=(400, 3))
    column_N = np.repeat([0, 1, 2], [200, 194, 6])
    splits = splits_of(x, Labels.from_columns(column_N, num_heads=3), "abc")
    report = check_data(splits, **{**SETTINGS, "max_rows": 100})
    assert report.classes["small"].tolist() == [False, False, True]
    assert sum(report.classes[name] for name in SPLIT_NAMES).tolist() == [200, 194, 6]
    assert (report.num_rows, report.num_looked_at) == (400, 100)


def test_out_of_fold_probabilities_are_as_good_as_those_of_scikit_learn(rng):
    x = rng.normal(size=(600, 5))
    target_N = rng.random(600) < 1 / (1 + np.exp(-(2 * x[:, 0] - 1)))
    x = (x / np.sqrt(np.mean(x**2))).astype(np.float32)
    prob_NK = out_of_fold(x, Labels.from_dense(target_N[:, None]), np.arange(600), num_folds=5, C=1.0, seed=0)
    expected_N = cross_val_predict(LogisticRegression(C=1.0), x, target_N, cv=5, method="predict_proba")[:, 1]
    assert np.corrcoef(prob_NK[:, 0], expected_N)[0, 1] > 0.99


def test_a_copy_does_not_vouch_for_its_own_label(rng):
    x = rng.normal(size=(60, 40)).astype(np.float32)
    twice, target_N = np.concatenate([x, x]), np.tile(rng.random(60) < 0.5, 2)
    group_N = np.tile(np.arange(60), 2)
    apart = out_of_fold(twice, Labels.from_dense(target_N[:, None]), group_N, num_folds=5, C=10.0, seed=0)[:, 0]
    together = out_of_fold(twice, Labels.from_dense(target_N[:, None]), np.arange(120), num_folds=5, C=10.0, seed=0)[:, 0]
    assert ((apart > 0.5) == target_N).mean() < 0.7 < ((together > 0.5) == target_N).mean()


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("folds", 1, "folds must be a whole number of at least 2, got 1"),
        ("folds", 500, "folds must be a whole number from 2 to the 60 different rows, got 500"),
        ("max_rows", 0, "max_rows must be a whole number of at least 10"),
        ("seed", True, "seed must be a whole number"),
        ("min_cosine", 1.5, "min_cosine must be a number from 0 to 1, got 1.5"),
        ("max_difference", -1, "max_difference must be a number from 0 to inf"),
        ("min_positives", {}, "min_positives is {}; expected a number for each of"),
    ],
)
def test_settings_out_of_range_are_refused(rng, setting, value, message):
    splits = splits_of(rng.normal(size=(60, 3)), Labels.from_columns(np.arange(60) % 2, num_heads=2), "ab")
    with pytest.raises(ConfigError, match=message):
        check_data(splits, **{**SETTINGS, setting: value})


def test_more_classes_than_can_be_held_are_refused(rng, monkeypatch):
    monkeypatch.setattr("ovr.training.data_check.MAX_PROBS", 100)
    splits = splits_of(rng.normal(size=(60, 3)), Labels.from_columns(np.arange(60) % 2, num_heads=2), "ab")
    with pytest.raises(ConfigError, match="max_rows=60 are too many to look at with 2 classes; expected at most 50"):
        check_data(splits, **SETTINGS)
