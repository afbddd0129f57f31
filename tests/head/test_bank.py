"""Frozen heads never move, stopped heads never reach the features, and no head feels another, whatever the groups."""

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits

from ovr.errors import ConfigError
from ovr.head.bank import HeadBank, check_heads_first, clip_head_gradients, some_heads
from ovr.head.linear import Linear
from ovr.head.mlp import Mlp

D, K, B = 6, 5, 11
KINDS = {"linear": Linear, "mlp": partial(Mlp, hidden=3)}
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "dampened": partial(torch.optim.SGD, lr=0.1, momentum=0.9, dampening=0.5, maximize=True),
    "adam": partial(torch.optim.Adam, lr=0.1, weight_decay=0.1, amsgrad=True),
    "adamw": partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5),
    "nadam": partial(torch.optim.NAdam, lr=0.1, weight_decay=0.1, decoupled_weight_decay=True),
    "adagrad": partial(torch.optim.Adagrad, lr=0.1, weight_decay=0.1),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adafactor": partial(torch.optim.Adafactor, lr=0.1, weight_decay=0.1),
    "rprop": torch.optim.Rprop,
}
ALL = range(K)
columns = st.sets(st.integers(0, K - 1)).map(sorted)


def bank(kind, frozen=(), to_backbone=ALL, seed=0):
    torch.manual_seed(seed)
    return HeadBank(KINDS[kind], D, num_heads=K, frozen=frozen, to_backbone=to_backbone)


def plain(kind, seed=0):
    torch.manual_seed(seed)
    return KINDS[kind](D, num_heads=K)


def batch(seed=1):
    generator = torch.Generator().manual_seed(seed)
    z_BD = torch.randn(B, D, generator=generator, requires_grad=True)
    target_BK, mask_BK = (torch.rand(B, K, generator=generator) < share for share in (0.4, 0.7))
    return z_BD, target_BK.float(), mask_BK


def loss_of(head, z_BD, target_BK, mask_BK):
    loss_BK = binary_cross_entropy_with_logits(head(z_BD), target_BK, reduction="none")
    return torch.where(mask_BK, loss_BK, 0.0).sum() / len(z_BD)


def weights_of(head):
    return [head.head_weights(k) for k in range(K)]


def same(a, b):
    return all(np.array_equal(a[name], b[name], equal_nan=True) for name in a)


def grads_of(head, column):
    """The gradient in one head's weights, found through a module whose weights are the gradients."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(parameter.grad)
    return head.head_weights(column)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@settings(max_examples=8, deadline=None)
@given(frozen=columns, to_backbone=columns, seed=st.integers(0, 99))
def test_frozen_heads_keep_every_bit_and_all_others_move(kind, optimizer, frozen, to_backbone, seed):
    head = bank(kind, frozen, to_backbone, seed)
    before = weights_of(head)
    parameters = list(head.parameters())
    assert bool(parameters) == (len(frozen) < K)
    z_BD = torch.nn.Parameter(torch.randn(B, D))
    made = OPTIMIZERS[optimizer]([*parameters, z_BD])  # the backbone's place is taken by the features themselves
    for step in range(4):
        _, target_BK, mask_BK = batch(seed + step)
        made.zero_grad()
        loss = loss_of(head, z_BD, target_BK, mask_BK)
        if loss.requires_grad:
            loss.backward()
        clip_head_gradients(head, num_heads=K, max_norm=1.0)
        made.step()
    for k, (old, new) in enumerate(zip(before, weights_of(head), strict=True)):
        assert same(old, new) == (k in frozen), k


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(frozen=columns, to_backbone=columns)
def test_groups_change_neither_the_starting_weights_nor_the_logits(kind, frozen, to_backbone):
    head, alone, (z_BD, _, _) = bank(kind, frozen, to_backbone), plain(kind), batch()
    assert head.kind == alone.kind
    assert all(same(a, b) for a, b in zip(weights_of(head), weights_of(alone), strict=True))
    torch.testing.assert_close(head(z_BD), alone(z_BD), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_some_heads_of_a_bank_lie_where_the_bank_does(kind):
    part = some_heads(bank(kind, frozen=[0, 2], to_backbone=[1]).to("meta"), np.array([0, 1, 4]))
    places = dict([*part.named_parameters(), *part.named_buffers()])
    assert "position_K" in places
    assert {value.device.type for value in places.values()} == {"meta"}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(frozen=columns, to_backbone=columns)
def test_gradients_are_those_of_heads_alone(kind, frozen, to_backbone):
    """Against float64 autograd through each head by itself: in its weights, and in the features."""
    head, (z_BD, target_BK, mask_BK) = bank(kind, frozen, to_backbone).double(), batch()
    z_BD = z_BD.detach().double().requires_grad_()
    expected_z_BD = torch.zeros_like(z_BD)
    expected = {}
    for k in range(K):
        weights = {n: torch.from_numpy(w).double().requires_grad_() for n, w in head.head_weights(k).items()}
        own_BD = z_BD.detach().clone().requires_grad_()
        units = own_BD if kind == "linear" else (own_BD @ weights["hidden_weight"].T + weights["hidden_bias"]).relu()
        logit_B = (units @ weights["weight"].T + weights["bias"])[:, 0]
        loss_B = binary_cross_entropy_with_logits(logit_B, target_BK[:, k].double(), reduction="none")
        (loss_B * mask_BK[:, k]).sum().div(B).backward()
        expected[k] = {n: w.grad for n, w in weights.items()}
        expected_z_BD += own_BD.grad * (k in to_backbone)
    loss = loss_of(head, z_BD, target_BK.double(), mask_BK)
    if loss.requires_grad:
        loss.backward()
    torch.testing.assert_close(torch.zeros_like(z_BD) if z_BD.grad is None else z_BD.grad, expected_z_BD)
    for k in set(range(K)) - set(frozen):
        for name, value in grads_of(head, k).items():
            np.testing.assert_allclose(value, expected[k][name].numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("frozen", "to_backbone"), [((), ALL), ((), (0, 3)), ((1, 4), (0, 1, 3)), ((4,), ())])
def test_a_logit_depends_on_no_other_heads_weights(kind, frozen, to_backbone):
    head, (z_BD, _, _) = bank(kind, frozen, to_backbone), batch()
    for k in set(range(K)) - set(frozen):
        head.zero_grad()
        head(z_BD)[:, k].square().sum().backward()
        for parameter in head.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        moved = [any(value.any() for value in grads_of_copy(head, other).values()) for other in range(K) if other not in frozen]
        assert moved == [other == k for other in range(K) if other not in frozen]


def grads_of_copy(head, column):
    kept = {name: value.detach().clone() for name, value in head.named_parameters()}
    grads = grads_of(head, column)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            parameter.copy_(kept[name])
    return grads


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("frozen", "to_backbone"), [((), ALL), ((), (0, 3)), ((1, 4), (0, 1, 3))])
@pytest.mark.parametrize("value", [1e30, float("inf"), float("nan")])
def test_a_gradient_keeps_every_bit_when_other_heads_are_broken(kind, frozen, to_backbone, value):
    results = []
    for broken in (False, True):
        head = bank(kind, frozen, to_backbone)
        if broken:
            for k in (1, 2, 3, 4):
                head.set_head_weights(k, {name: np.full_like(w, value) for name, w in head.head_weights(k).items()})
        loss_of(head, *batch()).backward()
        clip_head_gradients(head, num_heads=K, max_norm=0.01)
        results.append(grads_of(head, 0))
    assert same(*results)
    assert all(np.isfinite(w).all() for w in results[0].values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frozen", [(), (1,), (0, 1)])
def test_a_stopped_head_adds_not_a_bit_to_the_features_gradient(kind, frozen):
    results = []
    for value in (0.0, 1e30, float("nan")):
        head, (z_BD, target_BK, mask_BK) = bank(kind, frozen, to_backbone=(0, 3)), batch()
        for k in (1, 2, 4):
            head.set_head_weights(k, {name: np.full_like(w, value) for name, w in head.head_weights(k).items()})
        loss_of(head, z_BD, target_BK, mask_BK).backward()
        results.append(z_BD.grad)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert results[0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_head_may_still_train_the_features(kind):
    z_BD, target_BK, mask_BK = batch()
    head = bank(kind, frozen=ALL)
    loss_of(head, z_BD, target_BK, mask_BK).backward()
    found = z_BD.grad.clone()
    z_BD.grad = None
    loss_of(plain(kind), z_BD, target_BK, mask_BK).backward()
    torch.testing.assert_close(found, z_BD.grad)
    assert not list(head.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_restores_every_group(kind):
    frozen, to_backbone = (1, 4), (0, 1)
    first, second = bank(kind, frozen, to_backbone, seed=0), bank(kind, frozen, to_backbone, seed=1)
    assert set(first.groups) == {"trained", "trained_stopped", "frozen", "frozen_stopped"}
    second.load_state_dict(first.state_dict())
    assert all(same(a, b) for a, b in zip(weights_of(first), weights_of(second), strict=True))
    z_BD, _, _ = batch()
    assert torch.equal(first(z_BD), second(z_BD))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frozen", [(), (1, 4)])
def test_weights_given_to_one_head_are_its_own_alone(kind, frozen):
    head, other = bank(kind, frozen), bank(kind, frozen, seed=1)
    before = weights_of(head)
    head.set_head_weights(4, other.head_weights(2))
    assert same(head.head_weights(4), other.head_weights(2))
    assert all(same(head.head_weights(k), before[k]) for k in range(4))


def test_a_column_that_is_not_there_is_refused():
    with pytest.raises(IndexError, match="there is no head in column 5"):
        bank("linear", (1,)).head_weights(K)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frozen", [(), (1, 4)])
def test_each_head_is_clipped_as_torch_clips_it_alone(kind, frozen):
    head, reference, (z_BD, target_BK, mask_BK) = bank(kind, frozen), bank(kind, frozen), batch()
    for each in (head, reference):
        loss_of(each, z_BD, target_BK * 30, mask_BK).backward()
    clip_head_gradients(head, num_heads=K, max_norm=0.5)
    norms = []
    for k in set(range(K)) - set(frozen):
        weights = {n: torch.nn.Parameter(torch.zeros(w.shape)) for n, w in head.head_weights(k).items()}
        for name, grad in grads_of_copy(reference, k).items():
            weights[name].grad = torch.from_numpy(grad)
        norms.append(float(torch.nn.utils.clip_grad_norm_(weights.values(), 0.5)))
        for name, grad in grads_of_copy(head, k).items():
            torch.testing.assert_close(torch.from_numpy(grad), weights[name].grad)
    assert max(norms) > 0.5, "something was clipped"


def test_a_plain_head_is_clipped_like_a_bank():
    head, other, (z_BD, target_BK, mask_BK) = bank("mlp"), plain("mlp"), batch()
    for each in (head, other):
        loss_of(each, z_BD, target_BK * 30, mask_BK).backward()
        clip_head_gradients(each, num_heads=K, max_norm=0.5)
    for k in range(K):
        assert same(grads_of_copy(head, k), grads_of_copy(other, k))


@pytest.mark.parametrize("shape", [(), (K + 1,), (D, K)])
def test_heads_whose_weights_do_not_lie_one_after_the_other_are_refused(shape):
    head = torch.nn.ParameterDict({"weight": torch.nn.Parameter(torch.zeros(shape))})
    with pytest.raises(ConfigError, match=r"head ParameterDict has weight of shape .* for 5 heads; expected a multiple of 5 rows"):
        check_heads_first(head, num_heads=K)


def test_every_combination_of_groups_keeps_the_order_of_columns():
    """Exhaustive over the four ways to treat each of three heads."""
    torch.manual_seed(0)
    z_BD = torch.randn(4, D)
    for treated in product(range(4), repeat=3):
        frozen = [k for k in range(3) if treated[k] & 1]
        to_backbone = [k for k in range(3) if treated[k] & 2]
        head = HeadBank(Linear, D, num_heads=3, frozen=frozen, to_backbone=to_backbone)
        for k in range(3):
            own = head.head_weights(k)
            expected_B = z_BD.numpy() @ own["weight"][0] + own["bias"]
            np.testing.assert_allclose(head(z_BD)[:, k].detach().numpy(), expected_B, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@given(frozen=columns, to_backbone=columns, taken=st.sets(st.integers(0, K - 1), min_size=1).map(sorted), plain_heads=st.booleans())
@settings(max_examples=25, deadline=None)
def test_some_heads_are_a_copy_of_those_heads(kind, frozen, to_backbone, taken, plain_heads):
    heads = plain(kind) if plain_heads else bank(kind, frozen, to_backbone)
    part = some_heads(heads, np.array(taken))
    z_BD, *_ = batch()
    torch.testing.assert_close(part(z_BD), heads(z_BD)[:, taken])
    torch.testing.assert_close(part(z_BD, slice(1, None)), heads(z_BD)[:, taken[1:]])
    before = weights_of(heads)
    for value in part.state_dict().values():
        value.zero_()
    assert all(map(same, before, weights_of(heads)))
    trained = {name for name, _ in part.named_parameters()}
    assert all(("frozen" in name) == (name not in trained) for name in part.state_dict())
