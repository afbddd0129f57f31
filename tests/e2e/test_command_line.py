"""`ovr` as a person uses it: from a CSV of odd class ids to a server's answers, interrupted, spread, with wrong input."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ovr import Client, EdgePredictor
from ovr.cli.main import main
from ovr.core.bundle import open_bundle
from ovr.serving.server import start

ODD_IDS = ["a/b", "..", "日本語 ☃", "train", "two words", "x" * 300, "line\nbreak", "Ünïcode", "CON", "1"]
QUICK = ["data=table", "data.target=label", "trainer.max_epochs=2", "report=false"]


def write_table(path: Path, class_ids: list[str], num_rows: int = 200) -> Path:
    rng = np.random.default_rng(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "c", "label"])
        for n in range(num_rows):
            k = n % len(class_ids)
            writer.writerow([*rng.normal((np.cos(k), np.sin(k), k)), class_ids[k]])
    return path


@pytest.fixture
def table(tmp_path):
    return write_table(tmp_path / "rows.csv", ["cat", "dog", "bird"])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return a directory of its own that the commands run in."""
    directory = tmp_path / "here"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


def ovr(*args: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "ovr", *args], cwd=cwd, capture_output=True, text=True, timeout=240)


@pytest.mark.triton
@pytest.mark.parametrize("layout", [pytest.param("fused", marks=pytest.mark.exhaustive), "per_head"])
def test_class_ids_of_any_kind_train_export_publish_and_serve(here, tmp_path, layout):
    table = write_table(tmp_path / "odd.csv", ODD_IDS)
    assert main(["train", *QUICK, f"data.path={table}", "hydra.run.dir=run"]) == 0
    assert main(["export", "bundle=run/bundle", "out=onnx"]) == 0
    assert len(list((here / "onnx" / "heads").glob("*.onnx"))) == len(ODD_IDS)
    assert main(["publish", "bundle=run/bundle", "repository=repository", f"serving.layout={layout}"]) == 0
    assert main(["predict", "bundle=run/bundle", f"input={table}", "drop=[label]", "output=answers.jsonl"]) == 0
    bundle = open_bundle(here / "run" / "bundle")
    assert sorted(bundle.taxonomy.ids) == sorted(ODD_IDS)
    with table.open(newline="", encoding="utf-8") as file:
        rows = [{name: row[name] for name in "abc"} for row in csv.DictReader(file)][:6]
    expected = EdgePredictor(bundle.path).predict(rows)
    with start(here / "repository") as server:
        for url in (server.http_url, server.grpc_url):
            with Client(url) as client:
                got = client.predict(rows)
            np.testing.assert_allclose(got.prob_BK, expected.prob_BK, atol=1e-6)
            assert got.labels() == expected.labels()
    answers = [json.loads(line) for line in (here / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 200
    assert answers[0]["labels"] == list(expected.labels()[0])
    assert set(answers[0]["prob"]) == set(ODD_IDS)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_killed_run_resumes_to_the_result_of_an_uninterrupted_one(tmp_path, table, monkeypatch, capsys):
    args = [
        "train",
        *QUICK,
        f"data.path={table}",
        "trainer.max_epochs=120",
        "callback.early_stopping.patience=120",
        "backbone.dropout=0.3",
    ]
    monkeypatch.chdir(tmp_path)
    assert main([*args, "hydra.run.dir=whole"]) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "ovr", *args, "hydra.run.dir=broken"], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    last = tmp_path / "broken" / "checkpoints" / "last.ckpt"
    while not last.exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    done = ovr("train", "resume=broken", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole, broken = (open_bundle(tmp_path / name / "bundle") for name in ("whole", "broken"))
    assert whole.backbone_onnx.read_bytes() == broken.backbone_onnx.read_bytes()
    for a, b in zip(whole.heads, broken.heads, strict=True):
        assert whole.head_onnx(a).read_bytes() == broken.head_onnx(b).read_bytes()
    assert main(["train", "resume=broken"]) == 1
    assert "is a finished run" in capsys.readouterr().err


@pytest.mark.exhaustive
@pytest.mark.slow
def test_two_processes_train_one_bundle(tmp_path, table):
    spread = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
    done = ovr("train", *QUICK, f"data.path={table}", *spread, "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    bundle = open_bundle(tmp_path / "run" / "bundle")
    rows = np.zeros((1, 3), dtype=np.float32)  # a, b and c
    assert EdgePredictor(bundle.path).predict(rows).prob_BK.shape == (1, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.csv", "run"]


def test_a_multirun_trains_once_for_each_seed(here, table):
    assert main(["train", *QUICK, f"data.path={table}", "-m", "seed=0,1", "hydra.sweep.dir=sweep"]) == 0
    bundles = [open_bundle(here / "sweep" / job / "bundle") for job in ("0", "1")]
    assert [b.provenance["config"]["seed"] for b in bundles] == [0, 1]
    assert bundles[0].backbone_sha256 != bundles[1].backbone_sha256


def test_a_users_own_configuration_and_plug_in(here, tmp_path, table, monkeypatch):
    (tmp_path / "plugs").mkdir()
    (tmp_path / "plugs" / "my_losses.py").write_text(
        "from ovr.loss.bce import Bce\n\n\nclass Doubled(Bce):\n    def forward(self, logit_BK, target_BK):\n"
        "        return 2 * super().forward(logit_BK, target_BK)\n"
    )
    (tmp_path / "own" / "loss").mkdir(parents=True)
    (tmp_path / "own" / "loss" / "doubled.yaml").write_text("_target_: my_losses.Doubled\n_partial_: true\npos_weight: null\n")
    monkeypatch.syspath_prepend(str(tmp_path / "plugs"))
    own = ["--config-dir", str(tmp_path / "own"), "loss=doubled", "report=true"]
    args = ["train", *QUICK, f"data.path={table}", *own, "hydra.run.dir=run"]
    assert main(args) == 1
    assert not (here / "run").exists()
    assert main([*args, "allow_targets=[my_losses.]"]) == 0
    assert (here / "run" / "bundle" / "manifest.json").is_file()
    assert json.loads((here / "run" / "report.json").read_text())["num_classes"] == 3
    assert (here / "run" / "report.html").is_file()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["los=focal"], "config key 'los' does not exist; nearest: loss"),
        (["loss=focl"], "there is no such option; nearest: focal; all: asymmetric, bce, focal, smoothed, subsampled"),
        (["trainer.max_epoch=3"], "does not exist; nearest: trainer.max_epochs"),
        (["data.path=gone.csv"], "gone.csv cannot be read: No such file or directory"),
        (["data.path=empty.csv"], "empty.csv is empty; expected a header and rows"),
        (["data.path=inf.csv"], "inf.csv, line 3 (row 1), column 'b' holds 'inf'"),
        (["data.path={table}", "data.source.classes=[cat,dog]"], "labels outside the taxonomy of 2 classes: 'bird'"),
        (["data.path={table}", "data.source.classes=[cat,dog,bird,fish]"], "no training row of class 'fish'"),
        (["data.path={table}", "data.source.split.fractions.train=0.9"], "split.fractions must sum to 1"),
        (["data.path={table}", "backbone.hidden=[]"], "backbone.hidden"),
        (["data.path={table}", "backbone=cnn"], "needs rows of shape (H, W) or (C, H, W), got (3,)"),
        (["data.path={table}", "optimizer.lr=fast"], "cannot be made with lr='fast', weight_decay=0.01"),
        (["data.path={table}", "resume=nowhere"], "is not a run directory"),
        (["data.path={table}", "trainer=fsdp"], "the trainer cannot be made with accelerator='gpu'"),
        (["data.path={table}", "trainer=gpu"], "No supported gpu backend found"),
        (["data.path={table}", "optimizer._target_=os.remove"], "is not allowed"),
    ],
)
def test_wrong_input_is_one_clear_error_and_nothing_is_written(here, table, capsys, args, message):
    (here / "empty.csv").write_text("")
    (here / "inf.csv").write_text("a,b,c,label\n" + "".join(f"1,{'inf' if n == 1 else n},3,{'xy'[n % 2]}\n" for n in range(40)))
    before = sorted(here.rglob("*"))
    assert main(["train", *QUICK, *(arg.format(table=table) for arg in args)]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: "), error
    assert "Traceback" not in error
    assert message in error
    assert sorted(here.rglob("*")) == before


def test_the_four_files_must_have_the_same_columns(here, table, capsys):
    write_table(here / "good.csv", ["cat", "dog", "bird"])
    (here / "short.csv").write_text("a,b,label\n1,2,cat\n")
    files = {"train": "good.csv", "val": "good.csv", "calib": "good.csv", "test": "short.csv"}
    assert main(["train", *QUICK, *(f"data.files.{name}={file}" for name, file in files.items())]) == 1
    assert (
        "short.csv has no column 'c'; its columns are 'a', 'b', 'label'; it is read as the train file good.csv is"
        in capsys.readouterr().err
    )
    assert sorted(p.name for p in here.iterdir()) == ["good.csv", "short.csv"]
