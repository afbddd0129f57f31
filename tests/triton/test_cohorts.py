"""One server on a model with cohorts: names and numbers of cohorts get what the edge predictor gives; and the contract with it."""

import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as grpc_api
import tritonclient.http as http_api
from tritonclient.utils import InferenceServerException

from ovr import Client, EdgePredictor
from ovr.cli.main import main
from ovr.core.class_metrics import ClassMetricsSettings
from ovr.errors import ContractError, InputError, ServingError
from ovr.serving.contract import measure_contract
from ovr.serving.repository import publish
from ovr.serving.server import start
from tests.bundles import small_bundle
from tests.cohorts import some_cohorts
from tests.triton.processes import until

pytestmark = pytest.mark.triton
COHORT = ["F", "M", "nobody", None] * 10


@pytest.fixture(scope="module")
def served(installed, tmp_path_factory):
    root = tmp_path_factory.mktemp("cohorts")
    bundle = small_bundle(root / "bundle", cohorts=some_cohorts(3))
    publish(bundle, root / "repo", max_batch_size=16, class_metrics=ClassMetricsSettings(interval_s=0.1))
    with start(root / "repo") as server:
        yield server, bundle


@pytest.fixture
def x(rng):
    return rng.normal(size=(40, 6)).astype(np.float32)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_rows_get_the_calibration_of_their_cohort(served, x, protocol):
    server, bundle = served
    edge = EdgePredictor(bundle.path)
    expected, pooled = edge.predict(x, cohort=COHORT), edge.predict(x)
    assert (expected.prob_BK[0] != pooled.prob_BK[0]).any()
    with Client(server.http_url if protocol == "http" else server.grpc_url) as client:
        got = client.predict(x, cohort=COHORT, batch_size=7)
        np.testing.assert_allclose(got.prob_BK, expected.prob_BK, atol=1e-6)
        assert got.labels() == expected.labels()
        assert got.card == bundle.card
        np.testing.assert_allclose(client.scores(x, cohort=COHORT), expected.prob_BK, atol=1e-6)
        np.testing.assert_allclose(client.predict(x).prob_BK, pooled.prob_BK, atol=1e-6)
        np.testing.assert_allclose(client.scores(x), pooled.prob_BK, atol=1e-6)
        np.testing.assert_allclose(client.predict(x, cohort="M").prob_BK, edge.predict_proba(x, cohort="M"), atol=1e-6)
        with pytest.raises(InputError, match="got 1 cohorts for 40 rows"):
            client.predict(x, cohort=["F"])

    def counted():
        with urllib.request.urlopen(server.metrics_url) as response:
            lines = [line for line in response.read().decode().splitlines() if line.startswith("ovr_cohort_rows_total{")]
        return {line.partition('cohort="')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in lines}

    until(lambda: min(counted().values()) >= 10)  # they are told every interval_s
    assert set(counted()) == {"known", "unknown", "missing"}


def test_the_scores_take_numbers_and_pool_those_that_there_are_not(served, x):
    server, bundle = served
    number = np.array([[0], [2], [3], [-1]] * 4)
    with grpc_api.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as connection:
        tensors = [grpc_api.InferInput("x", [16, 6], "FP32"), grpc_api.InferInput("cohort", [16, 1], "INT64")]
        tensors[0].set_data_from_numpy(x[:16])
        tensors[1].set_data_from_numpy(number)
        got = connection.infer("ovr_scores", tensors).as_numpy("prob")
        with pytest.raises(InferenceServerException, match="expected 2 inputs but got 1"):
            connection.infer("ovr_scores", tensors[:1])
    expected = EdgePredictor(bundle.path).predict_proba(x[:16], cohort=[None, "M", None, None] * 4)
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("api", [http_api, grpc_api])
def test_a_cohort_for_all_rows_may_be_a_parameter_and_not_an_input_too(served, x, api):
    server, bundle = served
    url = server.http_url if api is http_api else server.grpc_url
    tensors = [api.InferInput("x", [16, 6], "FP32"), api.InferInput("cohort", [16, 1], "BYTES")]
    tensors[0].set_data_from_numpy(x[:16])
    tensors[1].set_data_from_numpy(np.array([[b"F"]] * 16, dtype=np.object_))
    with api.InferenceServerClient(url.partition("://")[2]) as connection:
        got = connection.infer("ovr", tensors[:1], parameters={"cohort": "M"}).as_numpy("prob")
        with pytest.raises(InferenceServerException, match="cohort is given twice, as an input and as a parameter"):
            connection.infer("ovr", tensors, parameters={"cohort": "M"})
    np.testing.assert_allclose(got, EdgePredictor(bundle.path).predict_proba(x[:16], cohort="M"), atol=1e-6)


def test_the_command_line_takes_cohorts_from_the_file_or_for_all_rows(served, x, tmp_path, capsys):
    server, bundle = served
    lines = ["a,b,c,d,e,f,sex", *(",".join([*map(repr, map(float, row)), name or ""]) for row, name in zip(x, COHORT, strict=True))]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    np.save(tmp_path / "x.npy", x)
    for source in (f"bundle={bundle.path}", f"server={server.grpc_url}"):
        for more in (["input=x.csv"], ["input=x.npy", "cohort=M"]):
            more = [more[0].replace("=", f"={tmp_path}/"), *more[1:]]
            output = tmp_path / f"{source[:6]}{len(more)}.jsonl"
            assert main(["predict", source, *more, f"output={output}"]) == 0
    assert "20 rows known; with the pooled calibration 10 of unknown cohorts, 10 without one" in capsys.readouterr().out
    for number in (1, 2):
        assert (tmp_path / f"bundle{number}.jsonl").read_text() == (tmp_path / f"server{number}.jsonl").read_text()
    assert (tmp_path / "bundle1.jsonl").read_text() != (tmp_path / "bundle2.jsonl").read_text()


def test_the_contract_is_measured_on_what_the_server_returns(served, rng, tmp_path):
    server, bundle = served
    address = server.grpc_url.removeprefix("grpc://")
    x = rng.normal(size=(6000, 6)).astype(np.float32)
    cohort = rng.choice(["F", "M"], 6000).tolist()
    prob_NK = EdgePredictor(bundle.path).predict_proba(x, cohort=cohort)
    target_NK, mask_NK = rng.random(prob_NK.shape) < prob_NK, np.ones(prob_NK.shape, bool)
    kept = measure_contract(bundle, x, target_NK, mask_NK, cohort=cohort, server=address)
    kept.check()
    assert kept.served.same_bytes
    assert kept.served.max_abs_diff == 0
    assert [(v.class_id, v.cohort) for v in kept.verdicts[3:]] == [(id_, sex) for sex in "FM" for id_ in bundle.taxonomy.ids]
    assert kept.to_json()["bundle_sha256"] == bundle.bundle_sha256
    # The labels were drawn by cohort: without their cohorts the rows are not calibrated.
    pooled = measure_contract(bundle, x, target_NK, mask_NK, server=address)
    with pytest.raises(ContractError, match=r"9 heads, with those of each cohort, do not keep it: .* \(F\)': undecided \(no known"):
        pooled.check()
    other = small_bundle(tmp_path / "other", cohorts=some_cohorts(3), seed=5)
    with pytest.raises(ServingError, match=f"serves bundle {bundle.bundle_sha256[:12]}; this one is {other.bundle_sha256[:12]}"):
        measure_contract(other, x[:4], target_NK[:4], mask_NK[:4], server=address)
