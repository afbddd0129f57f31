"""Fixtures that more than one folder of tests uses."""

import logging
import sys
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@contextmanager
def logging_restored():
    """Take back what a command run in this process does to logging: its handlers write to a stream that ends with the test.

    A fixture of a module that runs a command needs it too: the next command forgets the first one's handlers without closing them.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers[:], root.level = handlers, level


@pytest.fixture(autouse=True)
def logging_as_it_was():
    with logging_restored():
        yield


@pytest.fixture(autouse=True)
def operators_of_onnx_are_read_once():
    """torch.onnx parses the sources of its 500 operators again at every export, which is a third of what a small run takes."""
    exporter = sys.modules.get("torch.onnx._internal.exporter._registration")
    if exporter is not None and not hasattr(exporter.ONNXRegistry.from_torchlib, "cache_info"):
        exporter.ONNXRegistry.from_torchlib = staticmethod(cache(exporter.ONNXRegistry.from_torchlib))


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that processes that share the files end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("triton")}
    items.sort(key=lambda item: item.path not in slow)
