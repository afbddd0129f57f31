"""The chunked step is what autograd in float64 makes of the dense loss."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ovr.core.counts import ClassCounts
from ovr.errors import ConfigError
from ovr.head.bank import HeadBank, clip_head_gradients
from ovr.head.linear import Linear
from ovr.head.mlp import Mlp
from ovr.head_step.chunkable import OPTIMIZERS, StateTable, scalar_device
from ovr.head_step.groups import CHUNK_BYTES, CHUNK_MULTIPLE, FEW_HEADS, WIDER, fitting_heads
from ovr.head_step.step import HeadStep, NonFiniteStep
from ovr.head_step.targets import SparseTargets
from ovr.loss.asymmetric import Asymmetric
from ovr.loss.bce import Bce
from ovr.loss.focal import Focal
from ovr.loss.smoothed import Smoothed
from ovr.loss.subsampled import Subsampled

B, D, K = 9, 6, 11
IDS = tuple(f"c{k}" for k in range(K))
COUNTS = ClassCounts(np.arange(1, K + 1), np.full(K, 50))
SHIFT_K = torch.linspace(-1, 1, K)
LOSSES = {
    "bce": lambda: Bce(IDS, pos_weight=None),
    "weighted": lambda: Bce(IDS, pos_weight="auto", counts=COUNTS),
    "focal": lambda: Focal(IDS, gamma=2.0, pos_weight={"c3": 0.5}),
    "asymmetric": lambda: Asymmetric(IDS, gamma_positive=1.0, gamma_negative=2.0, margin=0.05),
    "smoothed": lambda: Smoothed(IDS, smoothing=0.1, counts=COUNTS),
    "subsampled": lambda: Subsampled(IDS, negatives_per_positive=1e9, counts=COUNTS),  # keeps all
}
KINDS = {"linear": Linear, "mlp": partial(Mlp, hidden=3)}
PLANS = {
    "plain": None,
    "bank": {"frozen": [1, 2, 7], "to_backbone": [0, 1, 5, 9, 10]},
    "none_sends": {"frozen": [4], "to_backbone": []},
}


def make_heads(kind="linear", plan="plain", seed=0, num_heads=K):
    torch.manual_seed(seed)
    if PLANS[plan] is None:
        return KINDS[kind](D, num_heads=num_heads)
    return HeadBank(KINDS[kind], D, num_heads=num_heads, **PLANS[plan])


def batch(seed=0, masked=True, num_heads=K):
    generator = torch.Generator().manual_seed(seed)
    target_BK = (torch.rand(B, num_heads, generator=generator) < 0.3).float()
    mask_BK = torch.rand(B, num_heads, generator=generator) < (0.8 if masked else 2)
    return torch.randn(B, D, generator=generator), target_BK, mask_BK


def dense(heads, loss, z_BD, target_BK, mask_BK, *, num_rows=B, shift_K=0.0):
    """The same by autograd in the dtype of the heads: loss, gradient of the features, gradients by weight."""
    z_BD = z_BD.detach().requires_grad_()
    value = torch.where(mask_BK, loss(heads(z_BD) + shift_K, target_BK), 0.0).sum() / num_rows
    names = [name for name, parameter in heads.named_parameters() if parameter.requires_grad]
    grads = torch.autograd.grad(value, [z_BD, *map(heads.get_parameter, names)], allow_unused=True)
    return value.detach(), grads[0], dict(zip(names, grads[1:], strict=True))


def close(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert (actual.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("chunk_heads", [1, 4, None])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients_are_those_of_autograd_in_float64(name, kind, plan, chunk_heads):
    z_BD, target_BK, mask_BK = batch()
    loss = LOSSES[name]()
    expected = dense(
        make_heads(kind, plan).double(), LOSSES[name]().double(), z_BD.double(), target_BK.double(), mask_BK, num_rows=7,
        shift_K=SHIFT_K.double(),
    )  # fmt: skip
    heads = make_heads(kind, plan)
    before = {key: value.clone() for key, value in heads.state_dict().items()}
    step = HeadStep(heads, loss, partial(torch.optim.SGD, lr=1.0), chunk_heads=chunk_heads, log_odds_shift_K=SHIFT_K)
    result = step(z_BD, SparseTargets.from_dense(target_BK, mask_BK), num_rows=7)
    close(result.loss, expected[0], 1e-6)
    if plan == "none_sends":
        assert result.grad_z_BD is None
    else:
        close(result.grad_z_BD, expected[1], 1e-6)
    for key, value in heads.state_dict().items():
        if "frozen" in key:
            assert torch.equal(value, before[key])
        else:
            close(before[key].double() - value.double(), expected[2][key], 1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_of_the_features_passes_gradcheck(name, kind):
    z_BD, target_BK, mask_BK = batch()
    step = HeadStep(make_heads(kind).double(), LOSSES[name]().double(), partial(torch.optim.SGD, lr=0.0), chunk_heads=4)
    targets = SparseTargets.from_dense(target_BK, mask_BK)

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z_BD):
            result = step(z_BD, targets, num_rows=B)
            ctx.save_for_backward(result.grad_z_BD)
            return result.loss

        @staticmethod
        def backward(ctx, grad):
            return ctx.saved_tensors[0] * grad

    assert torch.autograd.gradcheck(Loss.apply, z_BD.double().requires_grad_())


@pytest.mark.parametrize("scale", [1e2, 1e4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_give_the_loss_and_gradients_of_float64(name, kind, scale):
    # q less the margin loses digits where q is near the margin: 1.5e-6 was the most of any seed.
    tolerance = 2e-6 if name == "asymmetric" else 1e-6
    z_BD, target_BK, mask_BK = batch()
    z_BD = z_BD * scale
    expected = dense(make_heads(kind).double(), LOSSES[name]().double(), z_BD.double(), target_BK.double(), mask_BK)
    heads = make_heads(kind)
    before = {key: value.clone() for key, value in heads.state_dict().items()}
    result = HeadStep(heads, LOSSES[name](), partial(torch.optim.SGD, lr=1.0))(
        z_BD, SparseTargets.from_dense(target_BK, mask_BK), num_rows=B
    )
    close(result.loss, expected[0], 1e-6)
    close(result.grad_z_BD, expected[1], tolerance)
    for key, value in heads.state_dict().items():
        close(before[key].double() - value.double(), expected[2][key], tolerance)


def optimizers():
    settings = {
        "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        "Adagrad": {"initial_accumulator_value": 0.1},
    }
    return {name: partial(getattr(torch.optim, name), **settings.get(name, {})) for name in OPTIMIZERS}


@pytest.mark.parametrize("plan", ["plain", "bank"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_moves_the_heads_as_it_does_at_once(name, plan):
    chunked, at_once = make_heads("mlp", plan), make_heads("mlp", plan)
    make = optimizers()[name]
    step = HeadStep(chunked, LOSSES["bce"](), make, chunk_heads=3)
    optimizer = make([p for p in at_once.parameters() if p.requires_grad])
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 2, gamma=0.5) for o in (step.optimizer, optimizer)]
    for i in range(5):
        z_BD, target_BK, mask_BK = batch(seed=i)
        step(z_BD, SparseTargets.from_dense(target_BK, mask_BK), num_rows=B)
        *_, grads = dense(at_once, LOSSES["bce"](), z_BD, target_BK, mask_BK)
        for key, grad in grads.items():
            at_once.get_parameter(key).grad = grad
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    for key, value in at_once.state_dict().items():
        torch.testing.assert_close(chunked.state_dict()[key], value, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adagrad"])
def test_a_saved_state_goes_on_with_another_chunk_size(name):
    make = optimizers()[name]
    first, second, whole = make_heads(), make_heads(), make_heads()
    batches = [(z, SparseTargets.from_dense(*rest)) for z, *rest in (batch(seed=i) for i in range(6))]
    step = HeadStep(first, LOSSES["bce"](), make, chunk_heads=3)
    uninterrupted = HeadStep(whole, LOSSES["bce"](), make, chunk_heads=3)
    for z_BD, targets in batches:
        uninterrupted(z_BD, targets, num_rows=B)
    for z_BD, targets in batches[:3]:
        step(z_BD, targets, num_rows=B)
    second.load_state_dict(first.state_dict())
    resumed = HeadStep(second, LOSSES["bce"](), make, chunk_heads=5)
    resumed.load_state_dict(step.state_dict())
    for z_BD, targets in batches[3:]:
        resumed(z_BD, targets, num_rows=B)
    torch.testing.assert_close(second.state_dict(), whole.state_dict())
    torch.testing.assert_close(first.weight_KD, first.weight_KD)
    assert not torch.equal(first.weight_KD, whole.weight_KD)


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (partial(torch.optim.AdamW, lr=0.1), "meta"),  # fused, as `make_optimizer` has it: its kernel reads the number of steps
        (partial(torch.optim.AdamW, lr=0.1, foreach=True), "cpu"),
        (partial(torch.optim.AdamW, lr=0.1, foreach=True, capturable=True), "meta"),
        (partial(torch.optim.NAdam, lr=0.1), "cpu"),
    ],
)
def test_a_loaded_state_lies_where_the_optimizer_wants_it(make, place):
    """`meta` stands for a GPU, where torch refuses a step whose number lies in the wrong place."""
    z_BD, target_BK, mask_BK = batch()
    step = HeadStep(make_heads(), LOSSES["bce"](), partial(make, capturable=False) if place == "meta" else make)
    step(z_BD, SparseTargets.from_dense(target_BK, mask_BK), num_rows=B)
    state, meta = step.state_dict()["states"]["weight_KD"], torch.device("meta")
    table, group = StateTable(K, {}), {**step.optimizer.param_groups[0], **make.keywords}
    table.load_state_dict(state, meta, scalar_device=scalar_device(group, meta))
    assert {value.device.type for value in table.tensors.values()} == {"meta"}
    assert {value.device.type for value in table.scalars.values()} == {place}
    assert table.scalars["step"] is not state["scalars"]["step"]


def test_a_state_of_another_kind_of_device_is_gone_on_from():
    """The generators of a CPU and of a GPU have states of different sizes."""
    z_BD, target_BK, mask_BK = batch()
    heads = make_heads()
    heads.weight_KD.data = heads.weight_KD.data.bfloat16()
    step, targets = HeadStep(heads, LOSSES["bce"](), optimizers()["AdamW"], seed=1), SparseTargets.from_dense(target_BK, mask_BK)
    step(z_BD, targets, num_rows=B)
    other = HeadStep(heads, LOSSES["bce"](), optimizers()["AdamW"], seed=2)
    own = other.generator.get_state()
    other.load_state_dict({**step.state_dict(), "generator": torch.zeros(16, dtype=torch.uint8), "generator_device": "cuda"})
    assert torch.equal(other.generator.get_state(), own)
    other(z_BD, targets, num_rows=B)
    assert float(other.state_dict()["states"]["weight_KD"]["scalars"]["step"]) == 2
    assert heads.weight_KD.float().isfinite().all()
    other.load_state_dict(step.state_dict())
    assert torch.equal(other.generator.get_state(), step.generator.get_state())


def test_each_head_is_clipped_by_its_own_norm():
    z_BD, target_BK, mask_BK = batch()
    chunked, at_once = make_heads("mlp"), make_heads("mlp")
    HeadStep(chunked, LOSSES["bce"](), partial(torch.optim.SGD, lr=1.0), chunk_heads=4, max_norm=0.3)(
        z_BD, SparseTargets.from_dense(target_BK, mask_BK), num_rows=B
    )
    *_, grads = dense(at_once, LOSSES["bce"](), z_BD, target_BK, mask_BK)
    for key, grad in grads.items():
        at_once.get_parameter(key).grad = grad
    clip_head_gradients(at_once, num_heads=K, max_norm=0.3)
    for key, parameter in at_once.named_parameters():
        torch.testing.assert_close(chunked.state_dict()[key], parameter.detach() - parameter.grad)


def test_the_true_loss_changes_nothing_and_is_without_the_shift_and_the_sampling_of_training():
    z_BD, target_BK, mask_BK = batch()
    loss, heads = Subsampled(IDS, negatives_per_positive=1.0, counts=COUNTS), make_heads()
    step = HeadStep(heads, loss, partial(torch.optim.SGD, lr=1.0), log_odds_shift_K=SHIFT_K)
    before = heads.weight_KD.clone()
    value = step.true_loss(z_BD, SparseTargets.from_dense(target_BK, mask_BK), num_rows=B)
    expected, *_ = dense(make_heads().double(), LOSSES["bce"]().double(), z_BD.double(), target_BK.double(), mask_BK)
    close(value, expected, 1e-6)
    assert torch.equal(before, heads.weight_KD)
    assert loss.training


def test_without_the_loss_the_step_is_the_same():
    z_BD, target_BK, mask_BK = batch()
    first, second = make_heads(), make_heads()
    for heads, with_loss in ((first, True), (second, False)):
        result = HeadStep(heads, LOSSES["bce"](), partial(torch.optim.SGD, lr=1.0))(
            z_BD, SparseTargets.from_dense(target_BK, mask_BK), num_rows=B, with_loss=with_loss
        )
        assert (result.loss is not None) == with_loss
    assert torch.equal(first.weight_KD, second.weight_KD)


def test_some_columns_of_a_loss_are_trained_alone():
    z_BD, target_BK, mask_BK = batch()
    whole, part = make_heads(), Linear(D, num_heads=4)
    part.load_state_dict({key: value[5:9] for key, value in whole.state_dict().items()})
    for heads, columns in ((whole, slice(0, K)), (part, slice(5, 9))):
        step = HeadStep(
            heads, LOSSES["weighted"](), partial(torch.optim.SGD, lr=1.0), log_odds_shift_K=SHIFT_K, first_column=columns.start
        )
        step(z_BD, SparseTargets.from_dense(target_BK[:, columns], mask_BK[:, columns]), num_rows=B)
    torch.testing.assert_close(part.weight_KD, whole.weight_KD[5:9])


class Largest(TorchDispatchMode):
    """The most entries that any tensor had."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        # Views of the weights are not new.
        if isinstance(out, torch.Tensor) and not out._is_view() and func is not torch.ops.aten.detach.default:
            self.numel = max(self.numel, out.numel())
        return out


def test_no_array_of_all_heads_is_made():
    num_heads = 4000
    heads, loss = Linear(D, num_heads=num_heads), Bce([str(k) for k in range(num_heads)], pos_weight=None)
    row_P, column_P = torch.arange(B), torch.arange(B) * 400
    step = HeadStep(heads, loss, partial(torch.optim.SGD, lr=0.1), chunk_heads=64)
    with Largest() as largest:
        step(torch.randn(B, D), SparseTargets(row_P, column_P, row_P[:0], column_P[:0]), num_rows=B)
    assert 0 < largest.numel <= 64 * max(B, D)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_names_the_heads_and_leaves_them_as_they_were(bad):
    z_BD, target_BK, mask_BK = batch(masked=False)
    heads = make_heads()
    with torch.no_grad():
        heads.weight_KD[7, 2] = bad
    before = heads.bias_K.clone()
    step = HeadStep(heads, LOSSES["bce"](), partial(torch.optim.SGD, lr=1.0), chunk_heads=4)
    with pytest.raises(NonFiniteStep, match=r"heads in columns \[7\]") as caught:
        step(z_BD, SparseTargets.from_dense(target_BK, mask_BK), num_rows=B)
    assert caught.value.columns == [7]
    assert torch.equal(heads.bias_K[4:], before[4:])


@pytest.mark.parametrize("with_loss", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["weight", "bias", "products that overflow"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_logit_that_is_not_finite_is_noticed_in_its_step(kind, where, bad, with_loss):
    """Whatever its sign and the targets, and without the loss too: the probability is 0 or 1, and its gradient finite."""
    z_BD, target_BK, mask_BK = batch(masked=False)
    z_BD, heads = z_BD.abs(), make_heads(kind)
    weight = heads.weight_KD if kind == "linear" else heads.weight_KH
    with torch.no_grad():
        if kind == "mlp":  # every hidden unit has its say in every row
            heads.hidden_weight_JD.abs_()
            heads.hidden_bias_J.abs_()
        if where == "bias":
            heads.bias_K[7] = bad
        elif where == "weight":
            weight[7, 2] = bad
        else:
            weight[7], z_BD[4] = math.copysign(1e38, bad) if bad == bad else math.nan, 1e3
    before = {key: value.clone() for key, value in heads.state_dict().items()}
    step = HeadStep(heads, LOSSES["bce"](), partial(torch.optim.SGD, lr=1.0), chunk_heads=11)
    with pytest.raises(NonFiniteStep) as caught:
        step(z_BD, SparseTargets.from_dense(target_BK * 0, mask_BK), num_rows=B, with_loss=with_loss)
    assert caught.value.columns == [7]
    torch.testing.assert_close(heads.state_dict(), before, rtol=0, atol=0, equal_nan=True)


def test_nan_in_a_row_names_every_head_of_every_chunk():
    z_BD, target_BK, mask_BK = batch(masked=False)
    z_BD[2, 1] = math.nan
    heads = make_heads()
    before = heads.weight_KD.clone()
    step = HeadStep(heads, LOSSES["bce"](), partial(torch.optim.SGD, lr=1.0), chunk_heads=4)
    with pytest.raises(NonFiniteStep) as caught:
        step(z_BD, SparseTargets.from_dense(target_BK, mask_BK), num_rows=B)
    assert caught.value.columns == list(range(K))
    assert torch.equal(heads.weight_KD, before)


def test_bfloat16_weights_follow_float32_ones_as_rounding_to_nearest_does_not():
    """Steps of a hundredth of a weight's last digit: rounded to the nearest, no weight would move at all."""
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        heads = make_heads()
        with torch.no_grad():
            heads.weight_KD.fill_(1.0)
            heads.bias_K.zero_()
        heads.weight_KD.data = heads.weight_KD.data.to(dtype)
        step = HeadStep(heads, LOSSES["bce"](), partial(torch.optim.SGD, lr=1e-4), seed=3)
        z_BD, target_BK, mask_BK = batch(masked=False)
        for _ in range(400):
            step(z_BD.abs(), SparseTargets.from_dense(target_BK * 0, mask_BK), num_rows=B)
        results[dtype] = heads.weight_KD.float()
    moved = 1 - results[torch.float32].mean()
    assert moved > 0.01
    assert abs(results[torch.bfloat16].mean() - results[torch.float32].mean()) < 0.1 * moved


def test_bfloat16_products_agree_to_their_digits():
    z_BD, target_BK, mask_BK = batch()
    expected = dense(make_heads().double(), LOSSES["bce"]().double(), z_BD.double(), target_BK.double(), mask_BK)
    step = HeadStep(make_heads(), LOSSES["bce"](), partial(torch.optim.SGD, lr=1.0), compute_dtype=torch.bfloat16)
    result = step(z_BD, SparseTargets.from_dense(target_BK, mask_BK), num_rows=B)
    close(result.loss, expected[0], 1e-2)
    close(result.grad_z_BD, expected[1], 2e-2)


def test_what_cannot_be_chunked_is_named():
    class Margin(torch.nn.Module):
        pass

    sgd = partial(torch.optim.SGD, lr=0.1)
    with pytest.raises(ConfigError, match=r"the loss Margin cannot be computed in chunks.*by_head = True.*head_step=dense"):
        HeadStep(make_heads(), Margin(), sgd)
    with pytest.raises(ConfigError, match=r"the optimizer LBFGS cannot be applied in chunks.*SGD, Adam.*head_step=dense"):
        HeadStep(make_heads(), LOSSES["bce"](), torch.optim.LBFGS)
    with pytest.raises(ConfigError, match="chunk_heads must be a whole number above 0, got 0"):
        HeadStep(make_heads(), LOSSES["bce"](), sgd, chunk_heads=0)


def test_frozen_heads_alone_pass_their_gradient_on():
    z_BD, target_BK, mask_BK = batch()
    heads = HeadBank(Linear, D, num_heads=K, frozen=range(K), to_backbone=[0, 4])
    before = {key: value.clone() for key, value in heads.state_dict().items()}
    result = HeadStep(heads, LOSSES["bce"](), partial(torch.optim.Adagrad, lr=0.1))(
        z_BD, SparseTargets.from_dense(target_BK, mask_BK), num_rows=B
    )
    torch.testing.assert_close(result.grad_z_BD, dense(heads, LOSSES["bce"](), z_BD, target_BK, mask_BK)[1])
    assert all(torch.equal(before[key], value) for key, value in heads.state_dict().items())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("num_rows", [1, 64, 256, 1024])
@pytest.mark.parametrize("num_weights", [2, 65, 769, 12_305])
def test_chunks_fill_the_cache_and_rows_of_logits_are_no_power_of_two_apart(num_weights, num_rows, device):
    heads = fitting_heads(num_weights, num_rows, device)
    filled = heads * 8 * (num_rows + num_weights) / CHUNK_BYTES[device]
    assert heads % (2 * CHUNK_MULTIPLE) == CHUNK_MULTIPLE
    assert filled <= 1 if heads > FEW_HEADS else filled <= WIDER or heads == CHUNK_MULTIPLE
    assert fitting_heads(num_weights, num_rows + 1, device) <= heads
