import re
from functools import partial

import pytest
import torch

from ovr.backbone.mlp import Mlp
from ovr.core.bundle import open_bundle
from ovr.errors import ArtifactError
from ovr.head.linear import Linear
from ovr.training.rebuild import rebuilt_model
from tests.bundles import small_bundle
from tests.export.sample import BACKBONES, HEADS, sample_bundle, sample_model, sample_rows, sample_sharded_bundle

CLASS_IDS = ("cat", "a/b", "größe")


@pytest.mark.parametrize(
    ("backbone", "head", "save"),
    [("mlp", "mlp", sample_bundle), ("cnn", "linear", sample_bundle), ("mlp", "linear", sample_sharded_bundle)],
)
def test_the_heads_of_some_classes_are_what_they_were(tmp_path, backbone, head, save):
    source = sample_model(backbone=backbone, head=head, num_heads=3)
    save(tmp_path / "bundle", source, CLASS_IDS)
    bundle = open_bundle(tmp_path / "bundle")
    model = rebuilt_model(bundle, ("größe", "cat"), backbone=lambda shape: BACKBONES[backbone](), head=HEADS[head])
    x = torch.from_numpy(sample_rows())
    with torch.no_grad():
        torch.testing.assert_close(model(x), source.eval()(x)[:, [2, 0]], rtol=0, atol=1e-6)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


class Louder(Mlp):
    """Has the weights of an Mlp and gives something else."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_another_network_is_refused(tmp_path):
    sample_bundle(tmp_path / "bundle", sample_model(num_heads=3), CLASS_IDS)
    bundle = open_bundle(tmp_path / "bundle")
    same = {"hidden": [32, 16], "activation": "gelu", "dropout": 0.2}
    for other in (partial(Mlp, **{**same, "hidden": [32, 8]}), partial(Mlp, width=3)):
        with pytest.raises(ArtifactError, match="cannot be built again from the configuration that it keeps"):
            rebuilt_model(bundle, CLASS_IDS, backbone=other, head=HEADS["linear"])
    with pytest.raises(ArtifactError, match=r"gives other features than its model\.onnx"):
        rebuilt_model(bundle, CLASS_IDS, backbone=partial(Louder, **same), head=HEADS["linear"])


def test_a_bundle_without_weights_for_torch_is_refused(tmp_path):
    bundle = small_bundle(tmp_path / "bundle")
    with pytest.raises(ArtifactError, match=re.escape("has no backbone/weights.npz, so its backbone cannot be built in torch")):
        rebuilt_model(bundle, ("cat",), backbone=lambda shape: Mlp(shape), head=Linear)
