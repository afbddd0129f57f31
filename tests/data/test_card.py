import io
import json

import numpy as np

from ovr.core import scale
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.data.card import CARD, CLASSES, card_parts
from ovr.data.labels import Labels
from ovr.data.leakage import find_leakage, row_digests
from ovr.data.origin import Origin, SourceFile
from ovr.data.overlap import CALIB_ROWS, TRAIN_ROWS
from ovr.data.splits import SPLIT_NAMES, make_splits
from ovr.data.splitting import SplitRule

MINIMUM = {"train": 5, "val": 0, "calib": 1, "test": 1}


def sample(rng):
    parts = {}
    for n, name in enumerate(SPLIT_NAMES):
        target_NK = np.zeros((6 + n, 3), bool)
        target_NK[:5, 0] = target_NK[1:3, 1] = target_NK[2, 2] = True
        mask_NK = np.ones_like(target_NK)
        mask_NK[5, 2] = False
        parts[name] = (rng.normal(size=(6 + n, 2)), Labels.from_dense(target_NK, mask_NK))
    parts["test"][0][:2] = parts["train"][0][0]
    origin = Origin((SourceFile("a.csv", "0f" * 32, 17),), SplitRule("file"))
    splits = make_splits(Taxonomy.from_ids(["x/y", "..", "日"]), InputSchema((2,), ("u", "v")), parts, origin=origin)
    small_K = np.array([False, True, True])
    leakage = find_leakage(splits)
    return card_parts(splits, leakage=leakage, num_left_out=2, max_leakage=0.5, min_positives=MINIMUM, small_K=small_K), splits


def test_the_card_tells_files_rule_counts_and_equal_rows(rng):
    parts, _ = sample(rng)
    card = json.loads(parts[CARD])
    assert card["files"][0]["name"] == "a.csv"
    assert card["split"]["by"] == "file"
    assert card["input"] == {"shape": [2], "dtype": "float32", "columns": ["u", "v"], "raw_kind": None}
    assert card["splits"]["test"] == {
        "rows": 9,
        "positives": 8,
        "unknown": 1,
        "rows_without_label": 4,
        "most_labels_of_a_row": 3,
        "repeated_rows": 1,
    }
    assert {(leak["earlier"], leak["later"]): leak["rows"] for leak in card["leakage"]}["train", "test"] == 2
    assert (card["max_leakage"], card["min_positives"], card["num_classes"], card["num_small_classes"]) == (0.5, MINIMUM, 3, 2)
    assert card["splits"]["calib"]["left_out"] == 2
    assert [row["class_id"] for row in card["classes"]] == ["x/y", "..", "日"]
    assert [row["train_positives"] for row in card["classes"]] == [5, 2, 1]
    assert [row["test_unknown"] for row in card["classes"]] == [0, 0, 1]
    assert [row["small"] for row in card["classes"]] == [False, True, True]


def test_the_counts_of_very_many_classes_are_columns(rng, monkeypatch):
    monkeypatch.setattr(scale, "LARGE_K", 3)
    parts, splits = sample(rng)
    assert "classes" not in json.loads(parts[CARD])
    with np.load(io.BytesIO(parts[CLASSES])) as arrays:
        np.testing.assert_array_equal(arrays["calib_positives"], splits.calib.labels.num_positives_K())
        np.testing.assert_array_equal(arrays["small"], [False, True, True])


def test_equal_rows_that_were_not_looked_for_are_not_told(rng):
    _, splits = sample(rng)
    parts = card_parts(splits, leakage=None, max_leakage=None, min_positives=MINIMUM, small_K=np.zeros(3, bool))
    card = json.loads(parts[CARD])
    assert (card["leakage"], card["max_leakage"]) == (None, None)
    assert "repeated_rows" not in card["splits"]["test"]
    assert TRAIN_ROWS not in parts
    assert CALIB_ROWS not in parts


def test_digests_of_the_training_and_calibration_rows_are_kept(rng):
    parts, splits = sample(rng)
    train_U, calib_U = (np.load(io.BytesIO(parts[name])) for name in (TRAIN_ROWS, CALIB_ROWS))
    assert np.flatnonzero(np.isin(row_digests(splits.test.x), train_U)).tolist() == [0, 1]
    assert np.isin(row_digests(splits.train.x), train_U).all()
    np.testing.assert_array_equal(calib_U, np.unique(row_digests(splits.calib.x)))
