import json
from dataclasses import replace

import numpy as np
import pytest

from ovr.core import scale
from ovr.training.report import write_run_report
from ovr.training.run import run_training

pytestmark = pytest.mark.filterwarnings("ignore:.*GPU available but not used.*")
IDS = ["x/y", "..", "<train>"] * 40


@pytest.fixture(scope="module")
def trained(tmp_path_factory, write_table):
    from tests.training.conftest import QUICK, compose_recipe

    folder = tmp_path_factory.mktemp("run")
    table = write_table(folder / "rows.csv", IDS)
    recipe, splits = compose_recipe(folder / "run", "data=table", "data.target=label", *QUICK, f"data.path={table}")
    return run_training(recipe, splits, folder / "run"), splits


def test_the_report_of_a_run_is_of_its_test_rows_and_its_bundle(tmp_path, trained):
    result, splits = trained
    path = write_run_report(result, splits, tmp_path)
    value = json.loads((tmp_path / "report.json").read_text())
    assert path == tmp_path / "report.html"
    assert value["summary"]["accuracy"] == result.report["accuracy"]
    assert value["num_rows"] == len(splits.test)
    assert [row["class_id"] for row in value["classes"]] == list(splits.taxonomy.ids)
    assert value["provenance"]["bundle_sha256"] == result.bundle.bundle_sha256
    assert value["data_card"]["splits"]["test"]["rows"] == len(splits.test)
    numbers = splits.origin.row_numbers["test"]
    assert all(row["source_row"] == numbers[row["row"]] for row in value["examples"])


def test_what_the_source_shows_of_a_row_is_on_the_page(tmp_path, trained):
    result, splits = trained
    shown = replace(splits, origin=replace(splits.origin, shown={"test": lambda row: f"this is test row {row}"}))
    example = json.loads(write_run_report(result, shown, tmp_path).with_name("report.json").read_text())["examples"][0]
    assert f"this is test row {example['row']}" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_of_very_many_heads_the_worst_are_told_of(tmp_path, write_table, monkeypatch):
    from tests.training.conftest import QUICK, compose_recipe

    monkeypatch.setattr(scale, "LARGE_K", 3)
    monkeypatch.setattr("ovr.training.report_parts.WORST", 2)
    table = write_table(tmp_path / "rows.csv", IDS)
    recipe, splits = compose_recipe(tmp_path / "run", "data=table", "data.target=label", *QUICK, f"data.path={table}")
    result = run_training(recipe, splits, tmp_path / "run")
    write_run_report(result, splits, tmp_path / "run")
    value = json.loads((tmp_path / "run" / "report.json").read_text())
    ap_K = result.bundle.heads.figures["average_precision"]
    assert [row["average_precision"] for row in value["classes"]] == pytest.approx(np.sort(ap_K)[:2])
    assert value["num_classes"] == 3
    assert "reliability" not in value
