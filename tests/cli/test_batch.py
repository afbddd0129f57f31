"""`ovr predict` on files that do not fit the memory, are many, hold bad rows, or whose run is killed on the way."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.batch_scoring import MEASURE
from ovr import EdgePredictor
from ovr.cli.main import main
from ovr.input.columns import CategoryColumn, DateColumn, NumericColumn
from ovr.input.table import TableEncoder
from ovr.input.text import HashedText
from tests.bundles import small_bundle
from tests.cli.batch import command, probs
from tests.cli.test_main import error_of

ROOT = Path(__file__).resolve().parents[2]
NUM_ROWS = 5_000


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A model of a number, a category and a date."""
    columns = (
        NumericColumn("a", 0, 0, 1, 0, 9, True),
        CategoryColumn("b", ("x", "y"), (), True, True),
        DateColumn("c", ("year",), 0, 2000, 0.1, 0, 4e9, True),
    )
    encoder = TableEncoder(columns)
    return small_bundle(tmp_path_factory.mktemp("table") / "bundle", shape=encoder.tensor.shape, encoder=encoder.to_json()).path


def write_inputs(folder, x):
    """Write the same rows in every form that numbers may have."""
    np.save(folder / "c.npy", x)
    np.save(folder / "fortran.npy", np.asfortranarray(x.astype(np.float64)))
    np.savetxt(folder / "t.csv", x, delimiter=",", fmt="%.9g", header="a,b,c,d,e,f", comments="")
    (folder / "j.jsonl").write_text("\n".join(json.dumps(row) for row in x.tolist()))
    columns = {name: x[:, d] for d, name in enumerate("abcdef")}
    pq.write_table(pa.table(columns), folder / "columns.parquet", row_group_size=1_700)
    pq.write_table(pa.table({"x": pa.array(list(x))}), folder / "lists.parquet", row_group_size=1_700)
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 6)
    pq.write_table(pa.table({"label": pa.array(["?"] * len(x)), "x": fixed}), folder / "fixed.pq")


@pytest.mark.parametrize("output", ["y.parquet", "y.csv", "y.jsonl"])
def test_every_form_of_numbers_gives_the_predictor_s_answers_in_several_parts(numbers, x, tmp_path, monkeypatch, output):
    monkeypatch.setattr("ovr.cli.scoring.CHUNK_ROWS", (16, 512))
    write_inputs(tmp_path, x)
    expected_BK = EdgePredictor(numbers).predict_proba(x)
    forms = ["c.npy", "fortran.npy", "t.csv", "j.jsonl", "columns.parquet", "lists.parquet", "fixed.pq"]
    for form in forms[: None if output == "y.parquet" else 1]:
        more = ["drop=[label]"] if form == "fixed.pq" else []
        assert main(command(numbers, tmp_path / form, tmp_path / output, "part_rows=2048", "overwrite=true", *more)) == 0
        np.testing.assert_array_equal(probs(tmp_path / output), expected_BK)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*forms, output])


def test_parquet_and_csv_say_the_same(numbers, x, tmp_path):
    np.save(tmp_path / "x.npy", x[:300])
    more = ["outputs=[prob_none,prob_normalized]"]
    for output in ("y.parquet", "y.csv"):
        assert main(command(numbers, tmp_path / "x.npy", tmp_path / output, *more)) == 0
    answers = pq.read_table(tmp_path / "y.parquet")
    assert answers.schema.field("prob:cat").type == pa.float32()
    assert answers.schema.metadata[b"ovr.bundle_sha256"].decode() == EdgePredictor(numbers).card.bundle_sha256
    with (tmp_path / "y.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == answers.column_names
    for line, row in zip(lines, answers.to_pylist(), strict=True):
        assert [line["row"], line["abstained"]] == [str(row["row"]), str(row["abstained"]).lower()]
        assert json.loads(line["labels"]) == row["labels"]
        values = [name for name in row if name not in ("row", "labels", "names", "abstained")]
        assert [float(line[name]) for name in values] == [row[name] for name in values]


def test_typed_columns_of_parquet_mean_what_the_same_cells_mean_as_objects(table, tmp_path):
    days = pa.array([1, None, 10**9, 3 * 10**9], pa.timestamp("s"))
    columns = {"a": pa.array([1, None, 3, 4]), "b": pa.array(["x", None, "zz", "y"]), "c": days}
    objects = [{name: column[row].as_py() for name, column in columns.items()} for row in range(4)]
    expected_BK = EdgePredictor(table).predict_proba(objects)
    for form in (columns, columns | {"b": columns["b"].dictionary_encode(), "a": columns["a"].cast("float32")}):
        pq.write_table(pa.table(form), tmp_path / "x.parquet")
        assert main(command(table, tmp_path / "x.parquet", tmp_path / "y.csv", "overwrite=true")) == 0
        np.testing.assert_array_equal(probs(tmp_path / "y.csv"), expected_BK)


@pytest.mark.parametrize("form", ["x.csv", "x.jsonl", "x.parquet"])
def test_rows_that_are_refused_are_left_out_or_left_empty_and_listed(table, tmp_path, capsys, monkeypatch, form):
    monkeypatch.setattr("ovr.cli.scoring.CHUNK_ROWS", (4, 4))
    rows = [{"a": str(n), "b": "x", "c": "2001-01-01"} for n in range(10)]
    rows[3]["a"], rows[4]["c"], rows[9]["a"] = "many", "some day", "?"
    if form == "x.csv":
        (tmp_path / form).write_text("a,b,c\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    elif form == "x.jsonl":
        (tmp_path / form).write_text("\n".join(json.dumps(row) for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / form)
    error = error_of(capsys, *command(table, tmp_path / form, tmp_path / "y.csv", "part_rows=4"))
    assert "9 of 10" not in error
    assert "3 of 4 rows passed the model's checks, 1 were refused: " in error
    place = "row 3" if form == "x.parquet" else f"line {5 if form == 'x.csv' else 4}"
    assert f"{form}, {place}: column 'a' holds 'many'; expected a finite number" in error
    good = [0, 1, 2, 5, 6, 7, 8]
    expected_BK = EdgePredictor(table).predict_proba([rows[n] for n in good])
    output = tmp_path / f"y{Path(form).suffix}"
    assert main(command(table, tmp_path / form, output, "part_rows=4", "on_error=skip")) == 0
    np.testing.assert_array_equal(probs(output), expected_BK)
    told = f"7 predictions in {output}: 7 rows passed the model's checks, 3 were refused, listed in "
    listed = tmp_path / f"_{output.name}.refused.jsonl"
    assert capsys.readouterr().out == f"{told}{listed}\n"
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [line["row"] for line in lines] == [3, 4, 9]
    assert "column 'c' holds 'some day'" in lines[1]["problem"]
    assert main(command(table, tmp_path / form, output, "part_rows=4", "on_error=empty", "overwrite=true")) == 0
    if form == "x.csv":
        with output.open(newline="") as file:
            rows = [{name: value or None for name, value in row.items()} for row in csv.DictReader(file)]
    else:
        rows = pq.read_table(output).to_pylist() if form == "x.parquet" else list(map(json.loads, output.read_text().splitlines()))
    assert [int(row["row"]) for row in rows] == [*range(10)]
    assert [n for n, row in enumerate(rows) if row["abstained"] is not None] == good
    empty = [[value for name, value in row.items() if name != "row"] for n, row in enumerate(rows) if n not in good]
    assert {value for row in empty for value in row} == {None}
    if form == "x.parquet":
        np.testing.assert_array_equal(np.array([rows[n]["prob:dog"] for n in good], np.float32), expected_BK[:, 1])


def test_texts_and_numbers_that_are_refused_do_not_stop_the_others(numbers, tmp_path):
    text = small_bundle(tmp_path / "text", shape=(4, 2), encoder=HashedText(6, 4).to_json()).path
    (tmp_path / "x.jsonl").write_text('"a"\n3\n{"text": "b"}\n{no json}\n')
    assert main(command(text, tmp_path / "x.jsonl", tmp_path / "y.csv", "on_error=skip")) == 0
    np.testing.assert_array_equal(probs(tmp_path / "y.csv"), EdgePredictor(text).predict_proba(["a", "b"]))
    x = np.arange(24.0).reshape(4, 6)
    lines = [",".join(map(str, row)) for row in x]
    lines[1], lines[2] = "1,2,3,x,5,6", "1,2,3,nan,5,6"
    (tmp_path / "n.csv").write_text("\n".join(lines))
    lists = [*x.tolist()[:1], None, [1.0], x.tolist()[3]]
    pq.write_table(pa.table({"x": pa.array(lists)}), tmp_path / "n.parquet")
    for source in ("n.csv", "n.parquet"):
        more = ["on_error=skip", "header=false", "overwrite=true"]
        assert main(command(numbers, tmp_path / source, tmp_path / "y.csv", *more)) == 0
        np.testing.assert_array_equal(probs(tmp_path / "y.csv"), EdgePredictor(numbers).predict_proba(x[[0, 3]]))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["on_error=null"], "on_error is None; expected one of fail, skip, empty"),
        (["part_rows=0"], "part_rows is 0; expected a whole number of at least 1"),
        (["workers=0"], "workers is 0; expected a whole number of at least 1"),
        (["input=[x.npy,x.npy]"], "input is a list of 2 files, 1 different ones; expected each once"),
        (["input=none*.npy"], "input=none*.npy matches no file"),
        (["input=empty"], "empty holds no file of rows (*.csv, "),
        (["input=empty.csv"], "empty.csv holds no rows; expected at least one"),
        (["input=several", "output=y.npy.csv"], "y.npy.csv is a file; the answers to several files need a folder"),
        (["input=several", "overwrite=true"], "overwrite=true is of one output file; remove the folder"),
        (["input=[several/x.npy]", "output=old.csv"], "old.csv holds other.csv, no answer to these files; choose another output"),
        (["input=[several/x.npy,several/x.csv]"], "would all be "),
    ],
)
def test_inputs_and_outputs_that_cannot_be_are_refused(numbers, x, tmp_path, capsys, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "several", "old.csv"):
        (tmp_path / folder).mkdir()
    for file in ("x.npy", "several/x.npy"):
        np.save(file, x[:9])
    for file in ("several/x.csv", "y.npy.csv", "old.csv/other.csv"):
        Path(file).write_text("a\n")
    Path("empty.csv").write_text("a,b,c,d,e,f\n")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert message in error_of(capsys, *command(numbers, "x.npy", "y.csv", *more))
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before


def several(folder, x):
    """Write files of different sizes and kinds into a folder and one below it."""
    (folder / "day=2").mkdir(parents=True)
    np.save(folder / "a.npy", x[:2_000])
    np.save(folder / "b.npy", x[2_000:2_100])
    pq.write_table(pa.table({name: x[2_100:, d] for d, name in enumerate("abcdef")}), folder / "day=2" / "c.parquet")
    (folder / "_SUCCESS").write_text("")


def test_processes_that_torchrun_starts_share_the_files_and_give_what_one_gives(numbers, x, tmp_path, capsys):
    several(tmp_path / "in", x)
    assert (
        main(
            command(
                numbers,
                tmp_path / "in",
                tmp_path / "one.parquet",
            )
        )
        == 0
    )
    out = capsys.readouterr().out
    assert f"{tmp_path / 'one.parquet'} is complete: 3 files, {NUM_ROWS} rows, 0 refused\n" in out
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ovr"]
    arguments = command(numbers, f"'{tmp_path}/in/**/[a-c].*'", tmp_path / "two.parquet")
    done = subprocess.run([*torchrun, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    names = ["a.parquet", "b.parquet", "day=2/c.parquet", "_SUCCESS"]
    for name in names:
        assert (tmp_path / "one.parquet" / name).read_bytes() == (tmp_path / "two.parquet" / name).read_bytes()
    expected_BK = EdgePredictor(numbers).predict_proba(x)
    np.testing.assert_array_equal(np.concatenate([probs(tmp_path / "two.parquet" / name) for name in names[:3]]), expected_BK)
    assert len(pq.read_table(tmp_path / "two.parquet")) == NUM_ROWS  # readers of folders pass over what begins with _
    summary = json.loads((tmp_path / "two.parquet" / "_SUCCESS").read_text())
    assert summary["files"]["day=2/c.parquet"] == {"num_rows": 2_900, "num_refused": 0}


def test_each_process_scores_its_share_and_the_last_one_says_that_all_is_there(numbers, x, tmp_path, capsys, monkeypatch):
    several(tmp_path / "in", x)
    arguments = command(numbers, tmp_path / "in", tmp_path / "y.csv")
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert "torchrun started 2 processes, which share an input by its files; " in error_of(
        capsys, *command(numbers, tmp_path / "in" / "a.npy", tmp_path / "z.csv")
    )
    assert main(arguments) == 0
    assert {path.name for path in (tmp_path / "y.csv").rglob("[!_]*.csv")} == {"c.csv"}
    assert not (tmp_path / "y.csv" / "_SUCCESS").exists()
    capsys.readouterr()
    assert "c.csv exists already; resume=true goes on with what is not there yet" in error_of(capsys, *arguments)
    monkeypatch.setenv("RANK", "1")
    assert main(arguments) == 0
    assert (tmp_path / "y.csv" / "_SUCCESS").exists()
    capsys.readouterr()
    assert "y.csv is complete already; choose another place or remove it" in error_of(capsys, *arguments)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert main([*arguments, "resume=true"]) == 0
    capsys.readouterr()
    error = error_of(capsys, *arguments, "resume=true", "probabilities=false")
    assert "was made of another input, bundle or option; remove" in error


def test_memory_does_not_grow_with_the_file(tmp_path):
    """A file of 400 MB is scored within 128 MB more than one of 8 MB, a single chunk, takes."""
    bundle = small_bundle(tmp_path / "bundle", shape=(128,)).path
    for name, num_rows in (("small", 16_384), ("large", 800_000)):
        np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", np.float32, (num_rows, 128)).flush()
    sizes = [(tmp_path / f"{name}.npy").stat().st_size for name in ("small", "large")]
    assert sizes[1] > 400e6
    calls = [
        "|".join(command(bundle, tmp_path / f"{name}.npy", tmp_path / f"{name}.parquet", "workers=1"))
        for name in ("small", "large")
    ]
    done = subprocess.run([sys.executable, "-c", MEASURE, *calls], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown_kb = int(done.stderr.split()[-1])
    assert grown_kb < 128_000
    assert pq.ParquetFile(tmp_path / "large.parquet").metadata.num_rows == 800_000
