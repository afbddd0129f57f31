"""Every backbone that has a file has a configuration of the same name, and keeps what the rest of ovr builds on."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ovr.torchvision_ops import declare_missing_ops
from tests.encoders import save_encoder
from tests.test_conf import NOT_PLUG_INS

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "conf" / "backbone").glob("*.yaml"))
PARTS = {name.partition("/")[2] for name in NOT_PLUG_INS if name.startswith("backbone/")}
IMAGE = (1, 8, 8)
TOKENS = {"bag", "joined", "transformer"}  # take rows of tokens
NO_INPUT_GRADIENT = {"joined", "transformer"}  # takes weights as a mask
NUM_TOKENS = 50
LARGER = {"timm": (3, 64, 64)}  # batch norm of a network that halves five times sees one position of a smaller image


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Return a function that makes a backbone as its YAML says."""

    def make(name):
        group = OmegaConf.load(ROOT / "conf" / "backbone" / f"{name}.yaml")
        if name == "timm":
            declare_missing_ops()
            pytest.importorskip("timm", reason="timm, or the torchvision that it needs, cannot be imported", exc_type=ImportError)
        if name == "transformer":
            pytest.importorskip("transformers")
            group.update({"path": str(save_encoder(tmp_path_factory.mktemp("encoder"))), "frozen": False})
        if name == "joined":
            of_parts = {part: OmegaConf.load(ROOT / "conf" / "backbone" / f"{part}.yaml") for part in ("bag", "mlp")}
            del group["defaults"]
            group.update({"parts": of_parts, "lengths": {"bag": 5, "mlp": 3}})
        torch.manual_seed(0)
        cfg = OmegaConf.create({"data": {"num_tokens": NUM_TOKENS, "normalize": "none"}, "backbone": group}).backbone
        return instantiate(cfg, _convert_="all")((8, 2) if name in TOKENS else LARGER.get(name, IMAGE))

    return make


def rows(name, num_rows):
    if name not in TOKENS:
        return torch.randn(num_rows, *LARGER.get(name, IMAGE))
    x = torch.stack([torch.randint(NUM_TOKENS, (num_rows, 8)), torch.rand(num_rows, 8) + 0.5], dim=2)
    for row, length in enumerate(torch.randint(1, 9, (num_rows,))):
        x[row, length:] = 0
    return x


def test_files_and_configurations_have_the_same_names():
    assert sorted({path.stem for path in (ROOT / "ovr" / "backbone").glob("*.py")} - {"__init__"} - PARTS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_features_have_the_promised_width_at_any_batch_size(build, name):
    backbone = build(name).eval()
    for num_rows in (1, 2, 7):
        assert backbone(rows(name, num_rows)).shape == (num_rows, backbone.num_features)


@pytest.mark.parametrize("name", NAMES)
def test_one_row_a_batch_can_be_trained_on(build, name):
    backbone = build(name).train()
    x = rows(name, 1).requires_grad_()
    backbone(x).square().sum().backward()
    if name not in NO_INPUT_GRADIENT:
        assert x.grad is not None
        assert x.grad.isfinite().all()
    for parameter_name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_in_use_a_row_does_not_see_the_others(build, name):
    backbone = build(name).eval()
    x = rows(name, 6)
    with torch.no_grad():
        torch.testing.assert_close(backbone(x)[2:3], backbone(x[2:3]), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_the_weights(build, name):
    one, other = build(name).state_dict(), build(name).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
