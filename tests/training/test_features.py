import logging
import threading
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from ovr.backbone.bag import Bag
from ovr.backbone.joined import Joined
from ovr.backbone.mlp import Mlp
from ovr.head.linear import Linear
from ovr.model import Normalizer, OvrModel
from ovr.training.features import BATCH_ROWS, frozen_features


class Counted(nn.Module):
    """A backbone that counts its calls; three features, the third an exotic type's."""

    num_features = 3

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))
        self.register_buffer("other", torch.ones(3, dtype=torch.bfloat16))
        self.register_buffer("steps", torch.tensor(0))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x @ self.weight * self.other


def model(backbone=None):
    backbone = backbone or Counted()
    return OvrModel(Normalizer(torch.ones(1), torch.full((1,), 0.5)), backbone, Linear(3, num_heads=2))


@pytest.fixture
def x(rng):
    return rng.normal(size=(BATCH_ROWS + 5, 3)).astype(np.float32)


def test_features_are_those_of_the_model_in_eval_mode(tmp_path, rng):
    torch.manual_seed(0)
    x = rng.normal(size=(50, 4)).astype(np.float32)
    made = model(Mlp((4,), hidden=[3], activation="relu", dropout=0.5)).train()
    expected = made.eval().features(torch.from_numpy(x)).detach().numpy()
    made.train()
    for cache_dir in (None, tmp_path, tmp_path):
        z_ND = frozen_features(made, x, cache_dir=cache_dir)
        assert z_ND.dtype == np.float32
        np.testing.assert_array_equal(z_ND, expected)


def test_they_are_computed_once_and_then_read(tmp_path, x, caplog):
    first, second = model(), model()
    computed = frozen_features(first, x, cache_dir=tmp_path / "new" / "folder")
    with caplog.at_level(logging.INFO):
        read = frozen_features(second, x, cache_dir=tmp_path / "new" / "folder")
    assert (first.backbone.calls, second.backbone.calls) == (2, 0)
    assert "from" in caplog.text
    np.testing.assert_array_equal(computed, read)
    read[0] = 0  # a caller's own array, not a view of the file


@pytest.mark.parametrize("what", ["weight", "other", "normalizer", "row", "rows"])
def test_whatever_they_depend_on_gives_another_file(tmp_path, x, what):
    frozen_features(model(), x, cache_dir=tmp_path)
    changed, rows = model(), x.copy()
    with torch.no_grad():
        if what == "weight":
            changed.backbone.weight[0, 0] = 2.0
        elif what == "other":
            changed.backbone.other[0] = 2.0
        elif what == "normalizer":
            changed.normalizer.shift[0] = 2.0
        elif what == "row":
            rows[-1, -1] += 1
        else:
            rows = rows[:-1]
    np.testing.assert_array_equal(
        frozen_features(changed, rows, cache_dir=tmp_path), changed.features(torch.from_numpy(rows)).detach().numpy()
    )
    assert len(list(tmp_path.iterdir())) == 2


def bag(*, l2):
    drawn = {"init": "identity", "latent": 0, "latent_weight": 1.0, "token_dropout": 0.0, "dropout": 0.0}
    return partial(Bag, num_tokens=3, width=3, idf=False, min_rows=1, l2=l2, hidden=[], activation="relu", **drawn)


def joined(first, second, lengths=(2, 2)):
    return Joined((4, 2), parts={"a": first, "b": second}, lengths=dict(zip("ab", lengths, strict=True)))


@pytest.mark.parametrize(
    "backbones",
    [
        (bag(l2=True)((4, 2)), bag(l2=False)((4, 2))),
        (joined(bag(l2=True), bag(l2=False)), joined(bag(l2=False), bag(l2=True))),
        (joined(bag(l2=True), bag(l2=True), (1, 3)), joined(bag(l2=True), bag(l2=True), (3, 1))),
    ],
    ids=["alone", "as a part", "lengths of parts"],
)
def test_settings_that_no_weight_tells_count(tmp_path, backbones):
    x = np.array([[[0, 1], [1, 2], [2, 3], [1, 4]]], np.float32)
    normalizer = Normalizer(torch.zeros(1), torch.ones(1))
    found = []
    for backbone in backbones:
        made = OvrModel(normalizer, backbone, Linear(backbone.num_features, num_heads=2))
        found.append(frozen_features(made, x, cache_dir=tmp_path))
        np.testing.assert_array_equal(found[-1], made.features(torch.from_numpy(x)).detach().numpy())
    assert not np.array_equal(*found)


def test_features_of_a_backbone_that_cannot_be_told_from_others_are_not_kept(tmp_path, x, caplog):
    made = model()
    made.backbone.lock = threading.Lock()
    for _ in range(2):
        np.testing.assert_array_equal(
            frozen_features(made, x, cache_dir=tmp_path), made.features(torch.from_numpy(x)).detach().numpy()
        )
    assert "features are not kept for the next run: Counted cannot be told from others like it" in caplog.text
    assert not list(tmp_path.iterdir())


def test_the_structure_of_a_backbone_counts_where_its_weights_are_the_same(tmp_path, rng):
    x = rng.normal(size=(5, 4)).astype(np.float32)
    for activation in ("relu", "gelu"):
        torch.manual_seed(0)
        frozen_features(model(Mlp((4,), hidden=[3], activation=activation, dropout=0.0)), x, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:-10] + bytes([data[-10] ^ 1]) + data[-9:],
        lambda data: data.replace(b'"sha256":"', b'"sha256":"0', 1),
        lambda data: data.replace(b'"shape":[', b'"shape":[1', 1),
        lambda data: b"[]\n" + data,
        lambda data: b"\xff" + data,
        lambda data: b"",
    ],
    ids=["short", "long", "bit", "digest", "shape", "list", "not JSON", "empty"],
)
def test_a_damaged_file_is_reported_and_replaced(tmp_path, x, damage, caplog):
    expected = frozen_features(model(), x, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    np.testing.assert_array_equal(frozen_features(model(), x, cache_dir=tmp_path), expected)
    assert "are damaged and are computed again" in caplog.text
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, x, caplog):
    (tmp_path / "file").write_text("no folder")
    z_ND = frozen_features(model(), x, cache_dir=tmp_path / "file" / "features")
    assert len(z_ND) == len(x)
    assert "features are not kept for the next run" in caplog.text
