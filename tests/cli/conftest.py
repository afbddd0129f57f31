"""A small bundle, made once."""

import numpy as np
import pytest

from ovr.core.bundle import open_bundle
from tests.bundles import small_bundle
from tests.export.sample import sample_bundle, sample_model

CLASS_IDS = ("cat", 'a/b, "c"', "größe", "train")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    sample_bundle(path, sample_model(num_heads=len(CLASS_IDS)), CLASS_IDS)
    return open_bundle(path)


@pytest.fixture(scope="session")
def numbers(tmp_path_factory):
    """A model of rows of six numbers."""
    return small_bundle(tmp_path_factory.mktemp("numbers") / "bundle").path


@pytest.fixture
def x(rng):
    return rng.normal(size=(5_000, 6)).astype(np.float32)
