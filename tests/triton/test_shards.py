"""A bundle of so many heads that they lie in shards, behind a real server."""

import numpy as np
import pytest

from ovr import Client, EdgePredictor
from ovr.core.scale import LARGE_K
from ovr.core.taxonomy import slug
from ovr.export.check import run
from ovr.export.standalone import export_onnx
from ovr.serving.repository import publish
from tests.export.sample import sample_calibrations, sample_model, sample_rows, sample_sharded_bundle, torch_prob

pytestmark = [pytest.mark.triton, pytest.mark.slow]
K = 12_000


def test_twelve_thousand_heads_are_served_and_each_is_there_by_its_id(tmp_path, started):
    assert K >= LARGE_K
    model, x = sample_model(num_heads=K), sample_rows(12, seed=1)
    bundle, diffs = sample_sharded_bundle(tmp_path / "bundle", model, [f"class/{k}" for k in range(K)])
    assert (len(bundle.shards), max(diffs.values()) <= 1e-5) == (2, True)
    edge = EdgePredictor(bundle.path)
    theirs = edge.predict(x)
    expected_NK = torch_prob(model, x, sample_calibrations(K))
    np.testing.assert_allclose(theirs.prob_BK, expected_NK, atol=1e-5)
    for batch_size in (1, 5):
        assert (edge.predict_proba(x, batch_size=batch_size) == theirs.prob_BK).all()

    publish(bundle, tmp_path / "repository")
    server = started(tmp_path / "repository")
    for url in (server.http_url, server.grpc_url):
        with Client(url) as client:
            ours = client.predict(x)
        np.testing.assert_allclose(ours.prob_BK, theirs.prob_BK, atol=1e-6)
        assert (ours.decision.top_BM == theirs.decision.top_BM).all()
        assert ours.card == bundle.card

    own = export_onnx(bundle, tmp_path / "out", class_ids=["class/11999"]).path
    prob_N1 = run((own / "heads" / f"{slug('class/11999')}.onnx").read_bytes(), run((own / "backbone.onnx").read_bytes(), x))
    np.testing.assert_allclose(prob_N1, expected_NK[:, 11999:], atol=1e-5)
