"""Figures on new rows: those of the formulas, from logits and from served probabilities."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from ovr import EdgePredictor
from ovr.calibrator.apply import calibrated_prob
from ovr.data.labels import Labels
from ovr.data.splits import TestRows
from ovr.errors import ArtifactError, DataError
from ovr.lifecycle.evaluate import BEFORE, evaluate_bundle, evaluate_rows, write_evaluation
from ovr.lifecycle.rewrite import calibrations_of
from ovr.lifecycle.rows import NewRows
from ovr.metric.calibration import brier, ece_equal_mass, nll
from tests.lifecycle.conftest import CLASS_IDS, flat, rows_of, sample_labels, torch_logits


@pytest.fixture(scope="module")
def measured(trained):
    model, bundle = trained()
    x = rows_of(2)
    logit_NK = torch_logits(model, x)
    target_NK, mask_NK = sample_labels(logit_NK, 2)
    rows = TestRows(x, Labels.from_dense(target_NK, mask_NK), {"sex": np.array(["F", "M"] * (len(x) // 2))})
    evaluation = evaluate_bundle(bundle, NewRows(rows, {"rows": "all"}))
    return bundle, evaluation, logit_NK, target_NK, mask_NK


def test_figures_are_those_of_torch_s_logits(measured):
    bundle, evaluation, logit_NK, target_NK, mask_NK = measured
    calibrations = calibrations_of(bundle)
    prob_NK = calibrated_prob(logit_NK, calibrations)
    np.testing.assert_allclose(evaluation.prob_NK, prob_NK, atol=2e-5)
    assert evaluation.report["max_abs_diff"] < 1e-5
    expected = {
        "ece_after": ece_equal_mass(prob_NK, target_NK, mask_NK),
        "brier_after": brier(prob_NK, target_NK, mask_NK),
        "nll_before": nll(logit_NK, target_NK, mask_NK),
        "temperature": 1 / calibrations.scale_K,
    }
    rows = evaluation.report["classes"]
    assert [row["class_id"] for row in rows] == list(CLASS_IDS)
    for name, value_K in expected.items():
        np.testing.assert_allclose([row[name] for row in rows], value_K, atol=1e-4)
    assert (evaluation.report["bundle_sha256"], evaluation.report["data"]) == (bundle.bundle_sha256, {"rows": "all"})
    assert evaluation.cohorts["sex"].tolist()[:2] == ["F", "M"]
    assert "sex" in json.dumps(evaluation.report["cohorts"])


def test_served_probabilities_alone_give_the_same_figures_without_those_before(measured):
    bundle, evaluation, *_ = measured
    alone = flat(evaluate_rows(bundle, evaluation.prob_NK, evaluation.labels, evaluation.cohorts).report)
    expected = flat(evaluation.report)
    assert alone == pytest.approx({name: expected[name] for name in alone}, abs=1e-4)
    lost = {name.rpartition("/")[2].removesuffix("_low").removesuffix("_high") for name in expected if name not in alone}
    told = {name.rpartition("/")[2] for name in expected}  # without how heads rank: the policy is multilabel
    assert lost == {*BEFORE} & told | {"bundle_sha256", "measured_at", "rows", "max_abs_diff"}
    certain = np.round(evaluation.prob_NK)
    report = evaluate_rows(bundle, certain, evaluation.labels).report
    assert np.isfinite([row["nll_after"] for row in report["classes"]]).all()


def test_a_class_with_too_few_rows_is_marked(measured):
    bundle, evaluation, *_ = measured
    most = int(max(row["positives"] for row in evaluation.report["classes"]))
    marked = evaluate_rows(bundle, evaluation.prob_NK, evaluation.labels, num_small=most)
    assert [row["small"] for row in marked.report["classes"]] == [row["positives"] < most for row in marked.report["classes"]]
    assert not any(row["small"] for row in evaluation.report["classes"])


def test_what_does_not_belong_together_is_refused(measured):
    bundle, evaluation, *_ = measured
    with pytest.raises(DataError, match=r"probabilities are \(399, 4\) and labels \(400, 4\); expected as many rows, and 4 heads"):
        evaluate_rows(bundle, evaluation.prob_NK[1:], evaluation.labels)
    with pytest.raises(DataError, match="neither probabilities nor logits are given"):
        evaluate_rows(bundle, None, evaluation.labels)
    wrong = evaluation.prob_NK.copy()
    wrong[3, 2] = 1.5
    with pytest.raises(DataError, match=r"probability of row 3, head column 2 is 1\.5; expected 0 to 1"):
        evaluate_rows(bundle, wrong, evaluation.labels)


def test_the_report_is_written_as_json_and_a_line_a_class(measured, tmp_path):
    bundle, evaluation, *_ = measured
    write_evaluation(tmp_path / "out", evaluation, bundle)
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == evaluation.report
    with (tmp_path / "out/tables/classes.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["class_id"] for line in lines] == list(CLASS_IDS)
    assert [float(line["f1"]) for line in lines] == [row["f1"] for row in evaluation.report["classes"]]
    with pytest.raises(ArtifactError, match="exists already"):
        write_evaluation(tmp_path / "out", evaluation, bundle)


def test_the_page_of_new_rows_is_of_their_figures_and_says_which_rows_and_when(measured, tmp_path):
    bundle, evaluation, *_ = measured
    record = {"rows": "all", "files": [{"name": "new<1>.csv"}]}
    rows = TestRows(rows_of(2), evaluation.labels)
    new = NewRows(rows, record, row_number_N=np.arange(len(evaluation.labels)) + 5)
    write_evaluation(tmp_path / "out", evaluation, bundle, new)
    value = json.loads((tmp_path / "out/report.json").read_text())
    assert value["summary"]["macro_f1"] == evaluation.report["macro_f1"]
    assert value["num_rows"] == len(evaluation.labels)
    assert all(row["source_row"] == row["row"] + 5 for row in value["examples"])
    assert value["measured"] == {"at": evaluation.report["measured_at"], **record}
    page = (tmp_path / "out/report.html").read_text()
    assert "id=part-" in page  # the cohorts
    assert f"{len(rows)} rows (all of <bdi>new&lt;1&gt;.csv</bdi>)" in page
    assert f"measured {evaluation.report['measured_at']} · bundle made {bundle.provenance['created_at']}" in page
    assert "test row" not in page
    files = [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert [name for name in files if "/" not in name and name.endswith(".csv")] == []
    assert {f"tables/{name}.csv" for name in ("classes", "confused_pairs", "cohorts", "gaps", "summary")} <= set(files)


def test_what_is_said_of_the_limit_and_of_promises_is_told(measured, tmp_path):
    bundle, evaluation, *_ = measured
    said = {**bundle.provenance, "abstention_status": "stale: chosen before"}
    heads = [
        replace(head, threshold_status="cannot_be_promised: n = 2 positives" if k else "ok") for k, head in enumerate(bundle.heads)
    ]
    stale = replace(bundle, provenance=said, heads=tuple(heads))
    report = evaluate_rows(stale, evaluation.prob_NK, evaluation.labels).report
    assert (report["abstention_status"], report["num_unpromised_thresholds"]) == ("stale: chosen before", len(CLASS_IDS) - 1)
    assert report["classes"][1]["threshold_status"] == "cannot_be_promised: n = 2 positives"
    write_evaluation(tmp_path / "out", replace(evaluation, report={**evaluation.report, **report}), stale)
    assert json.loads((tmp_path / "out/metrics.json").read_text())["abstention_status"] == "stale: chosen before"


def test_a_bundle_of_shards_is_measured_by_its_heads(sharded, tmp_path, monkeypatch):
    model, bundle = sharded
    x = rows_of(2)
    labels = Labels.from_dense(*sample_labels(torch_logits(model, x), 2))
    small = evaluate_bundle(bundle, NewRows(TestRows(x, labels), {}))
    monkeypatch.setattr("ovr.core.scale.LARGE_K", len(CLASS_IDS))
    large = evaluate_bundle(bundle, NewRows(TestRows(x, labels), {}))
    assert small.prob_NK is None
    assert "classes" in small.report
    assert "classes" not in large.report
    assert large.figures["f1"].tolist() == [row["f1"] for row in small.report["classes"]]
    prob_NK = EdgePredictor(bundle.path).predict_proba(x)
    np.testing.assert_allclose(large.figures["brier_after"], brier(prob_NK, *labels.dense()), atol=1e-5)
    write_evaluation(tmp_path / "out", large, bundle)
    assert len((tmp_path / "out/tables/classes.csv").read_text().splitlines()) == 1 + len(CLASS_IDS)


def test_a_fused_graph_that_differs_from_the_heads_is_told_of(measured, monkeypatch, caplog):
    bundle, evaluation, *_ = measured
    monkeypatch.setattr(EdgePredictor, "predict_proba", lambda self, rows, **_: np.full((len(rows), 4), 0.5, np.float32))
    rows = NewRows(TestRows(rows_of(2), evaluation.labels), {})
    assert evaluate_bundle(bundle, rows).report["max_abs_diff"] > 0.3
    assert "the fused graph differs from the heads by up to" in caplog.text
