import pytest

from ovr.core.nearest import nearest

KEYS = ["trainer.max_epochs", "trainer.min_epochs", "data.source.seed", "seed", "loss", "loss.gamma", "backbone.hidden"]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("trainer.max_epoch", "trainer.max_epochs"),
        ("max_epochs", "trainer.max_epochs"),
        ("sead", "seed"),
        ("los", "loss"),
        ("backbone.hiden", "backbone.hidden"),
        ("gama", "loss.gamma"),
    ],
)
def test_the_meant_name_comes_first(name, first):
    assert nearest(name, KEYS).removeprefix("nearest: ").split(", ")[0] == first


def test_what_resembles_nothing_has_no_neighbours():
    assert nearest("xyzzy", KEYS) == ""
    assert nearest("loss", []) == ""
