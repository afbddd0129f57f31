"""Artifacts that mean harm are refused in the words of ovr, in under a second and 512 MiB each, and nothing of theirs runs.

The second is one of CPU: seconds of the clock measure who else computes on the machine. What waits instead is stopped by the clock
(see `tests.hostile`), and is an artifact that was not refused.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "a" / "b"
    folder.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile", str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [path.name for path in folder.parent.iterdir()] == ["b"]  # nothing escaped
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_hostile_artifact_is_refused_in_words_of_ovr(outcomes):
    assert len(outcomes) >= 40
    wrong = [row for row in outcomes if not row["error"].startswith(("ArtifactError", "ConfigError", "DataError", "InputError"))]
    assert wrong == []


def test_each_is_refused_in_under_a_second_of_cpu(outcomes):
    assert [row for row in outcomes if row["seconds"] >= 1.0] == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Loop that never ends", "operators Loop are not among"),
        ("ConstantOfShape of 64 GiB", "ConstantOfShape makes 17179869184 values of a constant"),
        ("constants that broadcast to 6.4 GB", "Add makes 1600000000 values for a row, at most 67108864"),
        ("product of constants of 40 GB", "MatMul makes 10000000000 values for a row"),
        ("row that doubles 40 times", "Concat makes 134217728 values for a row"),
        ("row tiled in steps", "Tile makes 2000000000 values for a row"),
        ("many sums of constants", "128000000 values are made of constants alone"),
        ("two weights of one name", "two weights with the name 'w'"),
        ("attribute that is there twice", "attribute 'axis' twice"),
        ("nodes in another order", "Relu takes 'y', which nothing before it makes"),
        ("head that broadcasts to 6.4 GB", "Add makes 1600000000 values for a row, at most 16777216"),
        ("head that grows in steps", "Add makes 64000000000 values for a row"),
        ("head of a size that it computes", "Reshape makes a number of values that is not known beforehand"),
        ("weights in ../../secret", "weights in external files"),
        ("hard link that another wrote through", "fused/model.onnx was changed"),
        ("digests of two heads swapped", "heads/cat/1/model.onnx was changed; heads/dog/1/model.onnx was changed"),
        ("pipe in place of a file", "fused/model.onnx is no regular file"),
        ("patch to ../../escaped", "it has a file '../../escaped'; expected some of model.onnx"),
        ("patch whose ops unpack to 256 MiB", "it unpacks to more bytes than it says"),
        ("patch that makes 2 GiB of 20 kB", "it is to make 4294967296 bytes; at most"),
        ("patch that makes 200 MB of 20 kB said to be 2 GiB", "bytes, the patch is for"),
        ("patch of ops without end", "it has more than 262144 ops"),
        ("card.json of 900 MiB beside a hole of 4 GiB", "card.json is 943718400 bytes; at most 1"),
        ("card.json of four million lists", "card.json has some 8388610 values; at most 10"),
        ("card of four million lists", "has some 8388610 values; at most 10"),
        ("manifest of 900 MiB beside a hole of 4 GiB", "manifest.json is 943718400 bytes; at most 1"),
        ("manifest of four million lists", "manifest.json has some 8388610 values; at most 10"),
        ("pipe as JSON", "it is no regular file"),
        ("pipe as YAML", "x.yaml is no regular file"),
        ("pickle in .npz", "it holds pickled objects, which are never read: they can run code"),
        ("npz bomb as weights", "it unpacks to 4293918848 bytes"),
        ("head with a threshold of NaN", "it holds NaN"),
        ("YAML of a billion aliases", "has YAML aliases"),
        ("checkpoint that runs code", "which could run code; expected tensors"),
    ],
)
def test_the_reason_is_the_one_that_is_told(outcomes, name, words):
    (error,) = [row["error"] for row in outcomes if row["name"] == name]
    assert words in error
