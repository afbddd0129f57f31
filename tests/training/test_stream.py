"""Rows in shards through the real command: more than a memory limit, resumed, and shared by two processes."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ovr.training.checkpoint import read_checkpoint
from ovr.training.run import run_training
from tests.training.conftest import compose_recipe

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROOT = Path(__file__).parents[2]
QUICK = (
    "data=stream",
    "~callback.progress",
    *(f"data.files.{name}='{name}-*.parquet'" for name in ("train", "val", "calib", "test")),
)
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")
GIB = 1 << 30


def write(path, num_rows, *, width=8, row_group_size=10, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(num_rows) % 4
    x = rng.integers(-100, 100, size=(num_rows, width)).astype(np.float16)
    x[:, 0] = y
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), width)
    table = pa.table({"x": lists, "y": pa.array(y)})
    pq.write_table(table, path, row_group_size=row_group_size, use_dictionary=["y"], compression="none")


def ovr_train(folder, *overrides, limit_bytes=None):
    """Run the command in `folder`; return the most memory that it held, in bytes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    limit = None if limit_bytes is None else lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
    with (folder / "stderr").open("w+") as stderr:
        command = [sys.executable, "-m", "ovr", "train", *overrides]
        process = subprocess.Popen(command, cwd=folder, stdout=stderr, stderr=stderr, env=environment, preexec_fn=limit)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        stderr.seek(0)
        assert process.returncode == 0, stderr.read()[-3000:]
    return usage.ru_maxrss * 1024


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts all private memory on Linux alone")
def test_more_rows_than_the_memory_that_is_allowed_are_trained_on(tmp_path):
    num_files, num_rows, width = 16, 20_000, 1024
    write(tmp_path / "train-00.parquet", num_rows, width=width, row_group_size=1000)
    for number in range(1, num_files):  # a file each to whoever reads them
        os.link(tmp_path / "train-00.parquet", tmp_path / f"train-{number:02}.parquet")
    for seed, name in enumerate(("val", "calib", "test"), start=1):
        write(tmp_path / f"{name}-0.parquet", 400, width=width, seed=seed)
    size_bytes = num_files * num_rows * width * 4
    assert size_bytes > 1.2 * GIB
    peak_bytes = ovr_train(
        tmp_path,
        *QUICK,
        "data.source.buffer_rows=8192",
        "backbone=identity",
        "trainer.max_epochs=1",
        "batch_size=4096",
        "hydra.run.dir=run",
        limit_bytes=GIB,
    )
    assert (tmp_path / "run" / "bundle" / "manifest.json").is_file()
    assert peak_bytes < 1.1 * GIB < size_bytes  # what torch and ONNX map from their files comes on top of the limit


@pytest.fixture
def shards(tmp_path):
    for number in range(4):
        write(tmp_path / f"train-{number}.parquet", 40, seed=number)
    for number, name in enumerate(("val", "calib", "test")):
        write(tmp_path / f"{name}-0.parquet", 40, seed=10 + number)
    return tmp_path


SMALL = ("data.source.buffer_rows=20", "backbone.hidden=[8]", "batch_size=8")


def test_a_resumed_run_gives_what_an_uninterrupted_one_gives(shards, monkeypatch):
    monkeypatch.chdir(shards)

    def train(name, *overrides, resume=False):
        recipe, splits = compose_recipe(shards / name, *QUICK, *SMALL, "scheduler.T_max=3", *overrides)
        run_training(recipe, splits, shards / name, resume=resume)
        return read_checkpoint(shards / name / "checkpoints" / "last.ckpt")["state_dict"]

    whole = train("whole", "trainer.max_epochs=3")
    train("part", "trainer.max_epochs=2")
    (shards / "part" / "bundle").rename(shards / "bundle_of_the_first")
    for key, value in train("part", "trainer.max_epochs=3", resume=True).items():
        np.testing.assert_array_equal(value.numpy(), whole[key].numpy())


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("how", ["dense", "chunked"])
def test_each_of_two_processes_reads_row_groups_of_its_own(shards, how):
    recorded = ("+callback.reads._target_=tests.training.recorded_reads.RecordedReads", f"+callback.reads.folder={shards}")
    more = ("solver.head_step=chunked",) if how == "chunked" else ()
    epochs = ("trainer.max_epochs=2", "hydra.run.dir=run", "allow_targets=[tests.]")
    ovr_train(shards, *QUICK, *SMALL, *epochs, *TWO, *recorded, *more)
    ranks = [json.loads((shards / f"reads-{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0]["pid"] != ranks[1]["pid"]
    seen = []
    for epoch in range(2):
        both = [own["epochs"][epoch] for own in ranks]
        if how == "chunked":  # where a step has the rows of all ranks
            assert both[0]["steps"] == both[1]["steps"]
            for rank, own in enumerate(both):
                own["steps"] = [step[8 * rank : 8 * rank + 8] for step in own["steps"]]
        assert [[len(step) for step in own["steps"]] for own in both] == [[8] * 10] * 2
        rows = [np.concatenate(own["steps"]) for own in both]
        assert sorted(np.concatenate(rows)) == list(range(160))
        groups = [{(f"train-{row // 40}.parquet", row // 10 % 4) for row in of_rank.tolist()} for of_rank in rows]
        assert [len(own) for own in groups] == [8, 8]  # of 16
        for own, group in zip(both, groups, strict=True):  # some are kept from the epoch before
            assert {tuple(read) for read in own["groups"]} <= group
            assert len(own["groups"]) >= 6
        seen.append(groups[0])
    assert seen[0] != seen[1]
