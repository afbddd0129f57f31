"""Processes of models are seen to end, on processes that are started for it."""

import os
import subprocess

import pytest

from ovr.serving import stubs
from tests.triton.processes import until


@pytest.fixture
def begin(tmp_path):
    """Start a child of this process with the command line of Triton's stub for a model's file."""
    begun = []

    def start(file):
        path = tmp_path / "repo" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("read nothing\n")
        process = subprocess.Popen([f"/backends/python/{stubs.STUB}", path, "more"], executable="/bin/sh", stdin=subprocess.PIPE)
        begun.append(process)
        until(lambda: process.pid in stubs.find_stubs(os.getpid()) or not file.split("/")[1].isdecimal())
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def test_the_processes_of_models_are_told_from_others(begin):
    first, second = begin("ovr/1/model.py"), begin("ovr_scores/12/model.onnx")
    begin("ovr/latest/model.py")  # no version
    with subprocess.Popen(["/bin/sh", "-c", "read nothing"], stdin=subprocess.PIPE) as other:
        assert stubs.find_stubs(os.getpid()) == {first.pid: ("ovr", 1), second.pid: ("ovr_scores", 12)}
        other.stdin.close()


def test_a_process_that_ends_is_missed_though_nobody_has_waited_for_it(begin):
    first = begin("ovr/1/model.py")
    begin("ovr_scores/1/model.onnx")
    before = stubs.find_stubs(os.getpid())
    assert stubs.lost(before, os.getpid()) == set()
    first.kill()
    until(lambda: not stubs.is_alive(first.pid))
    assert stubs.lost(before, os.getpid()) == {("ovr", 1)}


def test_a_process_that_another_has_taken_the_place_of_is_not_missed(begin):
    first = begin("ovr/1/model.py")
    before = stubs.find_stubs(os.getpid())
    begin("ovr/1/model.py")
    first.kill()
    until(lambda: not stubs.is_alive(first.pid))
    assert stubs.lost(before, os.getpid()) == set()


def test_a_server_that_is_not_there_has_none():
    assert stubs.find_stubs(2**22 + 1) == {}
    assert not stubs.is_alive(2**22 + 1)
