"""The report of cohorts and its tables."""

import csv
import io

import numpy as np
import pytest

from ovr.errors import DataError
from ovr.metric import cohort_report
from ovr.metric.calibration import ece_equal_mass
from ovr.metric.cohort_report import CohortFigures
from ovr.metric.slices import gaps, slices
from ovr.metric.tables import csv_text, tables


@pytest.fixture
def case():
    rng = np.random.default_rng(5)
    prob_NK = rng.random((300, 3))
    arrays = prob_NK >= 0.5, prob_NK, rng.random(prob_NK.shape) < prob_NK, rng.random(prob_NK.shape) < 0.9
    return arrays, {"sex": rng.choice(["f", "m"], 300), "age": rng.choice(["", "<30", ">=30"], 300, p=[0.1, 0.4, 0.5])}


def report(case):
    arrays, cohorts = case
    figures = CohortFigures(cohorts, num_rows=300)
    for columns in (slice(0, 2), slice(2, 3)):
        figures.update(*(array_NK[:, columns] for array_NK in arrays))
    return figures.report(["a", "b", "c"])


def test_a_report_holds_what_slices_and_gaps_find(case):
    arrays, cohorts = case
    got = report(case)
    assert list(got) == ["sex", "age"]
    for column, cohort_N in cohorts.items():
        found = slices(*arrays, cohort_N=cohort_N)
        assert [cohort["cohort"] for cohort in got[column]["cohorts"]] == list(found.names)
        gap = gaps(found)
        for k, row in enumerate(got[column]["gaps"]):
            assert row["class_id"] == "abc"[k]
            assert row["equalized_odds_difference"] == gap.equalized_odds_difference_K[k]
        for a, cohort in enumerate(got[column]["cohorts"]):
            rows = cohort_N == cohort["cohort"]
            ece_K = ece_equal_mass(*(array_NK[rows] for array_NK in arrays[1:]))
            for k, row in enumerate(cohort["classes"]):
                assert row["rows"] == found.counts.num_rows_K[a, k]
                assert row["recall"] == found.counts.recall_K[a, k]
                assert row["recall_low"] < row["recall"] < row["recall_high"]
                assert row["ece"] == pytest.approx(ece_K[k])
                assert row["ece_low"] <= row["ece"] < row["ece_high"]


def test_of_very_many_cohorts_the_largest_are_told_of(case, monkeypatch):
    monkeypatch.setattr(cohort_report, "MAX_COHORTS", 2)
    got = report(case)["age"]
    assert [cohort["cohort"] for cohort in got["cohorts"]] == ["<30", ">=30"]
    assert got["num_left_out"] == 1


def test_tables_hold_a_line_for_every_row_of_the_report(case):
    pairs = {"instead": [{"class_id": "a", "decided_id": 'b, "or" c', "rows": 2, "share": 0.1}], "beside": []}
    found = tables(
        {
            "classes": [{"class_id": "a", "f1": None}, {"class_id": "b", "f2": 0.1}],
            "confused_pairs": pairs,
            "cohorts": report(case),
        }
    )
    assert found["classes"] == [["class_id", "f1", "f2"], ["a", None, None], ["b", None, 0.1]]
    assert found["confused_pairs"][1] == ["instead", "a", 'b, "or" c', 2, 0.1]
    assert len(found["cohorts"]) == 1 + (2 + 3) * 3
    assert found["cohorts"][1][:3] == ["sex", "f", "a"]
    assert len(found["gaps"]) == 1 + 2 * 3
    for table in found.values():
        read = list(csv.reader(io.StringIO(csv_text(table))))
        assert read == [["" if cell is None else str(cell) for cell in line] for line in table]
    assert tables({"accuracy": 1.0}) == {}


def test_a_cohort_column_has_a_value_a_row():
    with pytest.raises(DataError, match=r"cohort column 'sex' has shape \(2,\); expected \(300,\), one value a row"):
        CohortFigures({"sex": ["f", "m"]}, num_rows=300)
