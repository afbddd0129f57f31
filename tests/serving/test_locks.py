"""One publisher, or supervisors side by side."""

import os
import threading

import pytest

from ovr.serving import locks


@pytest.fixture
def opened(tmp_path):
    descriptors = [os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY) for _ in range(2)]
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


def test_supervisors_share_and_a_publisher_keeps_them_out(tmp_path, opened):
    with locks.shared(tmp_path) as first, locks.shared(tmp_path) as second:
        assert (first, second) == (True, True)
    assert locks.take_exclusive(opened[0])
    with locks.shared(tmp_path) as alone:
        assert not alone
    assert not locks.take_exclusive(opened[1])


def test_a_publisher_waits_for_a_supervisor(tmp_path, opened):
    got, looking = threading.Event(), threading.Event()

    def publish():
        looking.set()
        assert locks.take_exclusive(opened[0])
        got.set()

    with locks.shared(tmp_path) as alone:
        assert alone
        publisher = threading.Thread(target=publish)
        publisher.start()
        looking.wait()
        assert not got.wait(0.05)
    publisher.join(timeout=10)
    assert got.is_set()
