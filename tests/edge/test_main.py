"""`python -m ovr.edge`: the answers of `ovr predict`, without Hydra."""

import json
import resource
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from ovr.cli.main import main as ovr
from ovr.edge.__main__ import CHUNK_ROWS, main
from tests.bundles import small_bundle
from tests.edge.test_patch import drop_rights_of_root


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return small_bundle(tmp_path_factory.mktemp("edge") / "bundle").path


@pytest.fixture
def rows(tmp_path, rng):
    np.save(tmp_path / "x.npy", rng.normal(size=(CHUNK_ROWS + 7, 6)).astype(np.float32))
    return tmp_path / "x.npy"


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_file_has_the_bytes_that_ovr_predict_writes(bundle, rows, tmp_path, ending):
    ours, theirs = tmp_path / f"ours.{ending}", tmp_path / f"theirs.{ending}"
    assert main([str(bundle), str(rows), "--output", str(ours), "--format", ending]) == 0
    assert ovr(["predict", f"bundle={bundle}", f"input={rows}", f"output={theirs}"]) == 0
    if ending == "csv":
        assert ours.read_bytes() == theirs.read_bytes()
    else:
        lines = [[json.loads(line) for line in file.read_text().splitlines()] for file in (ours, theirs)]
        assert lines[0] == lines[1]


def test_a_fused_file_is_enough_and_standard_output_is_the_default(bundle, rows, tmp_path):
    command = [sys.executable, "-m", "ovr.edge", str(bundle / "fused" / "model.onnx"), str(rows)]
    done = subprocess.run(command, capture_output=True, check=True, cwd=tmp_path)
    assert main([str(bundle), str(rows), "--output", str(tmp_path / "y.csv")]) == 0
    assert done.stdout == (tmp_path / "y.csv").read_bytes()


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        ("1,2,3\n", [], "say header=false"),
        ("1,2,3\n", ["--header=false"], "3 cells; expected 6"),
        ("a,b,c,d,e,f\n1,2,3,4,5,6\n", ["--header=false"], "x.csv, line 1: column 0 holds 'a'; expected a number; say header=true"),
        ("a,b,c,d,e,f\n", [], "holds no rows; expected at least one"),
        ("a,b,c,d,e,f\n1,2,3,4,5,6\n1,2,x,4,5,6\n", [], "line 3"),
        ("a,b,c,d,e,f\n1,2,3,4,5,6\n", ["--cohort", "F"], "cohort"),
        ("a,b,c,d,e,f\n1,2,3,4,5,6\n", ["--drop", "z"], "'z'"),
    ],
)
def test_what_cannot_be_predicted_is_said_and_leaves_no_file(bundle, tmp_path, capsys, text, arguments, said):
    (tmp_path / "x.csv").write_text(text)
    assert main([str(bundle), str(tmp_path / "x.csv"), "--output", str(tmp_path / "y.csv"), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert not (tmp_path / "y.csv").exists()


def test_a_directory_is_no_file_of_rows(bundle, tmp_path, capsys):
    assert main([str(bundle), str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path} is a directory; expected a file of rows, such as {tmp_path}/rows.csv\n"


def test_a_file_that_exists_or_has_no_folder_is_refused(bundle, rows, tmp_path, capsys):
    assert main([str(bundle), str(rows), "--output", str(rows)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([str(bundle), str(rows), "--output", str(tmp_path / "none" / "y.csv")]) == 1
    assert "cannot be written: No such file or directory" in capsys.readouterr().err


def test_it_ends_in_order_where_nobody_reads_on(bundle, rows):
    command = [sys.executable, "-m", "ovr.edge", str(bundle), str(rows)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_it_ends_in_order_where_it_is_interrupted(bundle, tmp_path, rng):
    np.save(tmp_path / "x.npy", rng.normal(size=(8 * CHUNK_ROWS, 6)).astype(np.float32))
    command = [sys.executable, "-m", "ovr.edge", str(bundle), str(tmp_path / "x.npy")]
    # Jobs in the background of a shell ignore it, and so would what they start.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heard) as process:
        assert process.stdout.readline().startswith(b"row,")  # from here on it waits for somebody to read more
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1] == b""
        assert process.returncode == 130


def test_a_full_disk_is_told_and_leaves_no_file(bundle, rows, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    command = [sys.executable, "-m", "ovr.edge", str(bundle), str(rows)]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    said = "error: standard output cannot be written or read: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)
    output = tmp_path / "y.csv"
    done = subprocess.run([*command, "--output", str(output)], stderr=subprocess.PIPE, text=True, check=False, preexec_fn=limit)
    assert (done.returncode, done.stderr) == (1, f"error: {output} cannot be written or read: File too large\n")
    assert not output.exists()


def test_a_model_that_may_not_be_read_is_named_and_not_the_output(bundle, rows, tmp_path):
    model, output = tmp_path / "model.onnx", tmp_path / "y.csv"
    model.write_bytes((bundle / "fused" / "model.onnx").read_bytes())
    model.chmod(0)
    command = [sys.executable, "-m", "ovr.edge", str(model), str(rows), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=drop_rights_of_root)
    assert (done.returncode, done.stderr) == (1, f"error: {model} cannot be read: Permission denied\n")
    assert not output.exists()


@pytest.mark.parametrize(
    ("package", "statement", "said"),
    [
        (
            "onnxruntime",
            "from ovr import EdgePredictor",
            "ovr.EdgePredictor needs onnxruntime, which is not installed: pip install 'ovr[edge]'",
        ),
        ("tritonclient", "import ovr; ovr.Client('grpc://localhost:1')", "pip install 'ovr[client]'; HTTP does without"),
        (
            "torch",
            "import sys; from ovr.cli.main import main; sys.exit(main(['train']))",
            "needs torch, which is not installed: pip install 'ovr[train]'",
        ),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_the_extra_that_brings_it(tmp_path, package, statement, said):
    code = f"import sys; sys.modules[{package!r}] = None; {statement}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith(said)
