"""Run as a script: many processes on one registry, then writers that are killed at each of their system calls in turn.

    python -m tests.registry.many_writers DIRECTORY

As a script, because a process with threads must not be forked. Without fsync, which is for power failures and takes most of
the time.
"""

import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from ovr.core.bundle import ModelBundle
from ovr.errors import ArtifactError
from ovr.registry.aliases import find, opened, promote
from ovr.registry.directory import Directory
from tests.core.killed_writers import killed
from tests.core.parts import write

PROCESSES = 4
ROUNDS = 10


def together(work: Callable[[int], int]) -> int:
    """Do `work` in four processes at once and return the sum of what it returns, at most 63 each."""
    children = []
    for process in range(PROCESSES):
        if (child := os.fork()) == 0:
            try:
                os._exit(work(process))
            except BaseException:
                traceback.print_exc()
                os._exit(255)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert max(codes) < 64, codes
    return sum(codes)


def at_once(root: Path, bundles: list[ModelBundle]) -> None:
    """Eight bundles, each registered by all; forty moves, none lost; of four that expect the same version, one wins."""
    store = Directory(str(root / "at_once"))

    def register(process: int) -> int:
        for number in range(len(bundles)):
            bundle = bundles[(number + 2 * process) % len(bundles)]
            assert opened(store, store.register(bundle, "m", who=str(process), why="w")).bundle_sha256 == bundle.bundle_sha256
        return 0

    together(register)
    versions = store.versions("m")
    assert [version.version for version in versions] == list(range(1, len(bundles) + 1))
    assert {version.bundle_sha256 for version in versions} == {bundle.bundle_sha256 for bundle in bundles}

    def move(process: int) -> int:
        for number in range(ROUNDS):
            promote(store, "m", number % len(bundles) + 1, f"of{process}", who=str(process), why=str(number))
            find(store, "m", f"of{process}")
        return 0

    together(move)
    moves = store.moves("m")
    for process in range(PROCESSES):
        of = [move for move in moves if move.who == str(process)]
        assert [move.why for move in of] == [str(number) for number in range(ROUNDS)]
        assert [move.before for move in of[1:]] == [move.version for move in of[:-1]]

    promote(store, "m", 1, "champion", who="first", why="w")
    won = 0
    for number in range(ROUNDS):
        old, new = number % 2 + 1, (number + 1) % 2 + 1

        def take(process: int, old: int = old, new: int = new) -> int:
            try:
                return len(promote(store, "m", new, "champion", who=str(process), why="w", expect=old))
            except ArtifactError as error:
                if f"names version {new} by now, not version {old}" not in str(error):
                    raise
                return 0

        won += together(take)
    print("versions", len(versions), "moves", len(moves), "won", won)


def killed_at_each_step(root: Path, bundles: list[ModelBundle]) -> None:
    """After each kill, readers see the old state or the new, and the next writer goes on from it and leaves nothing beside it."""
    first, second = bundles[:2]
    path, number, half = root / "killed", 1, 0
    store = Directory(str(path))
    while killed(number, path, lambda: store.register(second, "m", who="a", why="w")):
        for version in store.versions("m"):
            opened(store, version)
        there = [version.bundle_sha256 for version in store.versions("m")]
        assert there in ([], [second.bundle_sha256])
        assert store.models() == (["m"] if there else [])
        versions = path / "m" / "versions"
        half += versions.is_dir() and any(each.name.startswith(".") for each in versions.iterdir())
        assert store.register(second, "m", who="a", why="w").version == 1
        assert [each.name for each in versions.iterdir()] == ["1"]
        shutil.rmtree(path)
        number += 1
    print("register", number - 1, half)

    number, new = 1, 0
    store.register(first, "m", who="a", why="w")
    store.register(second, "m", who="a", why="w")
    promote(store, "m", 1, "champion", who="a", why="w")
    while killed(number, path, lambda: promote(store, "m", 2, "champion", who="a", why="w")):
        moved = find(store, "m", "champion").version == 2
        assert len(store.moves("m")) == 2 * number - 1 + moved
        new += moved
        promote(store, "m", 2, "champion", who="a", why="w")
        promote(store, "m", 1, "champion", who="a", why="w")
        assert not [each for each in (path / "m").iterdir() if each.name.startswith(".")]
        number += 1
    print("move", number - 1, new)


def main(root: Path) -> None:
    """Check both, and print how many points there were."""
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    bundles = [write(root / f"bundle{number}", provenance={"seed": number}) for number in range(8)]
    at_once(root, bundles)
    killed_at_each_step(root, bundles)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
