import numpy as np
import pytest
import torch

from ovr.core.bundle import BACKBONE_WEIGHTS, open_bundle
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.errors import ArtifactError, ConfigError
from ovr.head.bank import HeadBank
from ovr.training.initial import start_from_bundle
from tests.bundles import small_bundle
from tests.export.sample import BACKBONES, HEADS, SHAPE, sample_bundle, sample_model, sample_rows

CLASS_IDS = ("cat", "a/b", "größe")


def start(model, path, class_ids=CLASS_IDS, needed=(), shape=SHAPE):
    start_from_bundle(model, path, taxonomy=Taxonomy.from_ids(class_ids), input=InputSchema(shape), needed=needed)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_model_begins_as_the_bundles(tmp_path, backbone, head):
    source = sample_model(backbone=backbone, head=head, num_heads=3)
    sample_bundle(tmp_path / "bundle", source, CLASS_IDS)
    model = sample_model(backbone=backbone, head=head, num_heads=3, seed=1)
    start(model, tmp_path / "bundle")
    assert same(model.state_dict(), source.state_dict())
    x = torch.from_numpy(sample_rows())
    assert torch.equal(model.eval()(x), source.eval()(x))


@pytest.mark.parametrize("head", HEADS)
def test_heads_go_by_class_id_and_new_classes_keep_what_was_drawn(tmp_path, head):
    source = sample_model(head=head, num_heads=3)
    sample_bundle(tmp_path / "bundle", source, CLASS_IDS)
    model = sample_model(head=head, num_heads=1, seed=1)
    make = HEADS[head]
    model.head = HeadBank(
        lambda num_features, num_heads: make(num_features, num_heads), 16, num_heads=4, frozen=(1, 2), to_backbone=(0, 2)
    )
    drawn = model.head.head_weights(0)
    start(model, tmp_path / "bundle", ("new", "größe", "cat", "other"), needed=("größe", "cat"))
    assert same(model.head.head_weights(1), source.head.head_weights(2))
    assert same(model.head.head_weights(2), source.head.head_weights(0))
    assert same(model.head.head_weights(0), drawn)


@pytest.fixture
def bundle(tmp_path):
    sample_bundle(tmp_path / "bundle", sample_model(num_heads=3), CLASS_IDS)
    return tmp_path / "bundle"


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        (
            {},
            {"needed": ("x", "cat", "y")},
            r"has no head for the frozen classes \['x', 'y'\]; a frozen head needs weights to keep",
        ),
        ({}, {"shape": (64,)}, r"takes rows of shape \(1, 8, 8\); the data has \(64,\)"),
        ({"backbone": "cnn"}, {}, r"another backbone than the configuration: backbone\.layers.* instead of nothing; "),
        ({"backbone": "identity"}, {}, r"another backbone than the configuration: backbone\.layers.* instead of nothing; "),
        ({"head": "mlp"}, {}, r"head 'cat' is linear with weights of shapes .*; the configuration has mlp with"),
    ],
)
def test_a_bundle_that_does_not_fit_is_refused_and_leaves_the_model(bundle, changes, arguments, message):
    model = sample_model(num_heads=3, seed=1, **changes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        start(model, bundle, **arguments)
    assert same(before, model.state_dict())


def test_a_normaliser_of_another_shape_is_refused(bundle):
    model = sample_model(num_heads=3)
    model.normalizer.scale = torch.ones(1)
    with pytest.raises(ConfigError, match=r"normalizer\.scale \(1, 1, 1\) instead of \(1,\)"):
        start(model, bundle)


def test_a_bundle_that_is_none_or_damaged_is_refused(tmp_path, bundle):
    model = sample_model(num_heads=3)
    with pytest.raises(ArtifactError, match="is not a bundle"):
        start(model, tmp_path / "nothing")
    file = open_bundle(bundle).path / BACKBONE_WEIGHTS
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"weights\.npz"):
        start(model, bundle)


def test_a_bundle_without_weights_for_torch_is_refused(tmp_path):
    path = small_bundle(tmp_path / "small", CLASS_IDS).path
    with pytest.raises(ArtifactError, match=r"has no backbone/weights\.npz, so training cannot start from it"):
        start(sample_model(num_heads=3), path, shape=open_bundle(path).input.shape)
