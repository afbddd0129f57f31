"""What tests of `ovr predict` on files share."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq

from ovr.cli.main import main


def command(bundle, source, output, *more):
    return ["predict", f"bundle={bundle}", f"input={source}", f"output={output}", *more]


def probs(path):
    """Return the probabilities in an output."""
    if path.suffix == ".parquet":
        answers = pq.read_table(path)
        return np.stack([answers[name].to_numpy() for name in answers.column_names if name.startswith("prob:")], axis=1)
    if path.suffix == ".jsonl":
        return np.array([list(json.loads(line)["prob"].values()) for line in path.read_text().splitlines()], np.float32)
    with path.open(newline="") as file:
        return np.array([[float(v) for k, v in row.items() if k.startswith("prob:")] for row in csv.DictReader(file)], np.float32)


def error_of_late(capsys, *args):
    """Return the message of a command that fails after it has shown its progress."""
    assert main(args) == 1
    return capsys.readouterr().err.partition("error: ")[2]
