"""The row that a model is asked for is one that it takes."""

import numpy as np
import pytest

from ovr.errors import ArtifactError
from ovr.input.columns import CategoryColumn, DateColumn, NumericColumn
from ovr.input.image import ImageEncoder
from ovr.input.joined import JoinedTexts
from ovr.input.records import from_bytes
from ovr.input.sparse import SparseRows
from ovr.input.table import TableEncoder
from ovr.input.text import HashedText
from ovr.serving.probe_rows import probe_inputs

STRICT = TableEncoder(
    (
        NumericColumn("n", 5.0, 0.0, 1.0, 4.0, 6.0, flag=False, missing="error", out_of_range="error"),
        CategoryColumn("c", ("red", "blue"), (), False, False, missing="error", unknown="error"),
        CategoryColumn("hashed", (), (), False, False, layout="hashed", num_buckets=4, missing="error", unknown="error"),
        DateColumn("iso", ("year",), 1.6e9, 0.0, 1.0, 1.5e9, 1.7e9, flag=False, missing="error", out_of_range="error"),
        DateColumn("day", ("year",), 1.6e9, 0.0, 1.0, 1.5e9, 1.7e9, False, ("%d.%m.%Y",), missing="error", out_of_range="error"),
    )
)


def config(*tensors):
    return {
        "name": "m",
        "input": [dict(zip(("name", "data_type", "dims", "optional"), tensor, strict=False)) for tensor in tensors],
    }


@pytest.mark.parametrize(
    "encoder", [STRICT, HashedText(num_tokens=6, max_tokens=4), SparseRows(num_features=3, max_tokens=2)], ids=lambda e: e.kind
)
def test_no_encoder_refuses_it(encoder):
    (sent,) = probe_inputs(config(("row", "TYPE_STRING", ["1"])), encoder.to_json()).values()
    x = encoder.encode(from_bytes(sent, encoder.kind))
    assert x.shape == (1, *encoder.tensor.shape)
    assert np.isfinite(x).all()


def test_no_encoder_of_pictures_refuses_it():
    pytest.importorskip("PIL")
    encoder = ImageEncoder(4, 6, mode="rgb", fit="crop")
    (sent,) = probe_inputs(config(("image", "TYPE_STRING", [1])), encoder.to_json()).values()
    assert len(np.unique(encoder.encode(from_bytes(sent, "image")))) > 2


def test_no_joined_encoders_refuse_it():
    encoder = JoinedTexts({"a": HashedText(num_tokens=6, max_tokens=4), "b": HashedText(num_tokens=9, max_tokens=4)})
    (sent,) = probe_inputs(config(("text", "TYPE_STRING", [1])), encoder.to_json()).values()
    assert len(encoder.encode(from_bytes(sent, "joined"))) == 1


def test_numbers_are_neither_zero_nor_constant_and_a_cohort_is_the_pooled_one():
    inputs = probe_inputs(
        config(("x", "TYPE_FP32", ["2", "3"]), ("cohort", "TYPE_INT64", [1]), ("c", "TYPE_STRING", [1], True)), None
    )
    assert set(inputs) == {"x", "cohort"}
    np.testing.assert_array_equal(inputs["x"], np.linspace(0, 1, 6, dtype=np.float32).reshape(1, 2, 3))
    np.testing.assert_array_equal(inputs["cohort"], [[0]])


def test_inputs_that_are_none_of_ours_are_named():
    with pytest.raises(ArtifactError, match=r"input 'x' of m has dims \[-1\]; expected a fixed size"):
        probe_inputs(config(("x", "TYPE_FP32", [-1])), None)
    with pytest.raises(ArtifactError, match="input 'x' of m is TYPE_FP64; no row can be made for it"):
        probe_inputs(config(("x", "TYPE_FP64", [1])), None)
