"""The head step on a CUDA device: exact, in bounded memory, and the same as a captured graph. Skipped where there is none."""

import gc
import io
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks.gpu_report import batch, make_heads, peak_bytes
from ovr.errors import ConfigError
from ovr.head.bank import HeadBank, some_heads
from ovr.head.linear import Linear
from ovr.head_step.step import HeadStep, NonFiniteStep
from ovr.head_step.targets import SparseTargets
from ovr.loss.bce import Bce

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
]
B, D, K = 200, 72, 3000
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=1.0),
    "momentum": partial(torch.optim.SGD, lr=1.0, momentum=0.9, weight_decay=1e-4),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, eps=1e-4),
}
OTHERS = {"nadam": partial(torch.optim.NAdam, lr=0.01, eps=1e-4)}  # which the kernels do not know


def make_step(optimizer="sgd", *, dtype=torch.float32, compute_dtype=torch.bfloat16, device="cuda", **settings):
    torch.manual_seed(0)
    heads = Linear(D, num_heads=K).to(device, dtype)
    loss = Bce([f"c{k}" for k in range(K)], pos_weight={"c7": 3.0}).to(device)
    settings.setdefault("triton_kernels", compute_dtype == torch.bfloat16)
    return heads, HeadStep(heads, loss, (OPTIMIZERS | OTHERS)[optimizer], compute_dtype=compute_dtype, seed=0, **settings)


def batches(count=3, num_rows=(B, 77, 130), num_heads=K):
    generator = torch.Generator().manual_seed(1)
    for i in range(count):
        rows = num_rows[i % len(num_rows)]
        target_BK = (torch.rand(rows, num_heads, generator=generator) < 0.01).float().cuda()
        mask_BK = (torch.rand(rows, num_heads, generator=generator) < (0.99 if i % len(num_rows) else 2)).cuda()
        z_BD = torch.randn(rows, D, generator=generator).bfloat16().float().cuda()
        yield z_BD, SparseTargets.from_dense(target_BK, mask_BK)


def close(actual, expected, tolerance):
    assert (actual.double() - expected.double()).norm() <= tolerance * expected.double().norm()


@pytest.mark.parametrize("chunk_heads", [None, 1024])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fused_steps_are_those_of_float64(optimizer, chunk_heads):
    heads, fused = make_step(optimizer, chunk_heads=chunk_heads)
    exact_heads, exact = make_step(optimizer, dtype=torch.float64, compute_dtype=torch.float64)
    exact_heads.load_state_dict({name: value.double() for name, value in heads.state_dict().items()})
    assert fused.fused
    assert not exact.fused
    for z_BD, targets in batches():
        ours = fused(z_BD, targets, num_rows=len(z_BD))
        theirs = exact(z_BD.double(), targets, num_rows=len(z_BD))
        close(ours.loss, theirs.loss, 5e-3)
        close(ours.grad_z_BD, theirs.grad_z_BD, 2e-2)
    close(heads.weight_KD, exact_heads.weight_KD, 2e-2)
    close(heads.bias_K, exact_heads.bias_K, 2e-2)


def test_the_chunked_step_in_torch_is_exact_on_the_device_too():
    heads, step = make_step(compute_dtype=torch.float32)
    exact_heads, exact = make_step(dtype=torch.float64, compute_dtype=torch.float64)
    exact_heads.load_state_dict({name: value.double() for name, value in heads.state_dict().items()})
    assert not step.fused
    for z_BD, targets in batches():
        close(step(z_BD, targets, num_rows=B).loss, exact(z_BD.double(), targets, num_rows=B).loss, 1e-5)
    close(heads.weight_KD, exact_heads.weight_KD, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_replayed_graph_makes_the_steps_that_are_launched_one_by_one(optimizer, dtype):
    results = []
    for graphs in (True, False):
        heads, step = make_step(optimizer, dtype=dtype, chunk_heads=1024)
        step.fused[""].graphs = graphs
        losses = []
        for i, (z_BD, targets) in enumerate(batches(9)):  # three sizes, each seen three times: by itself, captured, replayed
            step.optimizer.param_groups[0]["lr"] *= 0.9 if i == 4 else 1.0  # a scheduler is heard by graphs that are captured
            losses.append(step(z_BD, targets, num_rows=len(z_BD)).loss)
        captured = [graph for graph in step.fused[""]._captured.values() if graph is not None]
        assert len(captured) == (3 if graphs else 0)
        results.append((torch.stack(losses), heads.weight_KD.clone(), heads.bias_K.clone()))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def stored(state):
    """The state as a checkpoint gives it back: on the CPU."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


@pytest.mark.parametrize(
    ("optimizer", "kernels"), [*((name, kernels) for name in OPTIMIZERS for kernels in (False, True)), ("nadam", False)]
)
def test_a_state_goes_on_on_the_cpu_and_comes_back(optimizer, kernels):
    on_gpu, (first, second, third) = make_step(optimizer, triton_kernels=kernels), batches()
    on_cpu, back = make_step(optimizer, device="cpu", triton_kernels=False), make_step(optimizer, triton_kernels=kernels)
    exact = make_step(optimizer, dtype=torch.float64, compute_dtype=torch.float64)
    exact[0].load_state_dict({name: value.double() for name, value in on_gpu[0].state_dict().items()})
    before = None
    for (heads, step), (z_BD, targets) in zip((on_gpu, on_cpu, back), (first, second, third), strict=True):
        if before is not None:
            heads.load_state_dict(before[0].state_dict())
            step.load_state_dict(stored(before[1].state_dict()))
        device = heads.weight_KD.device
        step(z_BD.to(device), SparseTargets(*(value.to(device) for value in targets)), num_rows=len(z_BD))
        exact[1](z_BD.double(), targets, num_rows=len(z_BD))
        before = heads, step
    close(back[0].weight_KD, exact[0].weight_KD, 2e-2)


def test_some_heads_of_a_bank_are_computed_where_the_bank_is():
    bank = HeadBank(Linear, D, num_heads=10, frozen=[1, 2], to_backbone=[0, 5]).cuda()
    z_BD, column_C = torch.randn(4, D, device="cuda"), np.array([0, 1, 5, 9])
    close(some_heads(bank, column_C)(z_BD), bank(z_BD)[:, column_C], 1e-5)


def test_a_replayed_step_names_the_head_that_is_not_finite_and_goes_on_after_it_is_mended():
    heads, step = make_step()
    (first,) = batches(1)
    for _ in range(3):
        step(*first, num_rows=B)
    heads.bias_K.data[5] = float("nan")
    with pytest.raises(NonFiniteStep) as error:
        step(*first, num_rows=B)
    assert error.value.columns == [5]
    heads.bias_K.data[5] = 0.0
    step(*first, num_rows=B)


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16], ids=["torch", "kernels"])
def test_an_infinite_weight_is_named_in_its_step_without_the_loss_too(compute_dtype):
    heads, step = make_step(compute_dtype=compute_dtype)
    (first,) = batches(1)
    heads.weight_KD.data[5, 3] = -float("inf")
    with pytest.raises(NonFiniteStep) as error:
        step(*first, num_rows=B, with_loss=False)
    assert error.value.columns == [5]


def test_bfloat16_weights_move_by_the_gradient_in_the_mean():
    num_heads = 1 << 16
    heads = make_heads(8, num_heads, dtype=torch.bfloat16, device="cuda")
    heads.weight_KD.data.fill_(1.0)
    loss = Bce(["c"] * num_heads, pos_weight=None).cuda()
    sgd = partial(torch.optim.SGD, lr=0.002)
    step = HeadStep(heads, loss, sgd, compute_dtype=torch.bfloat16, seed=0, triton_kernels=True)
    none = torch.zeros(0, dtype=torch.int64, device="cuda")
    for _ in range(20):  # at the logit 0 each step is 0.001, an eighth of the last digit below 1
        heads.weight_KD.data[:, 1:] = 1.0
        heads.bias_K.data.fill_(-8.0)
        step(torch.ones(16, 8, device="cuda"), SparseTargets(none, none, none, none), num_rows=16, with_loss=False)
    moved_K = 1.0 - heads.weight_KD[:, 0].double()
    assert abs(float(moved_K.mean()) - 0.02) <= 5 * float(moved_K.std()) / num_heads**0.5


@pytest.mark.parametrize("num_rows", [1024, 4096])
def test_memory_is_that_of_the_weights_and_half_a_gigabyte(num_rows):
    num_heads, num_features = 500_000, 768
    gc.collect()
    before = torch.cuda.memory_allocated()
    heads = make_heads(num_features, num_heads, dtype=torch.bfloat16, device="cuda")
    loss = Bce(["c"] * num_heads, pos_weight=None).cuda()
    step = HeadStep(heads, loss, OPTIMIZERS["sgd"], compute_dtype=torch.bfloat16, seed=0, triton_kernels=True)
    z_BD, targets = batch(num_rows, num_features, num_heads, seed=0, device="cuda")
    given = before + z_BD.nbytes + targets.row_P.nbytes + targets.column_P.nbytes
    peak = peak_bytes(lambda: [step(z_BD, targets, num_rows=num_rows) for _ in range(3)]) - given
    assert peak <= 1.05 * (heads.weight_KD.nbytes + heads.bias_K.nbytes) + 512e6


def test_without_kernels_heads_are_stepped_in_torch():
    _, step = make_step(max_norm=1.0, triton_kernels=False)
    assert not step.fused
    step(*next(batches(1)), num_rows=B)


def test_features_that_the_copy_engine_cannot_take_are_refused():
    odd, loss = Linear(9, num_heads=10).cuda(), Bce(["c"] * 10, pos_weight=None).cuda()
    with pytest.raises(ConfigError, match="features in a multiple of 8"):
        HeadStep(odd, loss, OPTIMIZERS["sgd"], compute_dtype=torch.bfloat16, triton_kernels=True)
