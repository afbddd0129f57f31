"""Backbones beside each other, against each of them alone."""

from functools import partial

import pytest
import torch

from ovr.backbone.bag import Bag
from ovr.backbone.joined import Joined
from ovr.backbone.mlp import Mlp
from ovr.errors import ConfigError

BAG = {"width": 3, "idf": True, "min_rows": 1, "l2": True, "init": 0.1, "latent": 0, "latent_weight": 1.0, "token_dropout": 0.0}
PARTS = {
    "bag": partial(Bag, num_tokens=9, dropout=0.0, hidden=[], activation="relu", **BAG),
    "mlp": partial(Mlp, hidden=[5], activation="relu", dropout=0.0),
}
LENGTHS = {"bag": 4, "mlp": 2}


def rows(num_rows=6):
    torch.manual_seed(1)
    return torch.cat([torch.randint(9, (num_rows, 4, 2)).float(), torch.randn(num_rows, 2, 2)], dim=1)


def test_features_are_those_of_the_parts_side_by_side():
    joined, x = Joined((6, 2), parts=PARTS, lengths=LENGTHS).eval(), rows()
    joined.fit(x.numpy())
    alone = PARTS["bag"]((4, 2)).eval()
    alone.fit(x[:, :4].numpy())
    assert torch.equal(joined.parts["bag"].scale_V, alone.scale_V)
    expected = torch.cat([joined.parts["bag"](x[:, :4]), joined.parts["mlp"](x[:, 4:])], dim=1)
    assert torch.equal(joined(x), expected)
    assert (joined.num_features, joined.frozen, joined.pretrained, joined.frozen_parts()) == (8, False, False, {})


@pytest.mark.parametrize("place_size", [1, 2, 3])
def test_features_in_place_of_a_frozen_parts_rows_give_the_same(place_size):
    x = rows().flip(1)
    joined = Joined((6, 2), parts={"mlp": PARTS["mlp"], "bag": PARTS["bag"]}, lengths={"mlp": 2, "bag": 4}).eval()
    joined.parts["mlp"].frozen = True
    rest = joined.on_features(place_size)
    z_B5 = joined.parts["mlp"](x[:, :2])
    assert rest.lengths == {"mlp": -(-5 // place_size), "bag": 4}
    given = torch.nn.functional.pad(z_B5, (0, -5 % place_size)).unflatten(1, (-1, place_size))
    found = rest.parts["mlp"](given)
    assert torch.equal(found, z_B5)
    if place_size == 2:
        assert torch.equal(rest(torch.cat([given, x[:, 2:]], dim=1)), joined(x))
    assert [name for name, _ in rest.named_parameters()] == ["parts.bag.vector_VD"]
    assert rest.parts["bag"] is joined.parts["bag"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": {"bag": 4, "other": 2}}, "got backbone.parts bag, mlp and backbone.lengths of bag, other"),
        ({"parts": {}, "lengths": {}}, "needs two parts or more and the length of each, got backbone.parts none"),
        ({"normalize": "feature"}, "needs rows as they are, got data.normalize=feature"),
        ({"lengths": {"bag": 4, "mlp": 3}}, r"rows of shape \(6, 2\) have 6 places, and the parts take bag 4, mlp 3"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Joined((6, 2), **{"parts": PARTS, "lengths": LENGTHS, **changes})
