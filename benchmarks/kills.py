"""SIGKILL at random times, with readers beside: publishing, publishing into a running server, head commands, the registry.

Each writer is a process that is killed at a moment drawn from the time that it takes; the next goes on from what the killed one
left. All the time one reader opens the newest bundles, one the registry's versions and its alias, one the repository as a server
that starts would, and clients ask the running server. A read is bad where it fails, or what it finds is not one bundle, whole.
"""

import os
import pickle
import random
import signal
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.export import export
from benchmarks.report import Row, main
from benchmarks.swap import CHANGED, judge_of, one_head_apart
from benchmarks.swap_clients import ROWS, Clients
from ovr.core.bundle import ModelBundle, open_bundle
from ovr.core.files import sha256_file
from ovr.errors import ArtifactError
from ovr.lifecycle.heads import last_version, retire, rollback
from ovr.lifecycle.put import NewHead, model_of, put
from ovr.registry.aliases import find, opened, promote
from ovr.registry.directory import Directory
from ovr.serving import embedded
from ovr.serving.contents import model_names, read_config, served_versions
from ovr.serving.repository import publish, settle
from ovr.serving.server import start

NUM_HEADS = 5
NUM_BUNDLES = 4
MODEL, ALIAS = "served", "champion"
FINISHED = 0


@dataclass
class Writer:
    """One thing that is written, round after round."""

    name: str
    write: Callable[[int], object]  # of the round
    times_s: list[float] = field(default_factory=list)  # of rounds that were not killed
    kills: int = 0


def measure(quick: bool) -> Iterator[Row]:
    embedded.install()
    num_kills, num_first = (12, 1) if quick else (500, 3)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        in_child(lambda: prepare(root))  # this process has no threads, so that it can be forked
        bundles = [open_bundle(root / f"bundle{number}") for number in range(NUM_BUNDLES)]
        with (root / "judge.pickle").open("rb") as file:
            x, judge = pickle.load(file)
        with start(root / "live") as server:
            writers = writers_of(root, bundles, server.http_url)
            for writer in writers:
                for number in range(num_first):
                    run(writer, number, None)
            clients = Clients((server.http_url, server.grpc_url), x, judge, num_clients=2, num_processes=1)
            readers = [reader(root, name, read) for name, read in readers_of(root, bundles).items()]
            try:
                kill_all(writers, num_kills, first=num_first)
            finally:
                (root / "stop").touch()
                for pid in readers:
                    os.waitpid(pid, 0)
                load = clients.stop()
            in_child(lambda: finish(root, bundles, server.http_url))
        seen = {name: pickle.loads((root / f"{name}.seen").read_bytes()) for name in readers_of(root, bundles)}
    for failure in [*load.failures[:3], *(bad for _, all_bad in seen.values() for bad in all_bad[:3])]:
        print(failure)
    for writer in writers:
        note = f"a round takes {statistics.median(writer.times_s):.2g} s"
        yield Row(f"kills: {writer.name}", "-", NUM_HEADS, writer.kills, None, "kills", None, note)
    yield Row("kills", "-", NUM_HEADS, sum(writer.kills for writer in writers), None, "kills", None)
    for name, (num_reads, _) in seen.items():
        yield Row(f"reads: {name}", "-", NUM_HEADS, num_reads, None, "reads", None)
    yield Row("reads: answers of the server", "-", NUM_HEADS, len(load.latencies_s), None, "reads", None)
    num_bad = len(load.failures) + sum(len(bad) for _, bad in seen.values())
    yield Row("bad reads", "-", NUM_HEADS, num_bad, None, "reads", None)


def prepare(root: Path) -> None:
    """Write bundles that differ in one head, publish the first, and what judges the server's answers."""
    bundles = one_head_apart(export(root / "bundle0", NUM_HEADS), root, NUM_BUNDLES)
    publish(bundles[0], root / "live")
    publish(bundles[0], root / "files" / "repo", layout="per_head")
    x = np.random.default_rng(0).normal(size=(max(ROWS), *bundles[0].input.shape)).astype(np.float32)
    with (root / "judge.pickle").open("wb") as file:
        pickle.dump((x, judge_of(root / "live", bundles, x)), file)


def writers_of(root: Path, bundles: list[ModelBundle], server: str) -> list[Writer]:
    """Return the four writers."""
    changed = bundles[1].taxonomy[CHANGED]
    head = bundles[1].head(changed.id)

    def change_head(number: int) -> None:
        out = root / "heads" / f"{number:04d}"
        if number % 3 == 0:
            put(bundles[1], out, [NewHead(changed, model_of(bundles[1], head), head.calibration, number / 1000)], entry={})
        elif number % 3 == 1:
            retire(bundles[2], out, [changed.id], entry={"round": number})
        else:
            rollback(bundles[3], out, [last_version(bundles[3], changed.id)], entry={"round": number})

    def keep(number: int) -> None:
        store = Directory(str(root / "registry"))
        newest = open_bundle(numbered(root / "heads")[-1])
        version = store.register(newest, MODEL, who="benchmark", why="w")
        promote(store, MODEL, version.version, ALIAS, who="benchmark", why="w")

    def publish_files(number: int) -> None:
        publish_other(bundles[number % NUM_BUNDLES], root / "files" / "repo", layout="per_head")

    def publish_live(number: int) -> None:
        publish_other(bundles[number % NUM_BUNDLES], root / "live", server=server, wait=False)

    return [
        Writer("publishing", publish_files),
        Writer("publishing into a running server", publish_live),
        Writer("head commands", change_head),
        Writer("registry", keep),
    ]


def publish_other(bundle: ModelBundle, repository: Path, **settings: object) -> None:
    try:
        publish(bundle, repository, **settings)  # type: ignore[arg-type]
    except ArtifactError as error:
        if "serves this bundle" not in str(error):  # the one that was killed had done it all
            raise


def readers_of(root: Path, bundles: list[ModelBundle]) -> dict[str, Callable[[], int]]:
    """Return the readers: each returns how many things it read, and raises where one is not whole."""
    onnx_digests = {sha256_file(file) for bundle in bundles for file in bundle.path.rglob("*.onnx")}
    bundle_digests = {bundle.bundle_sha256 for bundle in bundles}
    store = Directory(str(root / "registry"))

    def read_bundles() -> int:
        newest = numbered(root / "heads")[-2:]
        return len([open_bundle(path) for path in newest])

    def read_registry() -> int:
        newest = store.versions(MODEL)[-2:]
        return len([opened(store, version) for version in (*newest, find(store, MODEL, ALIAS))])

    def read_repository() -> int:
        """As a server that starts: whatever a configuration names is there, whole, and the callers find what they call."""
        repository = root / "files" / "repo"
        for _ in range(100):  # between two files the publisher may go on: then from the start
            configs = {name: read_config(repository, name) for name in reversed(model_names(repository))}  # callers first
            if all(served_versions(repository, name) == _versions(configs[name]) for name in ("ovr", "ovr_heads")):
                break
        else:
            raise AssertionError("the callers changed a hundred times")
        (version,) = _versions(configs["ovr"])
        assert version in _versions(configs["ovr_scores"])
        assert b'"bundle_sha256":"' in (card := (repository / "ovr" / str(version) / "card.json").read_bytes())
        assert any(digest.encode() in card for digest in bundle_digests)
        for name, config in configs.items():
            for step in config.ensemble_scheduling.step:
                assert step.model_version in _versions(configs[step.model_name]), (name, step.model_name)
            if name not in ("ovr", "ovr_heads"):
                for served in _versions(config):
                    assert sha256_file(repository / name / str(served) / "model.onnx") in onnx_digests, (name, served)
        return 1

    return {"bundles": read_bundles, "versions in the registry": read_registry, "repository": read_repository}


def _versions(config: object) -> set[int]:
    return set(config.version_policy.specific.versions)  # type: ignore[attr-defined]


def numbered(folder: Path) -> list[Path]:
    """Return what a directory holds under numbers, rising."""
    return sorted((each for each in folder.iterdir() if each.name.isdecimal()), key=lambda each: int(each.name))


def reader(root: Path, name: str, read: Callable[[], int]) -> int:
    """Return the process that reads until there is a file `stop`, and then notes how many reads there were and what was bad."""
    if pid := os.fork():
        return pid
    num_reads, bad = 0, []
    while not (root / "stop").exists():
        try:
            num_reads += read()
        except Exception:
            bad.append(f"{name}: {traceback.format_exc()}")
        time.sleep(0.005)  # the machine is for the writers too
    (root / f"{name}.seen").write_bytes(pickle.dumps((num_reads, bad)))
    os._exit(0)


def kill_all(writers: list[Writer], num_kills: int, *, first: int) -> None:
    """Kill the writers by turns until there were so many kills; each goes on where the killed one stopped."""
    rng, number = random.Random(0), first
    while sum(writer.kills for writer in writers) < num_kills:
        for writer in writers:
            longest_s = statistics.median(writer.times_s[-5:])
            run(writer, number, rng.uniform(0.0, longest_s))
        number += 1


def run(writer: Writer, number: int, kill_after_s: float | None) -> None:
    """Let a process write, and kill it after so long; a round that it finishes must succeed.

    What was killed is written again under the same number every other time, as a user repeats a command.
    """
    began = time.perf_counter()
    if (child := os.fork()) == 0:
        try:
            writer.write(number)
            os._exit(FINISHED)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == FINISHED:
        if kill_after_s is None:
            writer.times_s.append(time.perf_counter() - began)
        return
    if code != -signal.SIGKILL:
        raise RuntimeError(f"{writer.name} failed in round {number}")
    writer.kills += 1
    if number % 2:
        run(writer, number, None)


def in_child(work: Callable[[], object]) -> None:
    """Do the work in a process of its own, threads and all."""
    if (child := os.fork()) == 0:
        try:
            work()
            os._exit(FINISHED)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("a process that was not killed failed")


def finish(root: Path, bundles: list[ModelBundle], server: str) -> None:
    """Publish once more into both repositories; then one bundle is served, and nothing of killed writers lies about."""
    for bundle in bundles[:2]:
        publish_other(bundle, root / "live", server=server)
        publish_other(bundle, root / "files" / "repo", layout="per_head")
    settle(root / "live", server)
    for repository in (root / "live", root / "files" / "repo"):
        assert all(len(served_versions(repository, name)) == 1 for name in model_names(repository))
    left = [path for folder in (root, root / "files") for path in folder.iterdir() if path.name.startswith(".")]
    assert left == [], left


if __name__ == "__main__":
    main(measure, __doc__)
