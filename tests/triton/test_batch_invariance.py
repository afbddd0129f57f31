"""The same row gets the same bytes whatever its batch, its neighbours and the load: of the scores, the router and the ensemble."""

import threading
from urllib.parse import urlsplit

import numpy as np
import pytest
import tritonclient.grpc as grpc_api
import tritonclient.http as http_api

from ovr.core.faults import Faults
from ovr.core.taxonomy import slug
from ovr.serving.repository import publish
from ovr.serving.server import start
from tests.bundles import small_bundle

pytestmark = pytest.mark.triton
IDS = ("cat", "dog", "owl", "/")
OUTPUTS = {
    "ovr_scores": ["prob"],
    "ovr": ["prob", "label", "abstained", "top", "unavailable"],
    "ovr_heads": [f"prob_{slug(class_id)}" for class_id in IDS],
}
NUM_ROWS = 40
REQUESTS = 25  # of each client


@pytest.fixture(scope="module", params=[("per_head", 16), ("fused", 16), ("fused", 1)], ids=["per_head", "fused", "gpu_exact"])
def served(request, installed, tmp_path_factory):
    """A server of a layout with dynamic batching, and one of single rows as `serving=gpu_exact` makes it; layout, largest batch."""
    layout, max_batch_size = request.param
    root = tmp_path_factory.mktemp("served")
    bundle = small_bundle(root / "bundle", IDS, shape=(70,), num_features=130)
    patient = Faults(head_timeout_ms=60_000)  # else a head that is slow under this load is left out, and marked as unavailable
    publish(bundle, root / "repo", layout=layout, max_batch_size=max_batch_size, max_queue_delay_us=2000, faults=patient)
    with start(root / "repo") as server:
        yield server, layout, max_batch_size


def test_a_row_gets_the_same_bytes_in_any_company(served, rng):
    server, layout, max_batch_size = served
    models = [model for model in OUTPUTS if layout == "per_head" or model != "ovr_heads"]
    x = rng.normal(size=(NUM_ROWS, 70)).astype(np.float32) * rng.lognormal(sigma=3, size=(NUM_ROWS, 1)).astype(np.float32)
    with grpc_api.InferenceServerClient(urlsplit(server.grpc_url).netloc) as connection:
        alone = {model: [ask(grpc_api, connection, model, row[None]) for row in x] for model in models}
        before = batching(connection, layout)
        others, errors = [], []

        def client(api, url, model, seed):
            own = np.random.default_rng(seed)
            try:
                with api.InferenceServerClient(urlsplit(url).netloc) as connection:
                    for _ in range(REQUESTS):
                        rows = own.choice(NUM_ROWS, size=own.integers(1, max_batch_size + 1))
                        got = ask(api, connection, model, x[rows])
                        for name, values in got.items():
                            others.extend(
                                (model, name, n)
                                for n, value in zip(rows, values, strict=True)
                                if value.tobytes() != alone[model][n][name].tobytes()
                            )
            except Exception as error:
                errors.append(error)

        threads = [
            threading.Thread(target=client, args=(api, url, model, seed))
            for seed, (api, url, model) in enumerate(
                (api, url, model)
                for api, url in ((http_api, server.http_url), (grpc_api, server.grpc_url))
                for model in models
                for _ in range(2)
            )
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after = batching(connection, layout)
    assert errors == []
    assert others == []
    for model, (num_executed, num_requested) in after.items():
        executed, requested = num_executed - before[model][0], num_requested - before[model][1]
        assert requested >= 4 * REQUESTS
        if max_batch_size == 1:
            assert executed == requested
        else:
            assert executed < requested, f"no two requests of {model} met in a batch"


def ask(api, connection, model, x):
    tensor = api.InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    answer = connection.infer(model, [tensor], outputs=[api.InferRequestedOutput(name) for name in OUTPUTS[model]])
    return {name: answer.as_numpy(name) for name in OUTPUTS[model]}


def batching(connection, layout):
    """Return for each model with a queue how many batches were executed, and of how many requests."""
    counts = {}
    for model in ("ovr_scores", "ovr", *(("backbone", "head_cat") if layout == "per_head" else ())):
        (stats,) = connection.get_inference_statistics(model).model_stats
        counts[model] = (stats.execution_count, stats.inference_stats.success.count)
    return counts
