"""The figures of a class as JSON."""

import json

import numpy as np
import pytest

from ovr.metric.calibration import brier, ece_equal_mass, nll
from ovr.metric.classification import average_precision, confusion
from ovr.metric.figures import class_figures, plain


def test_every_figure_is_that_of_its_function():
    rng = np.random.default_rng(1)
    logit_NK = rng.normal(size=(100, 3))
    prob_NK = 1.0 / (1.0 + np.exp(-logit_NK))
    target_NK, mask_NK, label_NK = rng.random((100, 3)) < 0.4, rng.random((100, 3)) < 0.9, prob_NK > 0.5
    rows = class_figures(prob_NK, label_NK, target_NK, mask_NK, logit_NK=logit_NK)
    counts = confusion(label_NK, target_NK, mask_NK)
    for k, row in enumerate(rows):
        assert row["num_positives"] == counts.num_positives_K[k]
        assert row["f1"] == counts.f1_K[k]
        assert row["average_precision"] == average_precision(prob_NK, target_NK, mask_NK)[k]
        assert row["ece"] == ece_equal_mass(prob_NK, target_NK, mask_NK)[k]
        assert row["brier"] == brier(prob_NK, target_NK, mask_NK)[k]
        assert row["nll"] == nll(logit_NK, target_NK, mask_NK)[k]
    assert "nll" not in class_figures(prob_NK, label_NK, target_NK, mask_NK)[0]


def test_what_is_not_defined_is_null_in_strict_json():
    rows = class_figures([[0.5, 0.5]], [[0, 0]], [[0, 0]], [[1, 0]])
    assert json.loads(json.dumps(rows, allow_nan=False)) == [
        {
            "num_rows": n,
            "num_positives": 0,
            "num_decided": 0,
            "true_positives": 0,
            "precision": None,
            "recall": None,
            "f1": None,
            "average_precision": None,
            "ece": 0.5 if n else None,
            "brier": 0.25 if n else None,
        }
        for n in (1, 0)
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(np.float64("nan"), None), (float("inf"), None), (np.int64(3), 3), (0, 0), (0.0, 0.0), (np.float32(0.5), 0.5)],
)
def test_plain_numbers_are_kept_and_others_are_none(value, expected):
    got = plain(value)
    assert got == expected
    assert type(got) in (int, float, type(None))
