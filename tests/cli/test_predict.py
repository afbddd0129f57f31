"""`ovr predict` from a bundle: every format in and out, and nothing is written when something is wrong."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from ovr import EdgePredictor
from ovr.cli.main import main
from ovr.cli.scoring import check_same_model
from ovr.errors import ServingError
from ovr.input.columns import NumericColumn
from ovr.input.image import ImageEncoder
from ovr.input.table import TableEncoder
from ovr.input.text import HashedText
from tests.bundles import small_bundle
from tests.cli.test_main import error_of
from tests.export.sample import sample_rows

SERVER = ["bundle=null", "server=https://127.0.0.1:1"]


@pytest.fixture
def rows(tmp_path):
    x = sample_rows(23)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(row.tolist()) for row in x))
    np.savetxt(tmp_path / "x.csv", x.reshape(len(x), -1), delimiter=",", fmt="%.9g")
    return x


def predict(bundle, tmp_path, *more, output="y.csv", input="x.npy"):
    return ["predict", f"bundle={bundle.path}", f"input={tmp_path / input}", f"output={tmp_path / output}", *more]


@pytest.mark.parametrize(
    "more", [["input=x.npy"], ["input=x.jsonl"], ["input=x.csv", "header=false"], ["input=x.npy", "batch_size=1"]]
)
def test_every_input_gives_the_predictor_s_answers(bundle, rows, tmp_path, capsys, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", f"bundle={bundle.path}", "output=y.csv", *more]) == 0
    captured = capsys.readouterr()
    assert captured.out == "23 predictions in y.csv: 23 rows passed the model's checks, 0 were refused\n"
    assert "predict: 100%" in captured.err
    expected = EdgePredictor(bundle.path).predict(rows)
    with (tmp_path / "y.csv").open(newline="") as file:
        answers = list(csv.DictReader(file))
    probs = [[answer[f"prob:{class_id}"] for class_id in bundle.taxonomy.ids] for answer in answers]
    np.testing.assert_array_equal(np.array(probs, dtype=np.float32), expected.prob_BK)
    assert [answer["label"] for answer in answers] == [labels[0] for labels in expected.labels()]
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "x.jsonl", "x.csv", "y.csv"}


def test_the_fused_file_alone_is_enough(bundle, rows, tmp_path):
    more = [f"bundle={bundle.fused_onnx}", "outputs=[prob_none_exclusive,out_of_scope_score]"]
    assert main(predict(bundle, tmp_path, *more, output="y.jsonl")) == 0
    lines = [json.loads(line) for line in (tmp_path / "y.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = EdgePredictor(bundle.path).predict(rows)
    assert [line["labels"] for line in lines] == [list(labels) for labels in expected.labels()]
    assert [line["prob_none_exclusive"] for line in lines] == expected.prob_none_exclusive().tolist()
    assert [line["out_of_scope_score"] for line in lines] == expected.out_of_scope_score().tolist()
    assert "prob_none" not in lines[0]


def test_an_output_that_exists_is_replaced_only_on_purpose(bundle, rows, tmp_path, capsys):
    (tmp_path / "y.csv").write_text("mine")
    assert "exists already; choose another place or say overwrite=true" in error_of(capsys, *predict(bundle, tmp_path))
    assert (tmp_path / "y.csv").read_text() == "mine"
    assert main(predict(bundle, tmp_path, "overwrite=true")) == 0
    assert (tmp_path / "y.csv").read_text().startswith("row,")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["bundle=null"], "give bundle=PATH (a bundle or a fused ONNX file) or server=URL; got neither"),
        (["server=http://127.0.0.1:1"], "got both"),
        (["bundle=/nonexistent"], "/nonexistent does not exist"),
        (["bundle=null", "server=http://127.0.0.1:1"], "no server answers at http://127.0.0.1:1"),
        (["bundle=null", "server=grpc://127.0.0.1:1"], "no server answers at grpc://127.0.0.1:1"),
        (
            [*SERVER, "client.token_env=OVR_NO_SUCH"],
            "client.token_env=OVR_NO_SUCH: that environment variable is not set; ",
        ),
        ([*SERVER, "client.headers=7"], "client.headers is 7; expected values by name, such as {X-Tenant: a}"),
        ([*SERVER, "client.retry.attempts=0"], "attempts of Retry is 0; expected a whole number of at least 1"),
        ([*SERVER, "client.timeout_s=null"], "timeout_s is None; expected a number of seconds above 0"),
        ([*SERVER, "client.root_certificates=ca.pem"], "the files of TLS cannot be used: "),
        ([*SERVER, "client.tokn=x"], "nearest: "),
        (["input=/nonexistent.csv"], "/nonexistent.csv cannot be read: No such file or directory"),
        (["output=/nonexistent/y.csv"], "the folder /nonexistent of output= does not exist"),
        (["output=y.xlsx"], "output=y.xlsx must end in one of .csv, .jsonl, .ndjson, .parquet"),
        (["batch_size=0"], "batch_size is 0; expected a whole number of at least 1"),
        (["batch_size=many"], "batch_size is 'many'; expected a whole number of at least 1"),
        (["format=csv"], "is not UTF-8 text"),
        (["outputs=[prob_non]"], "outputs has 'prob_non'; expected a list of some of prob_normalized, prob_none, "),
        (["outputs=prob"], "nearest: prob_none"),
    ],
)
def test_what_cannot_be_predicted_is_refused(bundle, rows, tmp_path, capsys, more, message):
    assert message in error_of(capsys, *predict(bundle, tmp_path, *more))
    assert not (tmp_path / "y.csv").exists()


def test_rows_of_another_shape_are_refused(bundle, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.zeros((3, 64)))
    assert "rows have shape (3, 64); expected (rows, 1, 8, 8)" in error_of(capsys, *predict(bundle, tmp_path))
    np.save(tmp_path / "x.npy", np.full((3, 1, 8, 8), np.nan))
    assert "x.npy, row 0: position (0, 0, 0) holds nan" in error_of(capsys, *predict(bundle, tmp_path))
    assert not (tmp_path / "y.csv").exists()


def test_answers_of_two_bundles_are_not_mixed(bundle):
    check_same_model(bundle.card, bundle.card)
    with pytest.raises(ServingError, match=r"replaced on the way: bundle 000000000000 answers, .*; nothing is written"):
        check_same_model(replace(bundle.card, bundle_sha256="0" * 64), bundle.card)


def test_nothing_is_written_into_the_bundle(bundle, rows, tmp_path, capsys):
    error = error_of(capsys, *predict(bundle, tmp_path, f"output={bundle.path / 'y.csv'}"))
    assert "is inside the bundle" in error
    assert not (bundle.path / "y.csv").exists()


def test_a_cohort_for_a_model_without_any_is_refused(bundle, rows, tmp_path, capsys):
    message = "cohort=F is given, but the model has one calibration for all rows; leave it out"
    assert message in error_of(capsys, *predict(bundle, tmp_path, "cohort=F"))


@pytest.fixture(scope="module")
def text_bundle(tmp_path_factory):
    """A model of texts in two columns."""
    encoder = HashedText(6, 4, columns=("title", "body"), joiner=" | ")
    return small_bundle(tmp_path_factory.mktemp("texts") / "bundle", shape=(4, 2), encoder=encoder.to_json())


def test_texts_in_several_columns_are_joined_as_in_training(text_bundle, tmp_path, capsys):
    (tmp_path / "x.csv").write_text("id,title,body,label\n1,a rise,it rose,up\n2,,it fell,down\n")
    (tmp_path / "x.json").write_text(json.dumps(["a rise | it rose", {"title": "", "body": "it fell"}]))
    expected = EdgePredictor(text_bundle.path).predict(["a rise | it rose", " | it fell"])
    for name in ("x.csv", "x.json"):
        assert main(predict(text_bundle, tmp_path, "overwrite=true", input=name)) == 0
        with (tmp_path / "y.csv").open(newline="") as file:
            answers = [answer["confidence"] for answer in csv.DictReader(file)]
        np.testing.assert_array_equal(np.array(answers, np.float32), expected.prob_BK.max(axis=1))
    capsys.readouterr()
    (tmp_path / "z.csv").write_text("title,text\na,b\n")
    error = error_of(capsys, *predict(text_bundle, tmp_path, "overwrite=true", input="z.csv"))
    assert "z.csv, line 2 has no column 'body'; the model's text is made of 'title', 'body'" in error


def test_rows_that_are_refused_are_counted_and_named_with_their_lines(tmp_path, capsys):
    columns = NumericColumn("a", 0, 0, 1, 0, 9, True), NumericColumn("b", 0, 0, 1, 0, 9, True)
    bundle = small_bundle(tmp_path / "bundle", shape=(4,), encoder=TableEncoder(columns).to_json())
    rows = [f'{n},"1\n"' for n in range(20)]
    rows[3], rows[11] = "x,1", "1,y"
    (tmp_path / "x.csv").write_text("\n".join(["a,b", *rows]) + "\n")
    error = error_of(capsys, *predict(bundle, tmp_path, input="x.csv"))
    assert "18 of 20 rows passed the model's checks, 2 were refused: " in error
    assert f"{tmp_path / 'x.csv'}, line 8: column 'a' holds 'x'; expected a finite number; " in error
    assert f"{tmp_path / 'x.csv'}, line 23: column 'b' holds 'y'" in error
    assert "drop has 'c', which" in error_of(capsys, *predict(bundle, tmp_path, "drop=[c]", input="x.csv"))


def test_the_file_of_each_image_is_written(tmp_path):
    image = pytest.importorskip("PIL.Image")
    bundle = small_bundle(tmp_path / "bundle", shape=(1, 4, 4), encoder=ImageEncoder(4, 4, mode="grey").to_json())
    for name in ("b.png", "in/a.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        image.new("L", (4, 4)).save(tmp_path / "images" / name)
    for output in ("y.csv", "y.jsonl"):
        assert main(predict(bundle, tmp_path, input="images", output=output)) == 0
    with (tmp_path / "y.csv").open(newline="") as file:
        answers = [(answer["row"], answer["file"]) for answer in csv.DictReader(file)]
    assert answers == [("0", "b.png"), ("1", "in/a.png")]
    assert [json.loads(line)["file"] for line in (tmp_path / "y.jsonl").read_text().splitlines()] == ["b.png", "in/a.png"]
