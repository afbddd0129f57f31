"""One server with both layouts of odd classes: what it answers is what the edge predictor answers."""

import numpy as np
import pytest
import tritonclient.grpc as grpc_api
import tritonclient.http as http_api
from tritonclient.utils import InferenceServerException

from ovr import Client, EdgePredictor
from ovr.core.artifact import DecisionPolicy
from ovr.core.faults import Faults
from ovr.core.outcomes import OUTPUTS
from ovr.core.prediction import Prediction
from ovr.core.taxonomy import slug
from ovr.errors import InputError
from ovr.serving.labels import escape_label
from ovr.serving.repository import publish
from ovr.serving.server import start
from tests.bundles import ODD_IDS, small_bundle

pytestmark = pytest.mark.triton
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def served(installed, tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    policy = DecisionPolicy(mode="multilabel", abstain_below=0.99, top_k=3)
    bundle = small_bundle(root / "bundle", ODD_IDS, shape=(2, 3), policy=policy, versions=range(1, 1 + len(ODD_IDS)))
    publish(bundle, root / "repo", layout="per_head", max_batch_size=32, faults=Faults(head_timeout_ms=20_000))
    with start(root / "repo") as server:
        yield server, EdgePredictor(bundle.path)


@pytest.fixture(params=["http", "grpc"])
def client(request, served):
    server = served[0]
    with Client(server.http_url if request.param == "http" else server.grpc_url) as client:
        yield client


@pytest.fixture
def edge(served):
    return served[1]


@pytest.fixture
def x(rng):
    return rng.normal(size=(100, 2, 3)).astype(np.float32)


def test_predictions_are_those_of_the_edge_predictor(client, edge, x):
    ours, theirs = client.predict(x, request_id="a request"), edge.predict(x)
    assert np.abs(ours.prob_BK - theirs.prob_BK).max() <= TOLERANCE
    assert (ours.decision.label_BK == theirs.decision.label_BK).all()
    assert (ours.decision.abstained_B == theirs.decision.abstained_B).all()
    assert (ours.decision.top_BM == theirs.decision.top_BM).all()
    assert ours.card == theirs.card == client.card()
    assert ours.request_id == "a request"
    assert 0 < theirs.decision.abstained_B.sum() < len(x)


def test_scores_come_without_the_router(client, edge, x):
    assert np.abs(client.scores(x) - edge.predict_proba(x)).max() <= TOLERANCE


@pytest.mark.parametrize("batch_size", [1, 7, 32, 1000])
def test_a_row_gets_the_same_bytes_in_every_batch(client, x, batch_size):
    assert (client.predict(x, batch_size=batch_size).prob_BK == client.predict(x, batch_size=13).prob_BK).all()


def test_progress_counts_every_row(client, x):
    done = []
    client.predict(x, batch_size=30, progress=done.append)
    assert done == [30, 30, 30, 10]


def test_every_head_alone_and_their_ensemble_answer_as_the_fused_graph(served, x):
    expected_BK = served[1].predict_proba(x)
    with grpc_api.InferenceServerClient(served[0].grpc_url.removeprefix("grpc://")) as connection:
        features = ask(grpc_api, connection, "backbone", "x", x[:32]).as_numpy("features")
        together = ask(grpc_api, connection, "ovr_heads", "x", x[:32])
        for column, class_id in enumerate(ODD_IDS):
            alone = ask(grpc_api, connection, f"head_{slug(class_id)}", "features", features)
            assert np.abs(alone.as_numpy("prob")[:, 0] - expected_BK[:32, column]).max() <= TOLERANCE
            assert np.abs(together.as_numpy(f"prob_{slug(class_id)}")[:, 0] - expected_BK[:32, column]).max() <= TOLERANCE


@pytest.mark.parametrize("api", [http_api, grpc_api])
def test_the_classification_extension_names_the_classes(served, api, x):
    url = served[0].http_url if api is http_api else served[0].grpc_url
    with api.InferenceServerClient(url.partition("://")[2]) as connection:
        output = api.InferRequestedOutput("prob", class_count=len(ODD_IDS))
        answer = ask(api, connection, "ovr_scores", "x", x[:1], outputs=[output]).as_numpy("prob")[0]
    columns = np.argsort(-served[1].predict_proba(x[:1])[0], kind="stable")
    assert [text.decode().split(":", 2)[2] for text in answer] == [escape_label(ODD_IDS[k]) for k in columns]


def test_the_router_names_the_top_classes_and_the_head_versions(served, x):
    with http_api.InferenceServerClient(served[0].http_url.removeprefix("http://")) as connection:
        answer = ask(http_api, connection, "ovr", "x", x[:5], request_id="r-1")
    top = [[class_id.decode() for class_id in row] for row in answer.as_numpy("top_class")]
    assert top == [[ODD_IDS[k] for k in row] for row in served[1].predict(x[:5]).decision.top_BM]
    assert (answer.as_numpy("head_version") == np.arange(1, 1 + len(ODD_IDS))).all()
    assert answer.get_response()["id"] == "r-1"


@pytest.mark.parametrize("api", [http_api, grpc_api])
def test_the_router_gives_outcomes_of_rows_as_a_whole_where_they_are_asked_for(served, api, x):
    url = served[0].http_url if api is http_api else served[0].grpc_url
    with api.InferenceServerClient(url.partition("://")[2]) as connection:
        named = [api.InferRequestedOutput(name) for name in ("prob", *OUTPUTS)]
        answer = ask(api, connection, "ovr", "x", x[:20], outputs=named)
        assert ask(api, connection, "ovr", "x", x[:1], outputs=named[:1]).as_numpy("prob_none") is None
    prediction = served[1].predict(x[:20])
    own = Prediction(prediction.card, answer.as_numpy("prob"), prediction.decision)
    unsure_B = (prediction.prob_BK < 0.999).all(axis=1)
    assert unsure_B.sum() > 5
    for name in OUTPUTS:
        value = answer.as_numpy(name)
        assert value.dtype == np.float64
        # The server's numpy may be another one. Heads alone differ from the fused graph by 1e-7, and the odds near 1 by much more.
        np.testing.assert_allclose(value, getattr(own, name)().reshape(value.shape), rtol=1e-12)
        theirs = getattr(prediction, name)().reshape(value.shape)
        np.testing.assert_allclose(value[unsure_B], theirs[unsure_B], atol=1e-4)


@pytest.mark.parametrize("api", [http_api, grpc_api])
def test_the_router_refuses_nan_and_says_where(served, api, x):
    x = x[:3].copy()
    x[2, 1, 0] = np.nan
    url = served[0].http_url if api is http_api else served[0].grpc_url
    with (
        api.InferenceServerClient(url.partition("://")[2]) as connection,
        pytest.raises(InferenceServerException, match=r"row 2, position \(1, 0\) holds nan") as caught,
    ):
        ask(api, connection, "ovr", "x", x)
    assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")


def test_a_row_that_overflows_in_the_model_is_an_error_of_its_own(served, x):
    x = x[:2].copy()
    x[1] = 3e38 * np.array([[1, -1, 1], [-1, 1, -1]], np.float32)
    with (
        http_api.InferenceServerClient(served[0].http_url.removeprefix("http://")) as connection,
        pytest.raises(
            InferenceServerException, match="row 1 gets no probability of any class that is asked for: its values overflow"
        ),
    ):
        ask(http_api, connection, "ovr", "x", x)


def test_bad_rows_are_refused_before_they_are_sent(client):
    with pytest.raises(InputError, match=r"rows have shape \(4, 6\); expected \(rows, 2, 3\)"):
        client.predict(np.zeros((4, 6)))
    with pytest.raises(InputError, match=r"row 0, position .* holds nan"):
        client.scores(np.full((1, 2, 3), np.nan))
    with pytest.raises(InputError, match="batch_size is 0; expected at least 1"):
        client.predict(np.zeros((1, 2, 3)), batch_size=0)


def ask(api, connection, model, name, array, **options):
    tensor = api.InferInput(name, list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    return connection.infer(model, [tensor], **options)
