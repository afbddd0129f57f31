"""Small tables and runs on them, by the configuration that a user would use."""

import csv
from pathlib import Path

import numpy as np
import pytest

QUICK = ["backbone.hidden=[8]", "trainer.max_epochs=4", "batch_size=16", "~callback.progress"]


@pytest.fixture(scope="session")
def write_table():
    """Return a writer of a CSV file with three features that tell the classes apart."""

    def write(path: Path, class_ids: list[str], *, seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        centre = {class_id: rng.normal(size=3) * 2 for class_id in sorted(set(class_ids))}
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["a", "b", "c", "label"])
            writer.writerows([*(centre[class_id] + rng.normal(size=3)), class_id] for class_id in class_ids)
        return path

    return write


def compose_recipe(run_dir: Path, *overrides: str):
    """Return the recipe and splits of `ovr train` with these overrides."""
    # Here, as a GPU machine may lack Hydra, and some tests of this folder need nothing of it.
    from hydra import compose, initialize_config_dir
    from omegaconf import open_dict

    from ovr.cli.main import conf_dir
    from ovr.cli.train import prepare

    with initialize_config_dir(str(conf_dir()), version_base=None):
        cfg = compose("train", overrides=list(overrides))
    with open_dict(cfg):
        cfg.paths.run_dir = str(run_dir)
    return prepare(cfg)


@pytest.fixture
def configure():
    """Return a function of (run_dir, overrides) that gives the recipe and splits of a quick `ovr train data=table`."""
    return lambda run_dir, *overrides: compose_recipe(run_dir, "data=table", "data.target=label", *QUICK, *overrides)
