import json
from dataclasses import replace

import numpy as np
import pytest

from ovr.cli.main import main
from ovr.core.bundle import open_bundle
from ovr.input.text import HashedText
from ovr.runtime.predictor import EdgePredictor
from tests.bundles import small_bundle
from tests.cli.conftest import CLASS_IDS
from tests.export.sample import SHAPE, sample_bundle, sample_model, sample_rows

pytest.importorskip("captum")
MLP = {"_target_": "ovr.backbone.mlp.Mlp", "_partial_": True, "hidden": [32, "${width}"], "activation": "gelu", "dropout": 0.2}
CONFIG = {"width": 16, "backbone": MLP, "head": {"_target_": "ovr.head.linear.Linear", "_partial_": True}}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("explained") / "bundle"
    sample_bundle(path, sample_model(num_heads=len(CLASS_IDS)), CLASS_IDS, provenance={"config": CONFIG})
    return open_bundle(path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", sample_rows(3))
    return tmp_path


def explained(bundle, *args):
    return main(
        [
            "explain",
            f"bundle={bundle.path}",
            *(() if any(a.startswith("input=") for a in args) else ("input=rows.npy",)),
            "out=why.html",
            *args,
        ]
    )


def test_a_row_is_explained_on_a_page_and_as_json(here, bundle):
    assert explained(bundle, "row=2", 'class=["a/b, \\"c\\"",cat]', "steps=300") == 0
    value = json.loads((here / "why.json").read_text())
    prob_K = EdgePredictor(bundle.path).predict_proba(sample_rows(3))[2]
    assert (value["schema_version"], value["kind"], value["method"], value["row"]) == (1, "image", "integrated_gradients", 2)
    assert value["bundle_sha256"] == bundle.bundle_sha256
    assert [row["class_id"] for row in value["classes"]] == ['a/b, "c"', "cat"]
    for row in value["classes"]:
        assert row["prob"] == pytest.approx(prob_K[bundle.taxonomy.column(row["class_id"])])
        missed = np.sum(row["attribution"]) - (row["logit"] - row["logit_of_baseline"])
        assert missed == pytest.approx(row["completeness_delta"], abs=1e-3)
        assert np.shape(row["attribution"]) == SHAPE[1:]
    page = (here / "why.html").read_text()
    assert "a/b, &quot;c&quot;" in page
    assert page.count("<img") == 6
    assert "http" not in page.replace("http-equiv", "")


def test_without_a_class_the_most_probable_is_explained(here, bundle):
    assert explained(bundle, "method=occlusion", "baseline=zero") == 0
    value = json.loads((here / "why.json").read_text())
    prob_K = EdgePredictor(bundle.path).predict_proba(sample_rows(3))[0]
    assert [row["class_id"] for row in value["classes"]] == [CLASS_IDS[prob_K.argmax()]]
    assert value["classes"][0]["completeness_delta"] is None
    assert value["baseline"] == "zero"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (['class="grösse"'], "class 'grösse' is not one of the 4 classes of {bundle}; nearest: größe"),
        (["class=[cat,zzzzzz]"], "class 'zzzzzz' is not one of the 4 classes of {bundle}, such as 'cat'"),
        (["row=3"], "row=3: rows.npy has rows 0 to 2"),
        (["out=why.png"], "out=why.png must end in .html"),
        (["out=gone/why.html"], "of out= does not exist"),
        (["out={bundle}/why.html"], "is inside the bundle"),
        (["method=lime"], "method is 'lime'; expected one of integrated_gradients, occlusion"),
    ],
)
def test_wrong_input_is_one_clear_error(here, bundle, capsys, args, message):
    assert explained(bundle, *(arg.format(bundle=bundle.path) for arg in args)) == 1
    assert message.format(bundle=bundle.path) in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["rows.npy"]


def test_what_is_there_is_not_replaced_unasked(here, bundle, capsys):
    (here / "why.json").touch()
    assert explained(bundle) == 1
    assert "why.json exists already; choose another place or say overwrite=true" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "keeps no configuration of backbone and head, as bundles of `ovr train` do"),
        ({**CONFIG, "width": 15}, "cannot be built again from the configuration that it keeps"),
        ({**CONFIG, "backbone": {"_target_": "somebody.Net", "_partial_": True}}, "_target_ somebody.Net is not allowed"),
    ],
)
def test_a_bundle_that_cannot_be_built_again_is_named(here, bundle, monkeypatch, capsys, config, message):
    other = replace(bundle, provenance={"config": config} if config else {})
    monkeypatch.setattr("ovr.cli.explain.open_bundle", lambda path: other)
    assert explained(bundle, "class=cat") == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["rows.npy"]


def test_without_a_fused_graph_a_class_must_be_named(here, bundle, monkeypatch, capsys):
    whole = replace(bundle, has_fused=False)
    monkeypatch.setattr("ovr.cli.explain.open_bundle", lambda path: whole)
    assert explained(bundle) == 1
    assert "the bundle has no fused graph to find the most probable class with; give class=ID" in capsys.readouterr().err
    assert explained(bundle, "class=cat", "method=occlusion") == 0
    assert json.loads((here / "why.json").read_text())["classes"][0]["prob"] is None


def test_texts_of_several_columns_are_read_as_in_training(here, tmp_path_factory, capsys):
    encoder = HashedText(6, 4, columns=("title", "body"), joiner=" | ")
    texts = small_bundle(tmp_path_factory.mktemp("texts") / "bundle", shape=(4, 2), encoder=encoder.to_json())
    (here / "x.csv").write_text("title,body,label\na rise,it rose,up\n")
    assert explained(texts, "input=x.csv", "overwrite=true") == 1
    assert "keeps no configuration of backbone and head" in capsys.readouterr().err  # the row was read, then the model is made
    (here / "y.csv").write_text("title,text\na,b\n")
    assert explained(texts, "input=y.csv", "overwrite=true") == 1
    assert "y.csv, line 2 has no column 'body'" in capsys.readouterr().err
