import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from ovr.errors import ConfigError
from ovr.head.linear import Linear
from ovr.head.mlp import Mlp
from ovr.optimizer.rowwise_adam import RowwiseAdam
from ovr.training import memory
from ovr.training.large_k import memory_of
from ovr.training.memory import GIB, Fit, HeadSizes, check_memory
from ovr.training.recipe import plan_of
from tests.training.conftest import compose_recipe
from tests.training.test_chunked import HIDDEN, drawn, train  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:.*GPU available but not used.*")

D = 64
ROWWISE, BFLOAT16 = "optimizer@head_optimizer=rowwise_adagrad", "solver.head_dtype=bfloat16"
OPTIMIZERS = {
    "sgd": (partial(torch.optim.SGD, lr=0.1), 0),
    "momentum": (partial(torch.optim.SGD, lr=0.1, momentum=0.9), 4 * (D + 1)),
    "adamw": (torch.optim.AdamW, 8 * (D + 1)),
    "lbfgs, which has yet to make its own": (torch.optim.LBFGS, 0),
    "rowwise_adam": (partial(RowwiseAdam, lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0), 4 * (D + 1) + 8),
    "rowwise_adam without a first moment": (partial(RowwiseAdam, lr=0.1, betas=(0.0, 0.999), eps=1e-8, weight_decay=0.0), 8),
}


def fit(**changes):
    settings = {
        "head": HeadSizes.of(Linear, D, torch.optim.AdamW),
        "num_heads": 1_000_000,
        "batch_rows": 128,
        "val_rows": 1000,
        "num_features": D,
        "chunked": True,
        "may_be_chunked": True,
        "chunk_heads": None,
        "loss_by_autograd": False,
        "bfloat16": False,
        "in_groups": False,
        "backbone_bytes": 0,
        "world_size": 1,
        "processes_here": 1,
        "device": "cpu",
    }
    return Fit(**{**settings, **changes})


def available(monkeypatch, size_bytes):
    monkeypatch.setattr(memory, "available_memory", lambda: (size_bytes, "in this machine's memory"))


@pytest.mark.parametrize(("make", "state_bytes"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_state_of_a_head_is_that_of_the_optimizers_kind(make, state_bytes):
    before = torch.random.get_rng_state()
    sizes = HeadSizes.of(Linear, D, make)
    assert (sizes.matrix_bytes, sizes.weight_bytes, sizes.state_bytes, sizes.rowwise_bytes) == (4 * D, 4 * (D + 1), state_bytes, 8)
    assert torch.equal(before, torch.random.get_rng_state())
    mlp = HeadSizes.of(partial(Mlp, hidden=3), D, make)
    assert mlp.weight_bytes == 4 * (3 * D + 3 + 3 + 1)


def test_heads_that_do_not_fit_are_refused_with_the_parts_and_what_would_fit(monkeypatch):
    needed = fit().total()
    weights, state = 260_000_000, 520_000_000
    assert weights + state < needed < 1.2 * (weights + state)
    available(monkeypatch, int(needed / 0.94))
    check_memory(fit())
    available(monkeypatch, int(0.65 * needed))
    with pytest.raises(ConfigError) as caught:
        check_memory(fit())
    text = str(caught.value)
    assert text.startswith(
        f"1,000,000 heads do not fit: {needed / GIB:.2f} GiB are needed (state of the heads' optimizer 0.48 GiB, "
    )
    assert "weights of the heads 0.24 GiB" in text
    assert f"and {0.65 * needed / GIB:.2f} GiB are there in this machine's memory" in text
    assert "would fit with optimizer@head_optimizer=rowwise_adagrad or with 2 processes, each with this much memory" in text
    largest = int(re.search(r"at most ([\d,]+) heads fit", text)[1].replace(",", ""))
    check_memory(fit(num_heads=largest))
    with pytest.raises(ConfigError):
        check_memory(fit(num_heads=largest + 1))


def test_a_dense_fit_counts_logits_and_gradients_and_is_told_of_chunks(monkeypatch):
    dense = fit(chunked=False, val_rows=5000)
    assert dense.total() > 100 * fit().total()
    available(monkeypatch, 2 * GIB)
    with pytest.raises(ConfigError, match=r"scores of the validation rows .* would fit with solver\.head_step=chunked$"):
        check_memory(dense)
    with pytest.raises(ConfigError, match=r"at most \d+,\d+ heads fit as it is configured$"):
        check_memory(replace(dense, may_be_chunked=False))


@pytest.mark.parametrize(
    ("kind", "changes", "measured_mib"),
    [
        (Linear, {"chunk_heads": 100_000, "num_heads": 200_000}, 787),  # the loss of validation rows
        (Linear, {"chunk_heads": 20_000, "loss_by_autograd": True}, 1507),  # asymmetric
        (partial(Mlp, hidden=4), {"chunk_heads": 20_000}, 788),
        (Linear, {"chunk_heads": 20_000, "batch_rows": 256, "val_rows": 1, "loss_by_autograd": True}, 618),  # a step
        (Linear, {"val_rows": 2000, "num_heads": 200_000}, 130),  # average precision
    ],
)
def test_the_arrays_of_a_chunk_are_those_of_a_step_or_of_the_validation_whichever_take_more(kind, changes, measured_mib):
    """As measured on a CPU with SGD: the most that a process held, less what it held before."""
    head = HeadSizes.of(kind, D, partial(torch.optim.SGD, lr=0.1))
    one = fit(**{"head": head, "batch_rows": 16, "val_rows": 1024, "num_heads": 40_000, **changes})
    assert measured_mib <= one.on_device()["arrays of a chunk"] / (1 << 20) <= 2.5 * measured_mib


def test_what_saves_memory_only_together_is_named_together(monkeypatch):
    chunked = replace_total(fit(head=HeadSizes.of(Linear, D, torch.optim.AdamW), device="cuda"))
    assert "optimizer@head_optimizer=rowwise_adagrad solver.head_dtype=bfloat16" in chunked
    available(monkeypatch, 1 << 10)
    with pytest.raises(ConfigError, match=r"at most 0 heads fit as it is configured$"):
        check_memory(fit())


def test_heads_that_need_more_than_chunks_are_told_of_both():
    dense = fit(chunked=False, device="cuda")
    chunked = replace(dense, chunked=True).total()
    alone = memory._remedies(dense, lambda other: other.chunked and other.total() < 0.9 * chunked)
    assert alone == [f"solver.head_step=chunked {more}" for more in (ROWWISE, BFLOAT16)]
    assert memory._remedies(dense, lambda other: other.chunked and other.total() < 0.45 * chunked) == [
        f"solver.head_step=chunked {ROWWISE} {BFLOAT16}"
    ]


def test_only_linear_heads_are_told_of_bfloat16():
    mlp = fit(head=HeadSizes.of(partial(Mlp, hidden=3), D, torch.optim.AdamW), device="cuda")
    assert memory._remedies(mlp, lambda other: other.bfloat16 or other.head.state_bytes == mlp.head.rowwise_bytes)[0] == ROWWISE
    assert not any(BFLOAT16 in text for text in memory._remedies(mlp, lambda other: other.bfloat16 or other.world_size > 1))


@pytest.mark.parametrize(
    ("overrides", "may"),
    [((), True), (("optimizer=sgd",), True), (("+trainer.accumulate_grad_batches=2",), False)],
)
def test_what_a_run_rules_out_is_known_before_it_is_advised(tmp_path, overrides, may):
    recipe, splits = compose_recipe(tmp_path, HIDDEN, *overrides)
    trainer, plan = recipe.trainer(callbacks=[], logger=False), plan_of(recipe, splits)
    loss = recipe.loss(splits.taxonomy.ids, counts=splits.train.labels.counts())
    found = memory_of(recipe, splits, loss, plan, trainer, chunked=False, chunk_heads=None, in_bfloat16=False)
    assert (found.may_be_chunked, found.num_features) == (may, 8)


def replace_total(one: Fit) -> str:
    """Return the remedies where only bfloat16 weights without a moment would do."""
    return " or ".join(memory._remedies(one, lambda other: other.total() < 0.45 * one.total()))


def test_processes_of_one_machine_share_its_memory_and_each_draws_all_heads():
    alone, two = fit(), fit(world_size=2, processes_here=2)
    assert two.on_device()["weights of the heads"] == alone.on_device()["weights of the heads"]
    assert two.drawn() == 2 * alone.drawn()
    gpu = fit(world_size=2, processes_here=2, device="cuda")
    assert gpu.on_device()["weights of the heads"] == alone.on_device()["weights of the heads"] // 2


def test_a_process_asks_its_own_gpu_what_is_free(monkeypatch):
    free = {torch.device("cuda", 0): 1 << 40, torch.device("cuda", 1): GIB // 2}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], free[device]))
    available(monkeypatch, 1 << 40)
    check_memory(fit(device="cuda"), torch.device("cuda", 0))
    with pytest.raises(ConfigError, match=r"0\.50 GiB are there on the GPU"):
        check_memory(fit(device="cuda"), torch.device("cuda", 1))


def test_the_available_memory_is_known_here_and_within_that_of_the_machine():
    size_bytes, source = memory.available_memory()
    total = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024
    assert 0 < size_bytes <= total
    assert source in ("in this machine's memory", "by the limit of the control group")


@pytest.mark.parametrize("version", [1, 2])
def test_the_file_cache_of_a_control_group_counts_as_free(tmp_path, monkeypatch, version):
    proc, root = tmp_path / "cgroup", tmp_path / "sys"
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_") if version == 1 else ("memory.max", "memory.current", "")
    group = root / ("memory/pod" if version == 1 else "pod")
    group.mkdir(parents=True)
    proc.write_text("5:cpu:/pod\n4:memory:/pod/inner\n" if version == 1 else "0::/pod/inner\n")
    (group / names[0]).write_text("1000\n")
    (group / names[1]).write_text("900\n")
    (group / "memory.stat").write_text(f"anon 1\n{names[2]}inactive_file 300\n{names[2]}active_file 400\n")
    real = Path
    monkeypatch.setattr(memory, "Path", lambda path: {"/proc/self/cgroup": proc, "/sys/fs/cgroup": root}.get(path, real(path)))
    assert memory._cgroup_memory() == 1000 - 900 + 300 + 400
    (group / names[0]).write_text("max\n")
    assert memory._cgroup_memory() is None


def test_where_the_system_tells_nothing_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    check_memory(fit(num_heads=10**12))


def test_a_run_is_refused_before_its_model_is_made(tmp_path, train, monkeypatch):  # noqa: F811
    available(monkeypatch, 1 << 10)
    monkeypatch.setattr("ovr.training.sgd.build_model", None)
    with pytest.raises(ConfigError, match=r"^6 heads do not fit: 0\.00 GiB are needed"):
        train("run", "solver.head_step=chunked", splits=drawn(), backbone=HIDDEN)
    assert not (tmp_path / "run").exists()
