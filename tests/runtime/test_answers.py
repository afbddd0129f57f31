"""Predictions as text say what the prediction says."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from ovr.core.artifact import DecisionPolicy, ModelCard
from ovr.core.prediction import Prediction
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import ClassSpec, Taxonomy
from ovr.decision.decide import decide
from ovr.errors import ServingError
from ovr.runtime.batch.answers import Answers, Rows, csv_lines

IDS = ("a", 'b, "x"\nñ', "c")
PROB_BK = np.array([[0.9, 0.2, 0.7], [0.1, 0.8, 0.7], [0.3, 0.2, 0.1]], dtype=np.float32)


def prediction(mode):
    card = ModelCard(
        taxonomy=Taxonomy([ClassSpec(IDS[0], name="Alpha"), ClassSpec(IDS[1]), ClassSpec(IDS[2])]),
        head_versions=(1, 1, 1),
        thresholds=(0.5, 0.5, 0.6),
        policy=DecisionPolicy(mode=mode, abstain_below=0.4, top_k=2),
        input=InputSchema((1,)),
        backbone_sha256="0" * 64,
        bundle_sha256="1" * 64,
    )
    return Prediction(card, PROB_BK, decide(PROB_BK, threshold_K=card.thresholds, policy=card.policy))


def written(ending, mode, *, probabilities=True, parts=1, outputs=()):
    """Return the text of a prediction written in `parts` calls."""
    whole = prediction(mode)
    answers = Answers(ending, whole.card, probabilities, tuple(outputs))
    data = answers.head
    for rows in np.array_split(np.arange(len(PROB_BK)), parts):
        decision = decide(PROB_BK[rows], threshold_K=whole.card.thresholds, policy=whole.card.policy)
        part = Prediction(whole.card, PROB_BK[rows], decision)
        data += answers.write(Rows(rows, np.ones(len(rows), bool), part))
    return data.decode()


@pytest.mark.parametrize("mode", ["argmax", "multilabel"])
def test_json_lines_are_the_records_with_row_and_names(mode):
    lines = [json.loads(line) for line in written(".jsonl", mode).splitlines()]
    records = prediction(mode).records()
    assert [line.pop("row") for line in lines] == [0, 1, 2]
    names = [line.pop("names") for line in lines]
    assert lines == records
    assert names == [[{"a": "Alpha"}.get(label, label) for label in record["labels"]] for record in records]


def test_csv_of_argmax_names_one_class_and_every_probability():
    rows = list(csv.DictReader(io.StringIO(written(".csv", "argmax"))))
    assert [row["label"] for row in rows] == ["a", IDS[1], ""]
    assert [row["name"] for row in rows] == ["Alpha", IDS[1], ""]
    assert [row["abstained"] for row in rows] == ["false", "false", "true"]
    probs = np.array([[row[f"prob:{class_id}"] for class_id in IDS] for row in rows], dtype=np.float32)
    np.testing.assert_array_equal(probs, PROB_BK)  # a float32 survives its decimal form
    np.testing.assert_array_equal(np.array([row["confidence"] for row in rows], dtype=np.float32), PROB_BK.max(axis=1))


def test_csv_of_multilabel_lists_the_classes_as_json():
    rows = list(csv.DictReader(io.StringIO(written(".csv", "multilabel"))))
    assert [json.loads(row["labels"]) for row in rows] == [["a", "c"], [IDS[1], "c"], []]
    assert [json.loads(row["names"]) for row in rows] == [["Alpha", "c"], [IDS[1], "c"], []]


def test_what_else_is_asked_for_is_there_by_its_name():
    whole = prediction("argmax")
    outputs = ["prob_none", "prob_normalized", "out_of_scope_score"]
    rows = list(csv.DictReader(io.StringIO(written(".csv", "argmax", probabilities=False, outputs=outputs, parts=2))))
    per_class = [f"prob_normalized:{class_id}" for class_id in IDS]
    assert list(rows[0])[5:] == ["prob_none", "out_of_scope_score", *per_class]
    for name in ("prob_none", "out_of_scope_score"):
        np.testing.assert_array_equal([float(row[name]) for row in rows], getattr(whole, name)())
    np.testing.assert_array_equal([[float(row[c]) for c in per_class] for row in rows], whole.prob_normalized())
    lines = [json.loads(line) for line in written(".jsonl", "argmax", outputs=outputs).splitlines()]
    assert [{name: line[name] for name in outputs} for line in lines] == [
        {name: record[name] for name in outputs} for record in whole.records(outputs)
    ]


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_writing_in_parts_gives_the_same_text(ending):
    assert written(ending, "argmax", parts=3) == written(ending, "argmax")


def test_probabilities_can_be_left_out():
    assert csv.DictReader(io.StringIO(written(".csv", "argmax", probabilities=False))).fieldnames == [
        "row",
        "label",
        "name",
        "abstained",
        "confidence",
    ]
    line = json.loads(written(".jsonl", "argmax", probabilities=False).splitlines()[0])
    assert "prob" not in line
    assert [top["class"] for top in line["top"]] == ["a", "c"]


def test_lines_of_csv_are_the_same_with_and_without_pyarrow(rng):
    tables = pytest.importorskip("ovr.runtime.batch.answer_tables")
    exponents = rng.integers(-30, 0, 2_000)
    numbers = rng.random(2_000) * 10.0**exponents
    special = [0.0, 1.0, 0.5, 1e-4, 9.999e-5, 1e-5, 1.5e-6, 1e-6, 9.99e-7, 1e-7, 5e-324, 12.5]
    column = np.array([*special, *numbers, *numbers.astype(np.float32), *rng.random(500).astype(np.float32)])
    size = len(column)
    labels = ["cat,Cat", '"a,""b""",ñ', ","]
    given = (
        np.arange(size),
        ["f.png"] * size,
        np.arange(size) % 3,
        labels,
        np.arange(size) % 2 == 0,
        [column, column.astype(np.float32)],
    )
    data, end_B = tables.csv_lines(*given)
    slow, slow_end_B = csv_lines(*given)
    assert data == slow
    np.testing.assert_array_equal(end_B, slow_end_B)
    lines = list(csv.reader(io.StringIO(data.decode())))
    np.testing.assert_array_equal([float(cells[-2]) for cells in lines], column)
    assert lines[1][2:5] == ['a,"b"', "ñ", "false"]
    assert data[end_B[1] : end_B[2]].decode().startswith('1,f.png,"a,""b""",ñ,false,1,1\n')


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_class_that_was_unavailable_is_told_in_json_lines_and_refused_elsewhere(ending):
    whole = prediction("multilabel")
    unavailable_BK = np.zeros(PROB_BK.shape, bool)
    unavailable_BK[1, 2] = True
    partial = replace(whole, prob_BK=np.where(unavailable_BK, np.nan, PROB_BK), unavailable_BK=unavailable_BK)
    rows = Rows(np.arange(3, 6), np.ones(3, bool), partial)
    lines = [json.loads(line) for line in Answers(".jsonl", whole.card).write(rows).decode().splitlines()]
    assert [line["unavailable"] for line in lines] == [[], ["c"], []]
    assert lines[1]["prob"]["c"] is None
    with pytest.raises(ServingError, match=rf"class 'c' was unavailable at the server for row 4, which {ending} has no place for"):
        Answers(ending, whole.card).write(rows)
