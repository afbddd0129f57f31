import base64
import io
import re

import numpy as np
import pytest

from ovr.report.example_rows import png, row_html


def decoded(html):
    image = pytest.importorskip("PIL.Image")
    return np.asarray(image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]*)", html)[1]))))


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (3, 5, 7)])
def test_pixels_come_back_out_of_the_page(rng, shape):
    pixels = rng.integers(0, 256, shape).astype(np.uint8)
    expected = pixels if pixels.ndim == 2 else pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    np.testing.assert_array_equal(decoded(row_html(pixels)), expected)


def test_other_numbers_go_from_black_to_white():
    assert decoded(row_html(np.array([[-2.0, 0.0], [1.0, 2.0]]))).tolist() == [[0, 128], [191, 255]]
    assert decoded(row_html(np.ones((2, 2)))).tolist() == [[0, 0], [0, 0]]


def test_large_pictures_are_thinned():
    _, size = png(np.zeros((500, 300), np.uint8))
    assert max(size) <= 96


def test_texts_cells_and_numbers_are_escaped_and_bounded():
    assert "&lt;b&gt;" in row_html("<b>")
    assert len(row_html("x" * 10_000)) < 12_000
    cells = row_html({"<a>": 1.5, **{f"c{k}": None for k in range(40)}})
    assert "&lt;a&gt;" in cells
    assert "and 17 more" in cells
    assert "(64 numbers)" in row_html(np.arange(64.0))


def test_an_image_file_is_a_thumbnail_and_one_that_cannot_be_read_is_named(tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.new("L", (300, 200), 255).save(tmp_path / "a.png")
    assert decoded(row_html(tmp_path / "a.png")).shape == (64, 96, 3)
    assert decoded(row_html((tmp_path / "a.png").read_bytes())).shape == (64, 96, 3)
    assert row_html(tmp_path / "<gone>.png").startswith("<bdi>&lt;gone&gt;.png</bdi>")
    assert row_html(b"nothing").startswith("<bdi>image</bdi>")
