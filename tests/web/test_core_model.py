"""What ovr/web/page/core/model.js opens, hands to ONNX Runtime and makes of its answer, beside EdgePredictor on the same export."""

import base64
import copy
import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from ovr.core.files import sha256_bytes
from ovr.input.columns import CategoryColumn, NumericColumn
from ovr.input.table import TableEncoder
from ovr.lifecycle.edge_export import EdgeOptions, export_edge
from ovr.runtime.predictor import CARD_KEY, EdgePredictor
from tests.bundles import small_bundle
from tests.cohorts import some_cohorts
from tests.web.nodes import needs_node, run

pytestmark = needs_node

TABLE = TableEncoder((NumericColumn("age", 0.0, 1.0, 0.5, 0.0, 9.0, True), CategoryColumn("sex", ("F", "M"), (), True, True)))
ROWS = [{"age": "3.5", "sex": "F"}, {"age": "", "sex": "M"}, {"age": 7, "sex": "X"}, {"age": None, "sex": None}]


def changed(card, **values):
    card = copy.deepcopy(card)
    for name, value in values.items():
        *path, last = name.split("__")
        at = card
        for step in path:
            at = at[step]
        at[last] = value
    return card


class Export:
    """An edge export of a small bundle, what EdgePredictor says of rows, and the case that asks the page's modules the same."""

    def __init__(self, folder, **bundle):
        export_edge(small_bundle(folder / "bundle", **bundle), folder / "edge", EdgeOptions())
        self.model = (folder / "edge" / "model.onnx").read_bytes()
        self.card = json.loads((folder / "edge" / "card.json").read_text())
        self.predictor = EdgePredictor(folder / "edge")
        self.model_card = self.predictor.card.to_json()

    def case(self, rows=ROWS, *, card=None, model_card=None, own_card=True, model=None, prob=(), **options):
        if model_card is not None and own_card:  # in the model too
            proto = onnx.load_from_string(self.model)
            onnx.helper.set_model_props(proto, {CARD_KEY: json.dumps(model_card)})
            model = proto.SerializeToString(deterministic=True)
            card = changed(card or self.card, model__sha256=sha256_bytes(model), model__size_bytes=len(model))
        prob = self.predictor.predict_proba(rows, cohort=options.get("cohort")).tolist() if prob == () else prob
        return {
            "kind": "load",
            "model": base64.b64encode(model or self.model).decode(),
            "exportCard": card or self.card,
            "modelCard": model_card or self.model_card,
            "rows": rows,
            "options": options,
            "prob": prob,
        }


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """The exports, and by name what the page's modules answer."""
    folder = tmp_path_factory.mktemp("export")
    for name in ("cohorts", "plain"):
        (folder / name).mkdir()
    of_cohorts = Export(folder / "cohorts", encoder=TABLE.to_json(), cohorts=some_cohorts(3))
    alone = Export(folder / "plain")
    x = np.float32([[0.5, -1, 2, 0, 1, 3], [1, 1, 1, 1, 1, 1]]).tolist()
    cut = alone.model[:-9] + bytes(9)
    cases = {
        "cohorts": of_cohorts.case(),
        "one cohort": of_cohorts.case(cohort="M"),
        "plain": alone.case(x),
        "thresholds": alone.case(x, threshold={"cat": 0.0, "owl": 2.0}, topK=1),
        "changed": alone.case(x, model=cut),
        "short": alone.case(x, model=alone.model[:-1]),
        "no edge card": alone.case(x, card=changed(alone.card, target="server")),
        "ort with cohorts": of_cohorts.case(card=changed(of_cohorts.card, model__file="model.ort")),
        "other bundle": alone.case(x, model_card=changed(alone.model_card, bundle_sha256="f" * 64)),
        "other classes": alone.case(x, card=changed(alone.card, num_classes=4)),
        "version": alone.case(x, model_card=changed(alone.model_card, schema_version=9)),
        "taxonomy": alone.case(x, model_card=changed(alone.model_card, taxonomy=[{"name": "a"}] * 3)),
        "lengths": alone.case(x, model_card=changed(alone.model_card, thresholds=[0.5])),
        "threshold of the card": alone.case(x, model_card=changed(alone.model_card, thresholds=[0.5, -1, 0.5])),
        "mode": alone.case(x, model_card=changed(alone.model_card, policy__mode="softmax")),
        "abstain": alone.case(x, model_card=changed(alone.model_card, policy__abstain_below=2)),
        "top": alone.case(x, model_card=changed(alone.model_card, policy__top_k=0)),
        "shape": alone.case(x, model_card=changed(alone.model_card, input__shape=[])),
        "dtype": alone.case(x, model_card=changed(alone.model_card, input__dtype="int8")),
        "encoder": of_cohorts.case(model_card=changed(of_cohorts.model_card, input__shape=[7])),
        "not opened": alone.case(x, prob=None),
        "cohort not taken": alone.case(x, cohort=["F", "M"], prob=[[0.5] * 3] * 2),
        "cohorts of other rows": of_cohorts.case(cohort=["F"], prob=[[0.5] * 3] * 4),
        "threshold": alone.case(x, threshold=-1),
        "unknown class": alone.case(x, threshold={"dodo": 1}),
        "topK": alone.case(x, topK=0),
        "text": alone.case("abc", prob=[[0.5] * 3]),
        "another card": alone.case(x, model_card=changed(alone.model_card, thresholds=[0.1] * 3), own_card=False),
        "no card": alone.case(x, **without_card(alone)),
        "cut short": alone.case(x, **cut_short(alone)),
        "columns": alone.case(x, model_card=changed(alone.model_card, taxonomy=columns_of(alone.model_card["taxonomy"]))),
    }
    answers = run(list(cases.values()), folder)
    return of_cohorts, alone, x, dict(zip(cases, answers, strict=True))


def without_card(export):
    proto = onnx.load_from_string(export.model)
    del proto.metadata_props[:]
    return resealed(export, proto.SerializeToString(deterministic=True))


def cut_short(export):
    return resealed(export, export.model[:-3])


def resealed(export, model):
    return {"model": model, "card": changed(export.card, model__sha256=sha256_bytes(model), model__size_bytes=len(model))}


def columns_of(taxonomy):
    return {name: [entry[name] for entry in taxonomy] for name in taxonomy[0]}


def check_prediction(said, want):
    assert said["probabilities"] == want.prob_BK.tolist()
    assert said["decisions"] == [list(labels) for labels in want.labels()]
    assert said["abstained"] == want.decision.abstained_B.tolist()
    assert said["predictionSets"] == [list(labels) for labels in want.prediction_set()]
    assert said["top"] == [record["top"] for record in want.records()]
    np.testing.assert_allclose(said["outOfScopeScores"], want.out_of_scope_score(), rtol=1e-12)


def test_a_prediction_is_that_of_edge_predictor(asked):
    of_cohorts, alone, x, said = asked
    check_prediction(said["cohorts"]["prediction"], of_cohorts.predictor.predict(ROWS))
    check_prediction(said["one cohort"]["prediction"], of_cohorts.predictor.predict(ROWS, cohort="M"))
    check_prediction(said["plain"]["prediction"], alone.predictor.predict(x))
    assert said["columns"]["prediction"] == said["plain"]["prediction"]  # many classes are kept in columns
    assert said["cohorts"]["prediction"]["cohorts"] == ["F", "M", None, None]
    assert said["plain"]["prediction"]["cohorts"] is None
    assert said["plain"]["check"] == {"value": []}


def test_thresholds_and_top_k_may_be_others(asked):
    prediction = asked[3]["thresholds"]["prediction"]
    assert all("cat" in labels and "owl" not in labels for labels in prediction["predictionSets"])
    assert [len(top) for top in prediction["top"]] == [1, 1]


def test_the_network_is_given_what_edge_predictor_gives_it(asked):
    of_cohorts, _, x, said = asked
    assert said["plain"]["feed"] == {"x": {"type": "float32", "dims": [2, 6], "data": np.ravel(x).tolist()}}
    feed = said["cohorts"]["feed"]
    assert feed["x"]["data"] == of_cohorts.predictor.encode(ROWS).ravel().tolist()
    assert feed["cohort"] == {"type": "int64", "dims": [4, 1], "data": [1, 2, 0, 0]}


def test_only_the_graph_with_cohorts_is_changed_and_computes_the_same(asked):
    of_cohorts, alone, _, said = asked
    assert base64.b64decode(said["plain"]["opened"]) == alone.model
    session = ort.InferenceSession(base64.b64decode(said["cohorts"]["opened"]), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["x", "cohort"]
    feed = {"x": of_cohorts.predictor.encode(ROWS), "cohort": np.int64([[1], [2], [0], [0]])}
    np.testing.assert_array_equal(session.run(["prob"], feed)[0], of_cohorts.predictor.predict_proba(ROWS))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("changed", "model.onnx was changed or cut short"),
        ("short", "model.onnx was changed or cut short"),
        ("no edge card", "card.json is not that of `ovr export target=edge`"),
        ("ort with cohorts", "export it with format=onnx"),
        ("other bundle", "the model card is of bundle ffffffffffff and 3 classes"),
        ("other classes", "and 4; export them together again"),
        ("version", "the model card has schema_version 9; this ovr reads version 1 or 2 or 3"),
        ("taxonomy", "a class in the taxonomy cannot be read"),
        ("lengths", "3 classes, 3 versions and 1 thresholds"),
        ("threshold of the card", "the model card has threshold -1"),
        ("mode", "decision mode is 'softmax'"),
        ("abstain", "abstain_below is 2; expected a probability from 0 to 1"),
        ("top", "top_k is 0; expected at least 1"),
        ("shape", "its input has shape []"),
        ("dtype", "input dtype 'int8' is not supported"),
        ("encoder", "the encoder makes rows of shape (6), the model takes (7)"),
        ("another card", "the model card is not the one in model.onnx"),
        ("no card", "model.onnx has no ovr.card in its metadata"),
        ("cut short", "the model is no ONNX file: it is cut short"),
        ("not opened", "model.onnx, of opset 18 and IR version 10, cannot be opened by this onnxruntime-web: an opset of tomorrow"),
        ("cohort not taken", "cohort is given, but this model has one calibration for all rows"),
        ("cohorts of other rows", "got 1 cohorts for 4 rows"),
        ("threshold", "threshold -1; expected a finite number of at least 0"),
        ("unknown class", "threshold names 'dodo', which is no class of the model"),
        ("topK", "top_k is 0; expected at least 1"),
        ("text", "rows are str; expected an array with a row each"),
    ],
)
def test_what_does_not_fit_is_said(asked, name, message):
    assert message in asked[3][name]["error"]
