import pytest
import torch

from ovr.augment.flip_crop import FlipCrop
from ovr.errors import ConfigError

pytest.importorskip("kornia", reason="pip install 'ovr[augment]'")

OFF = {"pad": 0, "padding": "constant", "flip_prob": 0.0, "rotate_deg": 0.0, "erase_prob": 0.0, "erase_area": [0.02, 0.2]}
ALL = {"pad": 2, "flip_prob": 0.5, "rotate_deg": 20.0, "erase_prob": 0.5}


def flip_crop(input_shape=(1, 6, 8), **changes):
    return FlipCrop(input_shape, **{**OFF, **changes})


def images(num_rows=64, shape=(1, 6, 8)):
    return torch.arange(1.0, 1 + num_rows * 48 * (shape[0] if len(shape) == 3 else 1)).reshape(num_rows, *shape)


def test_with_all_off_rows_stay_as_they_are():
    assert torch.equal(flip_crop()(images()), images())


@pytest.mark.parametrize("shape", [(6, 8), (1, 6, 8), (3, 6, 8)])
def test_the_seed_decides_what_is_drawn(shape):
    augment = flip_crop(shape, **ALL)
    x = images(shape=shape)
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(augment(x))
    assert made[0].shape == x.shape
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert torch.equal(x, images(shape=shape))


def test_a_flip_is_of_whole_rows():
    x = images(200)
    y = flip_crop(flip_prob=0.25)(x)
    flipped = (y == x.flip(-1)).flatten(1).all(1)
    assert ((y == x).flatten(1).all(1) ^ flipped).all()
    assert 20 < flipped.sum() < 80


def test_a_crop_moves_the_image_by_up_to_the_padding():
    x = images(300)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    shifts = [padded[:, :, top : top + 6, left : left + 8] for top in range(5) for left in range(5)]
    is_shift = torch.stack([(flip_crop_of(x) == shift).flatten(1).all(1) for shift in shifts])
    assert is_shift.any(0).all()
    assert is_shift.any(1).all()


def flip_crop_of(x):
    torch.manual_seed(0)
    return flip_crop(pad=2)(x)


def test_padding_may_repeat_the_image():
    assert (flip_crop(pad=2, padding="replicate")(images()) > 0).all()
    assert (flip_crop(pad=2, padding="reflect")(images()) > 0).all()
    assert (flip_crop(pad=2)(images()) == 0).any()


def test_erasing_sets_a_share_of_some_images_to_0():
    erased = (
        (flip_crop((1, 40, 40), erase_prob=0.5, erase_area=[0.1, 0.2])(torch.ones(200, 1, 40, 40)) == 0).float().mean((1, 2, 3))
    )
    assert 60 < (erased > 0).sum() < 140
    assert erased[erased > 0].min() > 0.05
    assert erased.max() < 0.25


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_shape": (64,)}, r"augment=flip_crop needs rows of shape \(H, W\) or \(C, H, W\), got \(64,\)"),
        ({"pad": 6}, "augment.pad must be a whole number of pixels from 0 to 5, got 6"),
        ({"pad": 0.5}, r"augment\.pad must be"),
        ({"padding": "wrap"}, "augment.padding is 'wrap'; expected one of constant, reflect, replicate"),
        ({"flip_prob": 1.5}, r"augment\.flip_prob must be a number from 0 to 1, got 1\.5"),
        ({"erase_prob": True}, r"augment\.erase_prob must be"),
        ({"rotate_deg": -1}, r"augment\.rotate_deg must be a number from 0 to 180"),
        ({"erase_area": [0.3, 0.2]}, r"augment\.erase_area must be two shares"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        flip_crop(**changes)


def test_without_kornia_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "kornia.augmentation", None)
    with pytest.raises(ConfigError, match=r"pip install 'ovr\[augment\]'"):
        flip_crop()
