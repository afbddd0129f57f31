"""The fused step, with the plain twins of its kernels, is the chunked step."""

from contextlib import contextmanager
from functools import partial
from itertools import product

import pytest
import torch

from ovr.errors import ConfigError
from ovr.head.bank import HeadBank
from ovr.head.linear import Linear
from ovr.head.mlp import Mlp
from ovr.head_step import twins
from ovr.head_step.fused import NUM_GRAPHS, FusedStep, check_kernels, settings_of
from ovr.head_step.step import HeadStep, NonFiniteStep
from ovr.head_step.targets import SparseTargets
from ovr.head_step.tiles import Optimizer, Settings, Tiles, scalars
from ovr.loss.bce import Bce
from ovr.loss.focal import Focal
from ovr.optimizer.rowwise_adagrad import RowwiseAdagrad

B, D, K = 33, 24, 70
TILES = {"chunk_heads": 32, "tiles": Tiles(32, 32, 32), "update_tiles": Tiles(32, 32, 32)}
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, eps=1e-3),
}


def make_step(optimizer="sgd", *, bank=False, dtype=torch.float32, kernels=None, pos_weight=None, **settings):
    torch.manual_seed(0)
    heads = Linear(D, num_heads=K)
    if bank:
        heads = HeadBank(Linear, D, num_heads=K, frozen=[1, 2, 60], to_backbone=[0, 1, 2, *range(30, 60)])
    heads = heads.to(dtype)
    loss = Bce([f"c{k}" for k in range(K + 5)], pos_weight=pos_weight or {"c7": 3.0, "c9": 0.5})
    step = HeadStep(
        heads, loss, OPTIMIZERS[optimizer], compute_dtype=torch.bfloat16, log_odds_shift_K=torch.linspace(-1, 1, K + 5),
        first_column=5, seed=3,
    )  # fmt: skip
    if kernels is not None:
        step.fuse(kernels, **TILES, **settings)
    return heads, step


def batches(num_rows=(B, 17, 40), density=0.1, known=0.9):
    generator = torch.Generator().manual_seed(1)
    for i, rows in enumerate(num_rows):
        target_BK = (torch.rand(rows, K, generator=generator) < density).float()
        mask_BK = torch.rand(rows, K, generator=generator) < (known if i else 2)
        # Features that bfloat16 holds, so that only the gradient of the logits is rounded.
        z_BD = torch.randn(rows, D, generator=generator).bfloat16().float()
        yield z_BD, SparseTargets.from_dense(target_BK, mask_BK)


def close(actual, expected, tolerance):
    assert (actual.double() - expected.double()).norm() <= tolerance * expected.double().norm() + 1e-12


@pytest.mark.parametrize("bank", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fused_steps_are_those_of_float64_to_the_rounding_of_bfloat16(optimizer, bank):
    heads, fused = make_step(optimizer, bank=bank, kernels=twins)
    exact_heads, exact = make_step(optimizer, bank=bank, dtype=torch.float64)
    exact.compute_dtype = torch.float64
    for z_BD, targets in batches():
        ours = fused(z_BD, targets, num_rows=len(z_BD))
        theirs = exact(z_BD.double(), targets, num_rows=len(z_BD))
        close(ours.loss, theirs.loss, 2e-3)  # of the weights, which are rounded for the product
        close(ours.grad_z_BD, theirs.grad_z_BD, 1e-2)
    for name, value in exact_heads.state_dict().items():
        close(heads.state_dict()[name], value, 5e-3)


def test_the_state_goes_over_to_the_chunked_step_and_back():
    for optimizer in OPTIMIZERS:
        heads, fused = make_step(optimizer, kernels=twins)
        plain_heads, plain = make_step(optimizer)
        first, second, third = batches()
        fused(*first, num_rows=B)
        plain_heads.load_state_dict(heads.state_dict())
        plain.load_state_dict(fused.state_dict())
        plain(*second, num_rows=B)
        again_heads, again = make_step(optimizer, kernels=twins)
        again_heads.load_state_dict(plain_heads.state_dict())
        again.load_state_dict(plain.state_dict())
        again(*third, num_rows=B)
        plain(*third, num_rows=B)
        close(again_heads.weight_KD, plain_heads.weight_KD, 5e-3)
        for name, state in plain.state_dict()["states"].items():
            mine = again.state_dict()["states"][name]
            assert mine["tensors"].keys() == state["tensors"].keys()
            assert {key: float(value) for key, value in mine["scalars"].items()} == {
                key: float(value) for key, value in state["scalars"].items()
            }


def test_resumed_steps_round_as_those_that_went_on():
    heads, step = make_step("momentum", dtype=torch.bfloat16, kernels=twins)
    first, second, _ = batches()
    step(*first, num_rows=B)
    other_heads, other = make_step("momentum", dtype=torch.bfloat16, kernels=twins)
    other_heads.load_state_dict(heads.state_dict())
    other.load_state_dict({**step.state_dict(), "generator": step.state_dict()["generator"].clone()})
    step(*second, num_rows=B)
    other(*second, num_rows=B)
    assert torch.equal(heads.weight_KD, other_heads.weight_KD)


def test_the_chunks_do_not_matter_to_the_rounding():
    weights = []
    for chunk_heads in (32, 64, K):
        heads, step = make_step(dtype=torch.bfloat16)
        step.fuse(twins, **{**TILES, "chunk_heads": chunk_heads})
        for z_BD, targets in batches():
            step(z_BD, targets, num_rows=len(z_BD), with_loss=False)
        weights.append(heads.weight_KD.clone())
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_steps_below_the_last_digit_of_bfloat16_arrive_in_the_mean():
    torch.manual_seed(0)
    heads = Linear(8, num_heads=4096).to(torch.bfloat16)
    heads.weight_KD.data.fill_(1.0)
    heads.bias_K.data.fill_(-8.0)
    step = HeadStep(
        heads, Bce(["c"] * 4096, pos_weight=None), partial(torch.optim.SGD, lr=0.002), compute_dtype=torch.bfloat16, seed=0
    )
    step.fuse(twins)
    nothing = SparseTargets.from_dense(torch.zeros(4, 4096))
    for _ in range(20):  # at the logit 0 the gradient is 1/2: each step is 0.001, an eighth of the last digit below 1
        heads.bias_K.data.fill_(-8.0)
        heads.weight_KD.data[:, 1:] = 1.0
        step(torch.ones(4, 8), nothing, num_rows=4, with_loss=False)
    moved = 1.0 - heads.weight_KD[:, 0].double()
    assert abs(float(moved.mean()) - 0.02) <= 5 * float(moved.std()) / 64


def test_the_noise_is_uniform_and_apart_for_step_head_column_and_weight():
    counter = torch.tensor([1 << 40, 7])
    noise = twins.noise(counter, 0, 500, 300, 0)
    assert int(noise.min()) >= 0
    assert int(noise.max()) < 1 << 16
    for bit in range(16):
        assert abs(float((noise >> bit & 1).double().mean()) - 0.5) <= 5 * 0.5 / 150_000**0.5
    centred = noise.double() - noise.double().mean()
    for other in (
        twins.noise(torch.tensor([1 << 40, 8]), 0, 500, 300, 0),
        twins.noise(torch.tensor([(1 << 40) + 1, 7]), 0, 500, 300, 0),
        twins.noise(counter, 0, 500, 300, 1),
        noise.roll(1, 0),
        noise.roll(1, 1),
    ):
        correlation = (centred * (other.double() - other.double().mean())).mean() / centred.square().mean()
        assert abs(float(correlation)) <= 5 / 150_000**0.5
    assert torch.equal(twins.noise(counter, 123, 10, 300, 0), noise[123:133])


def test_heads_with_a_logit_that_is_not_finite_are_named_and_left_alone():
    heads, step = make_step("momentum", kernels=twins, bank=True)
    with torch.no_grad():
        heads.groups["trained"].weight_KD[3, 0] = float("inf")
        heads.groups["trained_stopped"].bias_K[2] = float("nan")
    columns = sorted([int(heads.columns["trained"][3]), int(heads.columns["trained_stopped"][2])])
    before = {name: value.clone() for name, value in heads.state_dict().items()}
    z_BD, targets = next(batches())
    with pytest.raises(NonFiniteStep, match="expected finite logits") as error:
        step(z_BD, targets, num_rows=B)
    assert error.value.columns == columns
    after = heads.groups["trained"].weight_KD
    assert torch.equal(after[3], before["groups.trained.weight_KD"][3])
    assert not torch.equal(after[4], before["groups.trained.weight_KD"][4])


def test_nothing_is_listed_and_everything_is_positive():
    for density in (0.0, 1.0):
        heads, fused = make_step(kernels=twins)
        plain_heads, plain = make_step()
        for z_BD, targets in batches(density=density, known=2):
            ours, theirs = (step(z_BD, targets, num_rows=B) for step in (fused, plain))
            close(ours.loss, theirs.loss, 5e-3)
        close(heads.weight_KD, plain_heads.weight_KD, 5e-3)


def test_what_the_kernels_lack_is_refused_by_name():
    heads = Linear(D, num_heads=K)
    bce, focal = Bce(["c"] * K, pos_weight=None), Focal(["c"] * K, gamma=2.0, pos_weight=None)
    sgd = torch.optim.SGD(heads.parameters(), lr=0.1)
    for given, message in (
        ((heads, bce, sgd, None), "needs linear heads on a GPU, got Linear on cpu; a GPU of compute capability 9.0"),
        ((Mlp(D, num_heads=K, hidden=3), bce, sgd, None), "needs linear heads on a GPU, got Mlp"),
        ((heads, focal, sgd, None), "loss=bce, got Focal"),
        ((heads, bce, RowwiseAdagrad(heads.parameters(), lr=0.1, eps=1e-8, weight_decay=0.0), None), "got RowwiseAdagrad"),
        ((heads, bce, sgd, 1.0), "trainer.gradient_clip_val=null"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_kernels(*given[:3], max_norm=given[3], compute_dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match=r"products in bfloat16 .trainer.precision=bf16-mixed., got torch.float32"):
        check_kernels(heads, bce, sgd, max_norm=None, compute_dtype=torch.float32)
    with pytest.raises(ConfigError, match=r"solver\.triton_kernels=true needs"):
        HeadStep(heads, bce, partial(torch.optim.SGD, lr=0.1), triton_kernels=True)
    assert settings_of(sgd) == Settings(Optimizer.SGD)
    assert settings_of(torch.optim.SGD(heads.parameters(), lr=0.1, momentum=0.9, dampening=0.1)) is None
    assert settings_of(torch.optim.SGD(heads.parameters(), lr=torch.tensor(0.1))) is None
    assert settings_of(torch.optim.SGD(heads.parameters(), lr=0.1, maximize=True)) is None
    assert settings_of(torch.optim.AdamW(heads.parameters(), amsgrad=True)) is None
    assert settings_of(RowwiseAdagrad(heads.parameters(), lr=0.1, eps=1e-8, weight_decay=0.0)) is None
    groups = [{"params": [heads.weight_KD]}, {"params": [heads.bias_K], "lr": 0.2}]
    assert settings_of(torch.optim.SGD(groups, lr=0.1)) is None


def test_the_scheduler_of_the_optimizer_is_heard():
    settings = Settings(Optimizer.ADAMW, state=("exp_avg", "exp_avg_sq"))
    group = {"lr": 0.1, "weight_decay": 0.2, "betas": (0.9, 0.99), "eps": 1e-8}
    assert scalars(settings, group, num_rows=4, step=2) == pytest.approx(
        [0.25, 0.1, 0.2, 0.9, 0.99, 1e-8, 1 - 0.9**2, (1 - 0.99**2) ** 0.5]
    )
    heads, step = make_step("sgd", kernels=twins)
    step.optimizer.param_groups[0]["lr"] = 0.0
    before = heads.weight_KD.clone()
    step(*next(batches()), num_rows=B)
    assert torch.equal(heads.weight_KD, before)


def test_buffers_are_bounded_whatever_the_number_of_heads():
    heads, step = make_step(kernels=twins)
    fused: FusedStep = step.fused[""]
    fused.chunk_heads = None
    assert fused._chunk_heads(1024) * (3 * 1024 + 2 * D) <= 3 << 26
    assert fused._chunk_heads(10_000_000) == fused.tiles.heads
    del heads


class Recorded:
    """Stands for a captured graph on a CPU: what ran while it was captured runs when it is replayed, with the same arguments."""

    made = 0

    def __init__(self):
        self.calls = []
        Recorded.made += 1

    def replay(self):
        for call in self.calls:
            call()


@contextmanager
def recording(graph, *, step):
    run = step._run
    step._run = lambda *arguments: graph.calls.append(partial(run, *arguments))
    yield
    step._run = run


def test_replayed_steps_read_what_each_step_brings(monkeypatch):
    results = []
    for graphs in (False, True):
        heads, step = make_step("adamw", dtype=torch.bfloat16, kernels=twins)
        fused = step.fused[""]
        fused.graphs = graphs
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
        monkeypatch.setattr(torch.cuda, "graph", partial(recording, step=fused))
        Recorded.made, losses = 0, []
        for i, (z_BD, targets) in enumerate(batches((17, 9, 33, 17, 9, 33, 17, 9, 33, 9, 17))):
            step.optimizer.param_groups[0]["lr"] *= 0.5 if i == 7 else 1.0
            if i == 8:  # other tensors in the tables: what was captured reads the old ones
                step.load_state_dict({**step.state_dict(), "generator": step.state_dict()["generator"].clone()})
            result = step(z_BD, targets, num_rows=len(z_BD), with_loss=i != 10)
            losses.append(result.loss if i != 10 else result.grad_z_BD.sum().double())
        results.append((torch.stack(losses), heads.weight_KD.clone(), heads.bias_K.clone()))
        assert (Recorded.made > 0) is graphs
        assert len(fused._captured) <= NUM_GRAPHS
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_every_kind_of_step_of_a_run_is_captured_when_it_comes_again(monkeypatch):
    _, step = make_step(kernels=twins)
    fused = step.fused[""]
    fused.graphs = True
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph", partial(recording, step=fused))
    Recorded.made = 0
    generator = torch.Generator().manual_seed(1)
    target_BK = (torch.rand(B, K, generator=generator) < 0.1).float()
    for _ in range(2):  # the second epoch
        # A short last batch, rows with and without unknown targets, loss_every above 1.
        for num_rows, known, with_loss in product((B, 17), (2, 0.9), (True, False)):
            mask_BK = torch.rand(B, K, generator=generator) < known
            targets = SparseTargets.from_dense(target_BK[:num_rows], mask_BK[:num_rows])
            step(torch.randn(num_rows, D, generator=generator), targets, num_rows=num_rows, with_loss=with_loss)
    assert Recorded.made == 8


def test_longer_lists_and_larger_batches_get_larger_buffers():
    heads, step = make_step(kernels=twins)
    for rows, density in ((4, 0.0), (40, 0.9), (8, 0.1), (64, 1.0)):
        (z_BD, targets), *_ = batches((rows,), density=density)
        step(z_BD, targets, num_rows=rows)
        buffers = step.fused[""]._buffers
        assert buffers.capacity >= len(targets.row_P)
        assert len(buffers.z_BD) >= rows
    assert heads.weight_KD.isfinite().all()
