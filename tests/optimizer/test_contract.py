"""Every optimizer of ours: one file and one configuration, rows that do not meet, and the formula of its source."""

from functools import partial
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ovr.errors import ConfigError
from ovr.optimizer.adamw import AdamW
from ovr.optimizer.rowwise_adagrad import RowwiseAdagrad
from ovr.optimizer.rowwise_adam import RowwiseAdam

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "ovr" / "optimizer").glob("*.py") if path.stem != "__init__")


def make(name):
    return instantiate(OmegaConf.load(ROOT / "conf" / "optimizer" / f"{name}.yaml"), _convert_="all")


def run(optimizer, weight, grads):
    parameter = torch.nn.Parameter(weight.clone())
    made = optimizer([parameter])
    for grad in grads:
        parameter.grad = grad.clone()
        made.step()
    return parameter.detach()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(5, 3), (5,), (5, 3, 2)])
def test_a_row_is_trained_as_if_it_were_alone(name, shape):
    weight, grads = torch.randn(shape), [torch.randn(shape) for _ in range(4)]
    whole = run(make(name), weight, grads)
    alone = torch.cat([run(make(name), weight[k : k + 1], [grad[k : k + 1] for grad in grads]) for k in range(5)])
    torch.testing.assert_close(whole, alone)
    assert make(name)([torch.nn.Parameter(weight)]).by_head


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_one_entry_are_trained_as_torchs_optimizer_trains_them(name):
    """With one entry a row, the row's mean square is the entry's square."""
    weight, grads = torch.randn(6), [torch.randn(6) for _ in range(5)]
    ours, torchs = {
        "adamw": (partial(AdamW, lr=0.1, fused=True), partial(torch.optim.AdamW, lr=0.1)),
        "rowwise_adagrad": (
            partial(RowwiseAdagrad, lr=0.1, eps=1e-10, weight_decay=0.0),
            partial(torch.optim.Adagrad, lr=0.1, eps=1e-10),
        ),
        "rowwise_adam": (
            partial(RowwiseAdam, lr=0.1, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.2),
            partial(torch.optim.AdamW, lr=0.1, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.2),
        ),
    }[name]
    torch.testing.assert_close(run(ours, weight, grads), run(torchs, weight, grads))


def test_state_is_a_number_a_row():
    parameter = torch.nn.Parameter(torch.randn(5, 30))
    parameter.grad = torch.randn(5, 30)
    for optimizer in (
        RowwiseAdagrad([parameter], lr=0.1, eps=1e-8, weight_decay=0.0),
        RowwiseAdam([parameter], lr=0.1, betas=(0.0, 0.9), eps=1e-8, weight_decay=0.0),
    ):
        optimizer.step()
        sizes = [value.numel() for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
        assert sizes == [5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "optimizer.lr must be above 0 and finite, got 0.0"),
        ({"eps": -1.0}, "optimizer.eps must be at least 0 and finite, got -1.0"),
        ({"weight_decay": float("inf")}, "optimizer.weight_decay must be at least 0 and finite, got inf"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    for name in ("rowwise_adagrad", "rowwise_adam"):  # of AdamW torch's own constructor refuses them
        with pytest.raises(ConfigError, match=message):
            make(name)([torch.nn.Parameter(torch.ones(2))], **settings)


@pytest.mark.parametrize("betas", [[0.9], [0.9, 1.0], [-0.1, 0.9]])
def test_decay_rates_out_of_range_are_refused(betas):
    with pytest.raises(ConfigError, match="betas must be two numbers from 0 to below 1"):
        make("rowwise_adam")([torch.nn.Parameter(torch.ones(2))], betas=betas)


SETTINGS = {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.2}


def five_steps(made, parameters, *, hook=False):
    """Return the weights after steps in which one weight has no gradient at first, and the rate changes."""
    calls = []
    if hook:
        made.register_step_pre_hook(lambda *given: calls.append("before"))
        made.register_step_post_hook(lambda *given: calls.append("after"))
    generator = torch.Generator().manual_seed(1)
    for n in range(5):
        made.zero_grad()
        assert all(parameter.grad is None for parameter in parameters)
        for parameter in parameters[: 3 if n else 2]:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        assert made.step(lambda n=n: n) == n
        made.param_groups[0]["lr"] *= 0.5
    assert calls == (["before", "after"] * 5 if hook else [])
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize(
    "settings",
    [
        {"fused": True},
        {"fused": True, "maximize": True},
        {"fused": True, "amsgrad": True},
        {"fused": True, "lr": torch.tensor(0.1)},
        {"fused": True, "lr": 1},
        {"foreach": True},
        {},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtypes", [(torch.float32,) * 3, (torch.float32, torch.bfloat16, torch.float32)], ids=["one", "two"])
@pytest.mark.parametrize("hook", [False, True])
def test_adamw_gives_the_bits_of_torchs(settings, dtypes, hook):
    weights = []
    for optimizer in (AdamW, torch.optim.AdamW):
        generator = torch.Generator().manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(4, 3, generator=generator).to(dtype)) for dtype in dtypes]
        given = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in (SETTINGS | settings).items()}
        groups = [{"params": parameters[:1]}, {"params": parameters[1:], "weight_decay": 0.0}]
        weights.append(five_steps(optimizer(groups, **given), parameters, hook=hook))
    for ours, torchs in zip(*weights, strict=True):
        assert torch.equal(ours, torchs)


def test_adamw_hears_a_grad_scaler_and_keeps_zeroed_gradients():
    parameter = torch.nn.Parameter(torch.ones(3))
    made = AdamW([parameter], **SETTINGS, fused=True)
    parameter.grad = torch.ones(3)
    made.step()
    before = parameter.detach().clone()
    made.grad_scale, made.found_inf = torch.tensor(4.0), torch.tensor(1.0)
    made.step()
    assert torch.equal(parameter, before)
    made.zero_grad(set_to_none=False)
    assert torch.equal(parameter.grad, torch.zeros(3))
