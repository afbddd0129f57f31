import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from ovr.core import scale
from ovr.errors import DataError
from ovr.metric.calibration import ece_equal_mass
from ovr.report import charts, write_report
from tests.report.sample import ODD_IDS, sample, written


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    texts = [f"row {n} <b>bold</b> & more" for n in range(200)]
    card, provenance = {"files": [{"name": "<i>.csv", "rows": 3}]}, {"created_at": "today", "config": {"a": {"b": [1, "<u>"]}}}
    written(folder, rows=texts, row_number_N=np.arange(200) * 2, data_card=card, provenance=provenance, title="A <title>")
    return folder


class Checked(HTMLParser):
    """Collects elements, and text by the element that it stands in."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.ids, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        self.text.append(data)


def parsed(path):
    checker = Checked()
    checker.feed(path.read_text(encoding="utf-8"))
    return checker


def test_whatever_a_user_writes_stays_text(folder):
    page = parsed(folder / "report.html")
    assert page.tags.count("script") == 1
    assert not {"i", "u"} & set(page.tags)
    assert "A <title>" in page.text
    shown = "".join(page.text)
    for class_id in ODD_IDS:
        assert class_id[:40] in shown
    assert "<b>bold</b> & more" in shown


def test_the_page_needs_nothing_else_and_no_element_has_the_id_of_another(folder):
    page = parsed(folder / "report.html")
    assert len(page.ids) == len(set(page.ids))
    links = [value for name, value in page.attributes if name in ("href", "src", "xlink:href")]
    assert all(value.startswith(("#", "data:image/png")) for value in links)
    assert {value[1:] for value in links if value.startswith("#")} <= set(page.ids)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "http" not in text.replace("http-equiv", "")
    assert "@import" not in text
    assert "url(" not in re.sub(r"url\(#s[0-9a-f]{8}-", "", text)


def test_charts_have_no_colours_of_their_own(folder):
    pytest.importorskip("matplotlib")
    drawings = re.findall(r"<svg.*?</svg>", (folder / "report.html").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(drawings) > 3 * len(ODD_IDS)
    for drawing in drawings:
        assert not re.search(r"(fill|stroke): *(#|rgb|black|white)|color=", drawing)


def test_json_holds_what_the_arrays_say(folder):
    value = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    given = sample(200, len(ODD_IDS))
    assert value["schema_version"] == 1
    assert (value["num_classes"], value["num_rows"]) == (len(ODD_IDS), 200)
    assert [row["class_id"] for row in value["reliability"]] == list(ODD_IDS)
    ece_K = ece_equal_mass(given["prob_NK"], given["target_NK"], given["mask_NK"])
    for row, ece in zip(value["reliability"], ece_K, strict=True):
        gaps = np.abs(np.array(row["share"]) - row["mean_prob"]) * row["rows"]
        assert gaps.sum() / 200 == pytest.approx(ece, abs=1e-5)
        assert all(low <= share <= high for low, share, high in zip(row["low"], row["share"], row["high"], strict=True))
    assert value["risk_coverage"]["risk"][-1] == pytest.approx(1 - value["summary"]["accuracy"], abs=1e-6)
    assert value["examples"][0]["source_row"] == 2 * value["examples"][0]["row"]
    assert value["provenance"]["config"] == {"a": {"b": [1, "<u>"]}}
    assert value["decision"] == {"mode": "argmax", "abstain_below": 0.0}


def test_every_table_is_a_csv_file_that_agrees_with_the_json(folder):
    value = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    tables = {}
    for path in (folder / "tables").iterdir():
        with path.open(newline="", encoding="utf-8") as file:
            tables[path.stem] = list(csv.DictReader(file))
    assert set(tables) == {
        "classes",
        "summary",
        "reliability",
        "precision_recall",
        "confused",
        "risk_coverage",
        "risk_at",
        "examples",
    }
    assert [row["class_id"] for row in tables["classes"]] == list(ODD_IDS)
    assert float(tables["classes"][0]["f1"]) == value["classes"][0]["f1"]
    for name in ("false_positive_rate", "false_negative_rate"):
        assert float(tables["classes"][0][f"{name}_high"]) == value["classes"][0][f"{name}_high"]
    assert len(tables["reliability"]) == sum(len(row["rows"]) for row in value["reliability"])
    assert len(tables["precision_recall"]) == sum(len(row["recall"]) for row in value["precision_recall"])
    assert [int(row["rows"]) for row in tables["confused"]] == [row["rows"] for row in value["confused"]]
    assert [json.loads(row["given"]) for row in tables["examples"]] == [row["given"] for row in value["examples"]]


def test_the_risk_at_some_coverages_is_the_share_of_errors_of_the_surest_rows(folder):
    given = sample(200, len(ODD_IDS))
    wrong_N = given["target_NK"].argmax(axis=1) != given["prob_NK"].argmax(axis=1)
    wrong_N = wrong_N[np.argsort(-given["prob_NK"].max(axis=1))]
    risks = json.loads((folder / "report.json").read_text(encoding="utf-8"))["risk_at"]
    assert [row["coverage"] for row in risks] == [0.5, 0.8, 0.9, 0.95]
    assert [row["risk"] for row in risks] == pytest.approx(
        [wrong_N[: round(200 * row["coverage"])].mean() for row in risks], abs=1e-5
    )
    assert f"{risks[0]['risk']:.1%} of the surest 50%" in (folder / "report.html").read_text(encoding="utf-8")


def test_what_cannot_be_promised_and_an_old_limit_are_told_of_before_the_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(charts, "is_available", lambda: False)  # they take their time
    given = sample(40, 12, class_ids=())
    for k, row in enumerate(given["report"]["classes"]):
        row["threshold_status"] = "cannot_be_promised: n = 3 positives" if k else "no_positive"
    given["report"] |= {"abstain_below": 0.25, "abstention_status": "stale: <chosen> before", "num_unpromised_thresholds": 15}
    text = write_report(tmp_path, **given).read_text(encoding="utf-8")
    ids = [f"class {k}" for k in range(1, 9)]
    assert json.loads((tmp_path / "report.json").read_text())["remarks"] == [
        {"about": "threshold_status", "status": "cannot_be_promised", "num_classes": 15, "class_ids": ids},
        {"about": "threshold_status", "status": "no_positive", "num_classes": 1, "class_ids": ["class 0"]},
        {"about": "abstention_status", "status": "stale: <chosen> before", "abstain_below": 0.25},
    ]
    summary = text[text.index("<section id=summary") : text.index("<section id=classes")]
    assert "<b>cannot_be_promised</b> of 15 classes" in summary
    assert all(f"<bdi>{class_id}</bdi>" in summary for class_id in ids)
    assert "<bdi>class 8</bdi> …" in summary
    assert "below 0.250 get no class; status of this limit: <b>stale: &lt;chosen&gt; before</b>" in summary


def test_the_table_of_classes_has_every_figure_with_its_interval(tmp_path, monkeypatch):
    monkeypatch.setattr(charts, "is_available", lambda: False)
    given = sample(60, 2, class_ids=())
    text = write_report(tmp_path, **given).read_text(encoding="utf-8")
    row = given["report"]["classes"][0]
    for name, label in (("false_positive_rate", "FPR"), ("false_negative_rate", "FNR"), ("roc_auc", "ROC AUC"), ("f1", "F1")):
        assert f'data-label="{label}"' in text
        low, value, high = (f"{row[key]:.{4 if label == 'FPR' else 3}f}" for key in (f"{name}_low", name, f"{name}_high"))
        assert f"<td>{value} <small>{low}–{high}</small>" in text


def test_the_same_figures_give_the_same_bytes(tmp_path):
    one, other = (written(tmp_path / name, 60, 2).read_bytes() for name in "ab")
    assert one == other


def test_tables_that_the_report_holds_besides_are_shown_and_written(tmp_path):
    given = sample(50, 3)
    slices = [{"cohort": "sex=<f>", "f1": 0.5, "f1_low": 0.25, "f1_high": 0.75}, {"cohort": "sex=m", "f1": None}]
    given["report"] = {**given["report"], "slices": slices, "gaps": {"f1": 0.25, "of": {"sex": 0.5}}}
    path = write_report(tmp_path, **given)
    text = path.read_text(encoding="utf-8")
    assert "sex=&lt;f&gt;" in text
    assert "0.500 <small>0.250–0.750</small>" in text
    assert json.loads((tmp_path / "report.json").read_text())["gaps"] == {"f1": 0.25, "of": {"sex": 0.5}}
    assert (tmp_path / "tables" / "slices.csv").read_text().splitlines()[1] == "sex=<f>,0.5,0.25,0.75"


def test_without_matplotlib_the_log_says_what_to_install_and_the_rest_is_there(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(charts, "is_available", lambda: False)
    page = parsed(written(tmp_path, 60, 2))
    assert "pip install 'ovr[report]'" in caplog.text
    assert "figure" not in page.tags
    assert page.tags.count("table") >= 2


def test_a_head_without_a_known_row_or_a_positive_is_told_of_and_not_drawn(tmp_path):
    given = sample(40, 3)
    given["mask_NK"] = given["mask_NK"].copy()
    given["mask_NK"][:, 0] = False
    given["target_NK"] = given["target_NK"].copy()
    given["target_NK"][:, 1] = False
    text = write_report(tmp_path, **given).read_text(encoding="utf-8")
    assert "No row is known to have or not to have this class." in text


def test_from_large_k_on_there_are_the_summary_and_the_classes_given(tmp_path, monkeypatch):
    given = sample(40, 3)
    monkeypatch.setattr(scale, "LARGE_K", 3)
    given["report"] = {**given["report"], "classes": given["report"]["classes"][1:]}
    page = parsed(write_report(tmp_path, **given))
    assert page.tags.count("table") == 1
    assert "reliability" not in json.loads((tmp_path / "report.json").read_text())


def test_the_size_is_bounded_at_a_thousand_classes(tmp_path):
    path = written(tmp_path, 500, 1000)
    assert path.stat().st_size < 5 << 20
    page = parsed(path)
    assert page.attributes.count(("class", "sp")) == 1000
    assert page.attributes.count(("class", "more")) == 900


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_NK": None}, "some of prob_NK, target_NK and mask_NK; expected all three"),
        ({"rows": ["one"]}, "1 rows were given with probabilities of 40; expected as many"),
        ({"row_number_N": np.arange(3)}, "3 row numbers were given with probabilities of 40 rows"),
        ({"report": {"classes": [{"class_id": "nobody"}]}}, r"classes \['nobody'\], which are not in the taxonomy of 3 classes"),
        ({"taxonomy": sample(4, 2)["taxonomy"], "report": {}}, "3 columns; the taxonomy has 2 classes"),
        ({"prob_NK": np.full((40, 3), 2.0)}, "probability of row 0, head column 0 is 2.0; expected 0 to 1"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        write_report(tmp_path, **{**sample(40, 3), **changes})
    assert not list(tmp_path.iterdir())


def test_cohorts_and_pairs_of_the_report_are_shown_and_written(tmp_path):
    given = sample(50, 3)
    ids = given["taxonomy"].ids
    figures = {"recall": 0.5, "recall_low": 0.25, "recall_high": 0.75}
    cohorts = [{"cohort": name, "classes": [{"class_id": class_id, **figures} for class_id in ids]} for name in ("<f>", "m")]
    gaps = [{"class_id": class_id, "recall_difference": 0.125 * k or None} for k, class_id in enumerate(ids)]
    instead = [{"class_id": ids[2], "decided_id": ids[0], "rows": 41, "share": 0.5}]
    given["report"]["cohorts"] = {"sex": {"cohorts": cohorts, "gaps": gaps, "num_left_out": 2}}
    given["report"]["confused_pairs"] = {"instead": instead, "num_instead": 1, "beside": []}
    text = write_report(tmp_path, **given).read_text(encoding="utf-8")
    assert "&lt;f&gt;" in text
    assert "2 cohorts are left out." in text
    assert text.index("0.250</td>") < text.index("0.125</td>")  # the largest gap comes first
    assert "<td>41</td><td>0.500</td>" in text
    assert len((tmp_path / "tables" / "cohorts.csv").read_text().splitlines()) == 1 + 6
    assert (tmp_path / "tables" / "gaps.csv").read_text().startswith("column,class_id,recall_difference")
    assert json.loads((tmp_path / "report.json").read_text())["confused"][0]["rows"] == 41
