"""`ovr head add` and `retrain` as a person uses them, on a run of `ovr train`, and what later commands make of the bundle."""

import csv
import json

import pytest

from ovr.cli.main import main
from ovr.core.bundle import open_bundle
from tests.cli.test_main import error_of
from tests.conftest import logging_restored
from tests.lifecycle.test_commands import IDS, NEW, write


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the directory of a run, beside whose rows there are others, of one class more."""
    folder = tmp_path_factory.mktemp("run")
    table = write(folder / "rows.csv", 240, 0)
    write(folder / "new.csv", 600, 1, ids=(*IDS, "more"))
    args = [*NEW, f"data.path={table}", "solver=convex", "backbone=identity", f"solver.cache_dir={folder}"]
    with logging_restored():
        owners = 'owners=["* @core","[mn]ore @more","train"]'
        assert main(["train", *args, "decision=multilabel", owners, f"hydra.run.dir={folder / 'run'}"]) == 0
    return folder


@pytest.fixture
def args(run, tmp_path):
    return [f"bundle={run / 'run/bundle'}", f"out={tmp_path / 'out'}", *NEW, f"data.path={run / 'new.csv'}"]


def test_a_class_is_added_judged_and_measured_and_retired_again(run, args, tmp_path, capsys):
    assert main(["head", "add", *args, "class=more", "name=More", "gate.max_ece=0.3", "why=asked for"]) == 0
    out = capsys.readouterr().out
    assert "more: fitted on" in out
    assert [spec.owner for spec in open_bundle(tmp_path / "out").taxonomy] == ["@core", "", "@core", "@more"]
    assert "passed counts" in out
    assert "test rows: average precision" in out
    assert main(["head", "verify", str(run / "run/bundle"), str(tmp_path / "out"), "changed=[more]"]) == 0
    assert "unchanged: 3 heads" in capsys.readouterr().out
    rows = [*NEW, f"data.path={run / 'new.csv'}", "rows=test"]
    assert main(["evaluate", f"bundle={tmp_path / 'out'}", f"out={tmp_path / 'figures'}", *rows]) == 0
    classes = json.loads((tmp_path / "figures/metrics.json").read_text())["classes"]
    assert [row["class_id"] for row in classes] == [*open_bundle(run / "run/bundle").taxonomy.ids, "more"]
    own = open_bundle(tmp_path / "out").head("more").metrics["test"]
    assert classes[-1]["average_precision"] == pytest.approx(own["average_precision"], abs=1e-6)
    assert main(["calibrate", f"bundle={tmp_path / 'out'}", f"out={tmp_path / 'platt'}", "calibrator=platt", "classes=[more]"]) == 0
    assert main(["head", "retire", f"bundle={tmp_path / 'platt'}", f"out={tmp_path / 'gone'}", "class=more"]) == 0
    step = open_bundle(tmp_path / "gone").provenance["history"][0]
    assert (step["command"], step["classes"], step["why"], step["gate"]["more"]["passed"]) == (
        "head add",
        ["more"],
        "asked for",
        True,
    )
    assert step["data"]["files"][0]["name"] == "new.csv"
    assert step["gate"]["more"]["looser_than_default"] == ["max_ece"]
    assert "the gate's policy asks less than the default: max_ece" in out


def test_heads_are_trained_again(run, args, tmp_path, capsys):
    old = tmp_path / "old.csv"
    lines = list(csv.reader((run / "new.csv").read_text().splitlines()))
    old.write_text("\n".join(",".join(line) for line in lines if line[-1] != "more") + "\n")
    args[-1] = f"data.path={old}"
    settings = ["gate.max_ece=0.3", "calibrator=platt", "threshold=max_f_beta"]
    assert main(["head", "retrain", *args, 'classes=["..",train]', *settings]) == 0
    for head in open_bundle(tmp_path / "out").heads:
        expected = (1, "temperature") if head.class_id == "x/y" else (2, "platt")
        assert (head.version, head.calibration.kind) == expected
    assert "dry run" not in capsys.readouterr().out


def test_rows_that_are_all_of_the_class_come_from_a_file(run, args, tmp_path, capsys):
    lines = list(csv.reader((run / "new.csv").read_text().splitlines()))
    own = [line[:-1] for line in [lines[0], *(line for line in lines if line[-1] == "more")][:9]]
    (tmp_path / "own.csv").write_text("\n".join(",".join(line) for line in own) + "\n")
    args[-1] = f"data.path={run / 'rows.csv'}"
    assert main(["head", "add", *args, "class=more", f"positives={tmp_path / 'own.csv'}", "gate.max_ece=0.3", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "rows left out in turn" in out
    assert "dry run: nothing was written" in out
    assert not (tmp_path / "out").exists()
    extra = ['classes=["..",train]', f"positives={tmp_path / 'own.csv'}"]
    assert "are rows of 1 class, a file each, got 2 classes" in error_of(capsys, "head", "retrain", *args, *extra)


def test_classes_are_added_at_once_from_features_that_another_command_kept(run, args, tmp_path, capsys):
    table = write(tmp_path / "two.csv", 700, 2, ids=(*IDS, "more", "1.50"))
    rows, file = [*NEW, f"data.path={table}"], tmp_path / "two.npz"
    assert main(["head", "features", args[0], *rows, "classes=[more,1.50]", f"out={file}"]) == 0
    assert "features of 700 rows by backbone" in capsys.readouterr().out
    new = ["classes=[more,1.50]", "names=[More,2.0]", "owner=team", "gate.max_ece=0.5"]
    assert main(["head", "add", args[0], f"out={tmp_path / 'rows'}", *rows, *new]) == 0
    assert main(["head", "add", args[0], f"out={tmp_path / 'features'}", f"features={file}", *new]) == 0
    made = [open_bundle(tmp_path / name) for name in ("rows", "features")]
    assert made[0].merkle_root == made[1].merkle_root
    assert [(spec.id, spec.name, spec.owner) for spec in made[1].taxonomy[-2:]] == [
        ("more", "More", "team"),
        ("1.50", "2.0", "team"),
    ]
    assert made[1].provenance["history"][-1]["data"]["files"][0]["name"] == "two.npz"
    assert "expected FILE.npz that does not exist" in error_of(capsys, "head", "features", args[0], *rows, f"out={file}")
    assert "expected FILE.npz" in error_of(capsys, "head", "features", args[0], *rows, f"out={tmp_path / 'x.npy'}")


def test_a_class_is_added_from_a_handful_of_rows_and_what_the_bundle_keeps(run, args, tmp_path, capsys):
    lines = list(csv.reader((run / "new.csv").read_text().splitlines()))
    own = [line[:-1] for line in [lines[0], *(line for line in lines if line[-1] == "more")][:9]]
    (tmp_path / "own.csv").write_text("\n".join(",".join(line) for line in own) + "\n")
    settings = ["class=more", "kept_rows=true", f"positives={tmp_path / 'own.csv'}", "gate.max_ece=0.5"]
    assert main(["head", "add", *args[:2], *settings]) == 0
    out = capsys.readouterr().out
    assert "more: fitted on 8 rows of the class; calibrated and judged on rows left out in turn" in out
    assert "rows left out in turn: average precision" in out
    made = open_bundle(tmp_path / "out")
    assert made.provenance["history"][-1]["data"]["rows"] == "the bundle's own calibration rows"
    assert made.provenance["history"][-1]["data"]["positives"] == [{"class": "more", "file": "own.csv", "num_rows": 8}]
    assert main(["head", "verify", str(run / "run/bundle"), str(tmp_path / "out"), "changed=[more]"]) == 0


def test_rows_of_other_classes_are_needed(run, tmp_path, capsys):
    args = [f"bundle={run / 'run/bundle'}", f"out={tmp_path / 'out'}", "class=more"]
    assert "data is not given; heads need rows of other classes too" in error_of(capsys, "head", "add", *args)
    both = [*args, "features=f.npz", "kept_rows=true"]
    assert "features and kept_rows are given; expected one of them" in error_of(capsys, "head", "add", *both)
    assert "expected a source of rows, such as data=table" in error_of(capsys, "head", "add", *args, "+data.x=1")
    assert "positives=no.csv does not exist" in error_of(capsys, "head", "add", *args, "kept_rows=true", "positives=no.csv")


@pytest.mark.parametrize(
    ("command", "extra", "message"),
    [
        ("add", ["class=train"], "has class 'train' already; `ovr head retrain`"),
        ("add", ["class=more", "gate.min_positives=5000"], "the gate refuses 1 of 1 heads: 'more': counts"),
        ("add", ["class=more", "gate.margin=7"], "the gate's margin is 7"),
        ("retrain", ["class=tran"], "has no class 'tran'; nearest: train"),
        ("add", ["class=other"], "labels outside the taxonomy of 4 classes: 'more'"),
    ],
)
def test_what_cannot_be_done_is_said(args, command, extra, message, capsys, tmp_path):
    assert message in error_of(capsys, "head", command, *args, *extra)
    assert not (tmp_path / "out").exists()


def test_a_plan_says_what_heads_need_and_its_jobs_are_commands(run, tmp_path, capsys):
    write(tmp_path / "later.csv", 300, 5)
    files = [f"out={tmp_path / 'plan.json'}", f"jobs={tmp_path / 'jobs.yml'}"]
    args = [f"bundle={run / 'run/bundle'}", *NEW, f"data.path={tmp_path / 'later.csv'}", *files]
    assert main(["head", "plan", *args]) == 0
    said = json.loads((tmp_path / "plan.json").read_text())["classes"]
    assert {row["class_id"] for row in said} == set(IDS)
    assert {row["need"] for row in said} <= {"nothing", "recalibrate", "retrain"}
    assert all(0.2 < row["share_in_training"] < 0.45 for row in said)
    assert (tmp_path / "jobs.yml").read_text().startswith("# Written by `ovr head plan`")
    gone, counts = [f"bundle={tmp_path / 'gone'}", *NEW, f"data.path={tmp_path / 'later.csv'}"], tmp_path / "counts.json"
    counts.write_text('{"rows": 1000, "decided": {"x/y": 990}}')
    assert main(["head", "retire", args[0], f"out={tmp_path / 'gone'}", "class=train"]) == 0
    (tmp_path / "OWNERS").write_text("# of the jobs\n.* @dots\n")
    owners = f"owners={tmp_path / 'OWNERS'}"
    assert main(["head", "plan", *gone, f"counts={counts}", f"out={tmp_path / 'again.json'}", owners]) == 0
    assert "x/y: decided on 99.00% of served rows for" in capsys.readouterr().out
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["data"]["retired"].keys() == {"train"}
    assert 60 < again["data"]["retired"]["train"] < 140
    assert {row["class_id"]: row["num_rows"] for row in again["classes"]} == {"x/y": 300, "..": 300}
    assert {row["class_id"]: row["owner"] for row in again["classes"]} == {"x/y": "@core", "..": "@dots"}
    assert "owners=no cannot be read: No such file" in error_of(capsys, "head", "plan", *gone, "owners=no")
    assert "owners is 7; expected a file, or lines" in error_of(capsys, "head", "plan", *gone, "owners=7")
    assert main(["calibrate", *gone, f"out={tmp_path / 'calibrated'}"]) == 0  # as the jobs do
    assert main(["head", "plan", gone[0], f"counts={counts}"]) == 0
    assert "rows of classes that are retired count as rows of none: 'train'" in capsys.readouterr().err
    bare = [line.rpartition(",")[0] + "," for line in (tmp_path / "later.csv").read_text().splitlines()[1:]]
    (tmp_path / "bare.csv").write_text("\n".join(["a,b,sex,label", *bare]) + "\n")
    moved = [gone[0], *NEW, f"data.path={tmp_path / 'bare.csv'}", "data.source.labels.unlabelled=unknown"]
    assert main(["head", "plan", *moved]) == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()[1:3]] == ["more", "more"]
    assert "exists; expected a file that does not" in error_of(capsys, "head", "plan", *args)
    assert "data is not given" in error_of(capsys, "head", "plan", f"bundle={run / 'run/bundle'}")
