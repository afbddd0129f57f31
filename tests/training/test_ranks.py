"""Heads spread over two processes: the weights of one process, and checkpoints that either goes on from."""

import subprocess
import sys
from contextlib import chdir

import numpy as np
import pytest
import torch

from ovr import EdgePredictor
from ovr.cli.main import main
from ovr.core.bundle import open_bundle
from ovr.head.bank import group_columns
from ovr.training.checkpoint import read_checkpoint
from ovr.training.loader import sparse_batch
from ovr.training.plan import HeadPlan
from ovr.training.ranks import Ranks
from ovr.training.shards import HeadShards, file_backed
from tests.conftest import logging_restored
from tests.training.test_chunked import alike, drawn

IDS = ["cat", "dog", "bird", "fox", "cow"]
PLANS = {
    "plain": HeadPlan((), (0, 1, 2, 3, 4), 5),
    "groups": HeadPlan((1, 2), (0, 2, 4), 5),
    "late": HeadPlan((3, 4), (0, 1), 5),
}
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")
QUICK = ("data=table", "data.target=label", "backbone.hidden=[8]", "backbone.dropout=0", "~callback.progress", "data.path=rows.csv")
GROUPS = ("backbone_grad=[fox]", "optimizer=sgd")
CHUNKED = ("solver.head_step=chunked", "solver.chunk_heads=2", "trainer.max_epochs=3", "scheduler.T_max=3")


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_what_is_dealt_out_are_the_rows_of_each_ranks_columns(plan, world_size):
    """Each row holds its own head's column, whatever the group."""
    groups = {"": np.arange(5)}
    if not plan.is_plain:
        columns = group_columns(5, frozen=plan.frozen, to_backbone=plan.to_backbone)
        groups = {f"groups.{name}.": column_G for name, column_G in columns.items()}
    whole = {(f"{name}weight_KD", ""): torch.from_numpy(column_G).repeat_interleave(2) for name, column_G in groups.items()}
    seen = []
    for rank in range(world_size):
        shards = HeadShards(plan, Ranks(rank, world_size))
        for value in shards.deal(whole).values():
            assert len(value)
            assert set(value.tolist()) <= set(shards.column_array().tolist())
            seen += value.tolist()
    assert sorted(seen) == sorted(2 * list(range(5)))


def test_a_file_backed_tensor_takes_a_file_without_a_name(tmp_path):
    for dtype in (torch.float32, torch.bfloat16):
        value = file_backed((3, 2), dtype, tmp_path)
        value[:] = torch.arange(6).view(3, 2)
        assert (value.dtype, value.sum().item()) == (dtype, 15)
        assert list(tmp_path.iterdir()) == []


def test_a_rank_gets_its_rows_and_of_all_ranks_rows_the_targets_in_its_columns():
    rows = drawn().train
    row_WB = np.array([[3, 50, 7], [8, 2, 61]])
    target_BK, mask_BK = rows.labels.dense(row_WB.reshape(-1))
    for rank, columns in enumerate((slice(0, 2), slice(2, 6))):
        batch = sparse_batch(rows, row_WB, rank=rank, columns=columns)
        np.testing.assert_array_equal(batch.x, rows.x[row_WB[rank]])
        assert batch.row_WB.tolist() == [3, 50, 7, 8, 2, 61]
        found_BC = np.zeros((6, columns.stop - columns.start), dtype=int)
        found_BC[batch.targets.row_P, batch.targets.column_P] = 1
        found_BC[batch.targets.row_U, batch.targets.column_U] = -1
        np.testing.assert_array_equal(found_BC, np.where(mask_BK, target_BK, -1)[:, columns])


@pytest.fixture(scope="module")
def ovr(tmp_path_factory, write_table):
    """Return a function that trains by the command on the same batches, in this process or in two that it starts."""
    folder = tmp_path_factory.mktemp("ranks")
    write_table(folder / "rows.csv", IDS * 40)

    def run(name, *overrides, ranks=1, rate=None, code=0):
        args = [f"batch_size={12 // ranks}", *overrides]
        if not any(override.startswith("resume=") for override in overrides):
            args = [*QUICK, *CHUNKED, "report=false", *(TWO if ranks == 2 else ()), *args, f"hydra.run.dir={name}"]
        if ranks == 1:
            with chdir(folder), logging_restored():
                assert main(["train", *args]) == 0
            return folder / name
        done = subprocess.run([sys.executable, "-m", "ovr", "train", *args], cwd=folder, capture_output=True, text=True)
        assert done.returncode == code, done.stderr[-3000:]
        return folder / name if code == 0 else done.stderr

    return run


@pytest.fixture(scope="module")
def one(ovr):
    return ovr("one")


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        pytest.param(
            ("head=mlp", "head.hidden=3", "optimizer=rowwise_adam", "loss.pos_weight=auto", "backbone_grad=[cat,dog]"),
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(("backbone_grad=none", "solver.loss_every=3"), marks=pytest.mark.exhaustive),
    ],
    ids=["plain", "groups", "fixed backbone"],
)
def test_two_processes_give_the_weights_of_one(ovr, one, overrides):
    name = overrides[0].partition("=")[0] if overrides else "plain"
    alone, together = ovr(f"{name}_1", *overrides) if overrides else one, ovr(f"{name}_2", *overrides, ranks=2)
    for which in ("last", "best"):
        a, b = (read_checkpoint(run / "checkpoints" / f"{which}.ckpt") for run in (alone, together))
        for key, value in a["state_dict"].items():
            torch.testing.assert_close(b["state_dict"][key], value, atol=1e-6, rtol=1e-6)
        for key, state in a["head_step"]["states"].items():
            for part, value in state["tensors"].items():
                torch.testing.assert_close(b["head_step"]["states"][key]["tensors"][part], value, atol=1e-6, rtol=1e-4)
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    probs = [EdgePredictor(run / "bundle").predict(x).prob_BK for run in (alone, together)]
    np.testing.assert_allclose(*probs, atol=1e-5)
    metrics = [(run / "metrics" / "version_0" / "metrics.csv").read_text().splitlines() for run in (alone, together)]
    for a, b in zip(*metrics, strict=True):
        for p, q in zip(a.split(","), b.split(","), strict=True):
            assert p == q or float(p) == pytest.approx(float(q), rel=1e-5)


@pytest.fixture(scope="module")
def groups(ovr):
    """Return a run whose second process alone would have heads of both groups."""
    return ovr("groups", *GROUPS)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(("plan", "first", "then"), [("groups", 2, 1), ("one", 1, 2)])
def test_a_checkpoint_of_either_is_gone_on_from_by_the_other(ovr, request, plan, first, then):
    name = f"{plan}_from_{first}_to_{then}"
    part = ovr(name, "trainer.max_epochs=1", *(GROUPS if plan == "groups" else ()), ranks=first)
    (part / "bundle").rename(part / "bundle_of_the_first")
    spread = ["trainer.strategy=ddp", "trainer.devices=2"] if then == 2 else ["trainer.strategy=auto", "trainer.devices=1"]
    ovr(name, f"resume={name}", "trainer.max_epochs=3", *spread, ranks=then)
    alike(request.getfixturevalue(plan), part, tolerance=1e-6)
    assert open_bundle(part / "bundle").taxonomy.ids == tuple(sorted(IDS))


@pytest.mark.exhaustive
@pytest.mark.slow
def test_nan_in_one_process_is_one_error_that_names_the_head(ovr):
    error = ovr("diverged", "optimizer.lr=1e37", "trainer.max_epochs=2", ranks=2, code=1)
    assert "error: NaN or infinity in epoch 0, step 1" in error
    assert "heads: 'bird'" in error
    assert "Traceback" not in error
