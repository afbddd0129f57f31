"""Settings of data sources, given as the documentation writes them, through the command line."""

import csv
import shlex

import pytest

from ovr.cli.main import main


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Return a function that runs `ovr data check` and returns its exit status, what it printed, and its error."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        status = main(["data", "check", "max_rows=50", *map(str, args)])
        return status, *capsys.readouterr()

    return run


def put_csv(path, rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


@pytest.fixture
def cities(tmp_path, rng):
    """A table with dates that are not ISO 8601, numbers of cities, and a class that a number tells."""
    header = ["when", "city", "size", "label"]
    rows = [[f"{n % 28 + 1:02}.03.2024", n % 3, n % 7, f"class {n % 2}"] for n in range(120)]
    return put_csv(tmp_path / "cities.csv", [header, *rows])


@pytest.mark.parametrize("plus", ["", "+"])
def test_columns_are_set_on_the_command_line(check, cities, plus):
    setting = f'{plus}data.source.columns={{when: {{kind: date, formats: ["%d.%m.%Y"]}}, city: category}}'
    status, _, log = check("data=table", f"data.path={cities}", "data.target=label", setting)
    assert status == 0
    assert "table of 3 columns (1 date, 1 category, 1 numeric)" in log


def test_classes_without_a_training_row_are_in_the_tables(check, tmp_path, rng):
    rows = [[rng.normal(), f"class {n % 2}" if n < 110 else "late"] for n in range(120)]
    path = put_csv(tmp_path / "rows.csv", [["x", "label"], *rows])
    status, printed, _ = check("data=table", f"data.path={path}", "data.target=label", "data.source.split.by=time")
    assert status == 0
    assert ["late", "0", "0", "0", "10", "True"] in [line.split()[:6] for line in printed.splitlines()]


def test_one_xmc_file_is_enough(check, tmp_path, rng):
    lines = [f"{n % 3} {n % 3}:1 {3 + n % 7}:{rng.integers(1, 9)}" for n in range(100)]
    (tmp_path / "rows.txt").write_text("\n".join(["100 10 3", *lines]) + "\n")
    status, printed, _ = check("data=xmc", "data.train=rows.txt", "data.num_tokens=10")
    assert status == 0
    assert "100 rows" in printed


def test_findings_in_several_files_name_file_and_line(check, tmp_path):
    for name, num in (("a", 40), ("b", 30), ("c", 30), ("d", 30)):
        rows = [[f"{name} word{n} more{n % 2}", "odd" if n % 2 else "even"] for n in range(num)]
        put_csv(tmp_path / f"{name}.csv", [["text", "label"], *rows])
    with (tmp_path / "a2.csv").open("w") as file:
        file.write("text,label\na word4 more0,odd\n")
    files = "data.files={train: [a.csv, a2.csv], val: b.csv, calib: c.csv, test: d.csv}"
    status, printed, _ = check("data=text", files, "data.label=label", "out=found")
    assert status == 0
    with (tmp_path / "found" / "rows.csv").open(newline="") as file:
        conflicts = [row for row in csv.DictReader(file) if row["kind"] == "conflict"]
    assert [(row["where"], row["other_where"]) for row in conflicts] == [
        ("a.csv, line 6", "a2.csv, line 2"),
        ("a2.csv, line 2", "a.csv, line 6"),
    ]
    assert "a.csv, line 6" in printed


def test_findings_in_a_folder_of_images_name_the_file(check, tmp_path, rng):
    pytest.importorskip("PIL")
    from PIL import Image

    pixels = rng.integers(0, 255, size=(41, 8, 8, 3), dtype="uint8")
    pixels[40] = pixels[0]
    for n, one in enumerate(pixels):
        folder = tmp_path / "images" / ("even" if n % 2 == 0 and n < 40 else "odd")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save(folder / f"{n}.png")
    status, _, _ = check("data=images", "data.path=images", "data.size=[8,8]", "out=found")
    assert status == 0
    with (tmp_path / "found" / "rows.csv").open(newline="") as file:
        conflicts = [row for row in csv.DictReader(file) if row["kind"] == "conflict"]
    assert sorted((row["where"], row["other_where"]) for row in conflicts) == [
        ("images/even/0.png", "images/odd/40.png"),
        ("images/odd/40.png", "images/even/0.png"),
    ]


def test_the_hint_for_a_delimiter_works_as_it_is_typed(check, tmp_path):
    rows = [[n, f"class {n % 2}"] for n in range(60)]
    put_csv(tmp_path / "rows.txt", [["x", "label"], *rows], delimiter=";")
    args = ["data=table", "data.path=rows.txt", "data.target=label"]
    status, _, error = check(*args)
    assert status == 1
    hint = error.partition("such as ")[2].partition(" or ")[0]
    assert check(*args, *shlex.split(hint))[0] == 0
    status, _, error = check(*args, "data.source.dialect.delimiter=;")
    assert status == 1
    assert "delimiter=; cannot be read as key=value (it has a character that Hydra's grammar has no place for)" in error
    assert check(*args, *shlex.split(error.rpartition("for the shell: ")[2]))[0] == 0


@pytest.mark.parametrize("source", ["data=table", "data=text"])
def test_a_folder_or_nothing_in_place_of_a_file_is_said_to_be_that(check, tmp_path, source):
    args = [source, "data.target=label" if source == "data=table" else "data.label=label"]
    assert "folder" in check(*args, f"data.path={tmp_path}")[2]
    assert "gone cannot be read: there is no such file" in check(*args, "data.path=gone")[2]
