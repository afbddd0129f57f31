"""A small bundle, made once."""

import pytest

from ovr.core.bundle import open_bundle
from tests.export.sample import sample_bundle, sample_model

CLASS_IDS = ("cat", 'a/b, "c"', "größe", "train")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    sample_bundle(path, sample_model(num_heads=len(CLASS_IDS)), CLASS_IDS)
    return open_bundle(path)
