"""The router takes image files as they are, decodes them as training does, and refuses what is none."""

import io

import numpy as np
import pytest

from ovr import Client, EdgePredictor
from ovr.errors import ServingError
from ovr.input.image import ImageEncoder
from ovr.serving.repository import publish
from tests.bundles import small_bundle

Image = pytest.importorskip("PIL.Image", reason="pip install 'ovr[images]'")

pytestmark = pytest.mark.triton

ENCODER = ImageEncoder(8, 8, mode="grey")


@pytest.fixture
def bundle(tmp_path):
    return small_bundle(tmp_path / "bundle", shape=ENCODER.tensor.shape, encoder=ENCODER.to_json())


def test_files_bytes_and_arrays_get_the_predictor_s_answers(bundle, tmp_path, started, rng):
    publish(bundle, tmp_path / "repo")
    server = started(tmp_path / "repo")
    pixels = rng.integers(256, size=(20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :10]).save(buffer, "PNG")
    rows = [tmp_path / "a.jpg", buffer.getvalue(), pixels, pixels[:8, :8, 0]]
    expected = EdgePredictor(bundle.path).predict(rows)
    for url in (server.http_url, server.grpc_url):
        with Client(url) as client:
            answer = client.predict(rows)
            np.testing.assert_allclose(answer.prob_BK, expected.prob_BK, atol=1e-5)
            assert answer.labels() == expected.labels()
            with pytest.raises(ServingError, match=r"row 1 is no image of BMP"):
                client.predict([rows[0], str(tmp_path / "a.jpg").encode()])
            assert len(client.predict(rows)) == 4
