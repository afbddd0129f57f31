"""Run as a script: publishers that are stopped at each of their system steps in turn, and what is served after each.

    python -m tests.serving.stopped_publishers DIRECTORY fused|left|per_head kill|error|full

DIRECTORY holds the bundles `first`, `second` and `third`. The first publication (with layout fused), that of the second bundle over
the first, and the way back are each stopped, and with `left` instead those that do not wait for the old versions to go, beside old
versions that were left loaded: by SIGKILL, by one call that fails, or by a disk on which from then on nothing can be
written. A server that runs on is stood in for by a record of what was loaded, which must be consistent after every load. Without
fsync, which is for power failures and takes most of the time.
"""

import errno
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from ovr.core.bundle import ModelBundle, open_bundle
from ovr.errors import ArtifactError, ServingError
from ovr.serving import control, models, repository
from ovr.serving.contents import read_config
from ovr.serving.repository import publish
from tests.serving.consistency import check_plan, check_repository

STEPS = {"os.rename", "os.mkdir", "os.link", "os.remove", "os.rmdir", "shutil.rmtree"}
MADE, STOPPED, HELD_ON = 0, 3, 4  # exit codes; held on: there was another way round the step that failed


class StandIn:
    """What a server on `repository` has loaded: kept in a file, as it lives on where the publisher is killed."""

    def __init__(self, path: Path, repository: Path) -> None:
        self.path, self.repository = path, repository
        path.write_text("{}")

    @property
    def loaded(self) -> dict[str, list[int]]:
        return json.loads(self.path.read_text())

    def load(self, url: str, name: str) -> None:
        config = read_config(self.repository, name)
        if config is None:
            raise ServingError(f"no model {name}")
        versions = list(config.version_policy.specific.versions)
        assert all((self.repository / name / str(version)).is_dir() for version in versions)
        loaded = {**self.loaded, name: versions}
        if "ovr" in loaded:
            assert loaded["ovr"][-1] in loaded["ovr_scores"], loaded
            check_plan(self.repository, loaded["ovr"][-1], loaded)
        if name == "ovr_heads":
            assert all(step.model_version in loaded[step.model_name] for step in config.ensemble_scheduling.step), loaded
        self.path.write_text(json.dumps(loaded))

    def unload(self, url: str, name: str) -> None:
        self.path.write_text(json.dumps({key: value for key, value in self.loaded.items() if key != name}))

    def install(self) -> None:
        control.check_live = lambda url: None
        control.load_model = self.load
        control.unload_model = self.unload
        control.ready_versions = lambda url: {name: set(versions) for name, versions in self.loaded.items()}
        control.failed_versions = lambda url, name: []
        control.model_parameters = lambda url, name: None
        control.wait_until_alone = lambda url, name, *versions: None
        control.live_versions = lambda url, name: set(self.loaded.get(name, ()))
        repository.RecordedAnswers = lambda bundle, server, max_batch_size: Answers(bundle, self)  # type: ignore[misc]


class Answers:
    """Every version that is loaded gives the recorded answers."""

    def __init__(self, bundle: ModelBundle, server: StandIn) -> None:
        self.bundle, self.server = bundle, server

    def check_scores(self, version: int) -> None:
        assert version in self.server.loaded["ovr_scores"]

    def check_router(self, version: int) -> None:
        assert [version] == self.server.loaded["ovr"]

    def check_ensemble(self, version: int) -> None:
        assert [version] == self.server.loaded["ovr_heads"]

    def check_heads(self, version: int, class_ids: list[str]) -> None:
        assert version in self.server.loaded["backbone"]


def stop_at(number: int, under: Path, fault: str) -> Callable[[], bool]:
    """From now on count what this process changes under `under` and stop it at that number; return whether it got there."""
    seen, over = 0, False

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen, over
        writes = event == "open" and bool(arguments[1]) and bool(set(str(arguments[1])) & set("wx"))
        if over or not (writes or event in STEPS) or str(under) not in str(arguments):
            return
        seen += 1
        if fault == "kill" and seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "error" and seen == number:
            over = True
            raise OSError(errno.EIO, "the step fails")
        if fault == "full" and seen >= number and (writes or event in ("os.mkdir", "os.link")):
            raise OSError(errno.ENOSPC, "the disk is full")

    sys.addaudithook(hook)
    return lambda: seen >= number


def stopped(number: int, under: Path, fault: str, bundle: ModelBundle, **settings: object) -> int:
    """Return the exit code of a child that published and was to be stopped at its change `number`."""
    if (child := os.fork()) == 0:
        try:
            reached = stop_at(number, under, fault)
            publish(bundle, under / "repo", **settings)  # type: ignore[arg-type]
        except (ArtifactError, OSError) as error:
            os._exit(STOPPED if "the step fails" in str(error) or "the disk is full" in str(error) else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(HELD_ON if reached() else MADE)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (MADE, STOPPED, HELD_ON, -signal.SIGKILL), code
    return code


def at_each_step(
    root: Path, start: Path | None, new: ModelBundle, old: ModelBundle, fault: str, layout: str, *, wait: bool = True
) -> int:
    """Stop a publication of `new` at each step, and return how many there were."""
    settings = {"layout": layout, "server": "http://stand.in"}
    under = root / "run"
    number = 0
    while True:
        number += 1
        under.mkdir()
        server = StandIn(root / "loaded.json", under / "repo")
        server.install()
        before = None
        if start is not None:
            shutil.copytree(start, under / "repo")
            before = check_repository(under / "repo")
            start_server(server)
        code = stopped(number, under, fault, new, wait=wait, **settings)
        served = check_repository(under / "repo") if (under / "repo").exists() else None
        if code == STOPPED and fault == "error":  # all was taken back, or all but the end was done
            assert [served] in ([before], live(server))
        if code in (MADE, HELD_ON):
            assert served == versions(under / "repo", new)
        if code != MADE:
            # a server that runs on, and one that is started now
            assert before is None or live(server)[0] in (before, versions(under / "repo", new))
            again = new if number % 2 or start is None else old
            try:
                published = publish(again, under / "repo", **settings)  # type: ignore[arg-type]
                assert check_repository(under / "repo") == published.versions["ovr"]
                assert server.loaded == {name: [version] for name, version in published.versions.items()}
            except ArtifactError as error:
                if "serves this bundle" not in str(error):
                    raise
                assert server.loaded == {name: read_versions(under / "repo", name) for name in server.loaded}
            assert [path.name for path in under.iterdir()] == ["repo"]
        shutil.rmtree(under)
        if code == MADE:
            return number - 1


def start_server(server: StandIn) -> None:
    names = sorted((path.name for path in server.repository.iterdir()), key=lambda name: name in ("ovr", "ovr_heads"))
    for name in names:
        server.load("", name)


def live(server: StandIn) -> list[int]:
    return server.loaded.get("ovr", [0])


def versions(repo: Path, bundle: ModelBundle) -> int:
    """Return the version that the repository holds the bundle as, 0 where it does not."""
    cards = (repo / "ovr").glob("*/card.json")
    return next((int(p.parent.name) for p in cards if json.loads(p.read_text())["bundle_sha256"] == bundle.bundle_sha256), 0)


def read_versions(repo: Path, name: str) -> list[int]:
    config = read_config(repo, name)
    assert config is not None
    return list(config.version_policy.specific.versions)


def main(root: Path, layout: str, fault: str) -> None:
    """Check three publications, and print how many steps each has."""
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    models.import_closure = lambda module: {"ovr/__init__.py": b"", "ovr/router.py": b"router"}  # type: ignore[assignment]
    first, second, third = (open_bundle(root / name) for name in ("first", "second", "third"))
    if layout == "left":
        return left(root, first, second, third, fault)
    if layout == "fused":  # the other adds steps of the same kind
        print("first", at_each_step(root, None, first, second, fault, layout))
    publish(first, root / "one" / "repo", layout=layout)  # type: ignore[arg-type]
    print("next", at_each_step(root, root / "one" / "repo", second, first, fault, layout))
    shutil.copytree(root / "one", root / "two")
    publish(second, root / "two" / "repo", layout=layout)  # type: ignore[arg-type]
    print("back", at_each_step(root, root / "two" / "repo", first, second, fault, layout))


def left(root: Path, first: ModelBundle, second: ModelBundle, third: ModelBundle, fault: str) -> None:
    """Check publications where the scores of the version before are still loaded: of other classes, and back to that version."""
    repository = root / "one" / "repo"
    publish(second, repository)
    server = StandIn(root / "loaded.json", repository)
    server.install()
    start_server(server)
    publish(third, repository, server="http://stand.in", wait=False)
    assert server.loaded == {"ovr": [2], "ovr_scores": [1, 2]}
    print("next", at_each_step(root, repository, first, third, fault, "fused", wait=False))
    print("back", at_each_step(root, repository, second, third, fault, "fused", wait=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
