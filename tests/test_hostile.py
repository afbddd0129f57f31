"""Artifacts that mean harm are refused in the words of ovr, in under a second and 512 MiB each, and nothing of theirs runs."""

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
        ("weights in ../../secret", "weights in external files"),
        ("hard link that another wrote through", "fused/model.onnx was changed"),
        ("digests of two heads swapped", "heads/cat/1/model.onnx was changed; heads/dog/1/model.onnx was changed"),
        ("pipe in place of a file", "fused/model.onnx is no regular file"),
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
