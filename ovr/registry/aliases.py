"""Finding a version by its number or by an alias, and moving aliases. Knows not where they are kept."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from ovr.core.bundle import ModelBundle, open_bundle
from ovr.core.nearest import nearest
from ovr.errors import ArtifactError, ConfigError, TaxonomyError
from ovr.registry.entries import Move, Store, Version, check_name, check_text, now

MAX_SHOWN = 10


def find(store: Store, model: str, reference: int | str, *, class_id: str | None = None) -> Version:
    """Return the version of `model` with this number, or that an alias of this name names.

    Args:
        reference: a number, also as text, or an alias.
        class_id: an alias is that of this class's head; None: of the model.

    Raises:
        ConfigError: no such model, version or alias; the nearest are named.
        ArtifactError: the alias names a version that is not there.
    """
    if isinstance(reference, bool) or not isinstance(reference, int | str):
        raise ConfigError(f"version is {reference!r}; expected a number or an alias")
    by_number = {version.version: version for version in known_versions(store, model)}
    if isinstance(reference, int) or reference.isdecimal():
        if int(reference) not in by_number:
            raise ConfigError(f"{model!r} has no version {reference}; it has {_numbers(list(by_number))}")
        return by_number[int(reference)]
    aliases = store.aliases(model)
    number = aliases.version(reference, class_id)
    if number is None:
        known = aliases.model if class_id is None else aliases.heads.get(class_id, {})
        whose = f"{model!r}" if class_id is None else f"class {class_id!r} of {model!r}"
        if class_id is not None and not known and (near := nearest(class_id, aliases.heads)):
            raise ConfigError(f"{whose} has no aliases; {near}")
        raise ConfigError(f"{whose} has no alias {reference!r}; {_named(reference, known) or 'it has none'}")
    if number not in by_number:  # a version that came, and was named, since the others were read
        by_number = {version.version: version for version in known_versions(store, model)}
    if number not in by_number:
        raise ArtifactError(f"alias {reference!r} of {model!r} names version {number}, which is not in {store.name}")
    return by_number[number]


def known_versions(store: Store, model: str) -> list[Version]:
    """Return the versions of `model` by their numbers.

    Raises:
        ConfigError: there is no such model; the nearest are named.
    """
    if versions := store.versions(model):
        return versions
    models = store.models()
    there = _named(model, models) if models else "it has none: `ovr bundle register` adds one"
    raise ConfigError(f"{store.name} has no model {model!r}; {there}")


def opened(store: Store, version: Version) -> ModelBundle:
    """Return a version's bundle, every digest checked.

    Raises:
        ArtifactError: it is damaged, or another one than was registered.
    """
    bundle = open_bundle(store.bundle_path(version))
    if bundle.bundle_sha256 != version.bundle_sha256:
        raise ArtifactError(
            f"{bundle.path} holds bundle {bundle.bundle_sha256[:12]}; version {version.version} of {version.model!r} was "
            f"registered as {version.bundle_sha256[:12]}"
        )
    return bundle


def bundle_path(store: Store, model: str, reference: int | str, *, class_id: str | None = None) -> Path:
    """Return the directory of the bundle that `find` finds.

    Raises:
        ConfigError: no such model, version or alias.
        ArtifactError: the alias names a version that is not there.
    """
    return store.bundle_path(find(store, model, reference, class_id=class_id))


def promote(
    store: Store,
    model: str,
    reference: int | str,
    alias: str,
    *,
    who: str,
    why: str,
    class_ids: Sequence[str] | None = None,
    expect: int | Literal["none"] | None = None,
) -> list[Move]:
    """Let an alias name a version, of the model or of the heads of some classes, and return what moved.

    A move back is a move like any other. Nothing is noted of an alias that names the version already.

    Args:
        reference: the number of a version, or an alias of the model.
        class_ids: None: the alias of the model.
        expect: the version that the alias must name now, "none" for none; where it names another, nothing moves. None: any.

    Raises:
        ConfigError: no such model or version; a name that cannot be used; the store cannot keep others out, and `expect` is given.
        TaxonomyError: a class that the version's bundle does not have.
        ArtifactError: the bundle is damaged; or the alias is not where it was expected to be.
    """
    check_name("alias", alias)
    check_text("who", who)
    check_text("why", why)
    if expect is not None and expect != "none" and (isinstance(expect, bool) or not isinstance(expect, int)):
        raise ConfigError(f"expect is {expect!r}; expected the number of a version, or none")
    if expect is not None and not store.excludes_others:
        raise ConfigError(
            f"{store.name} cannot keep other writers out while an alias moves, so expect={expect} would promise nothing"
        )
    version = find(store, model, reference)
    bundle = opened(store, version)
    head_versions = _head_versions(bundle, version, class_ids)
    with store.locked(model):
        aliases, when = store.aliases(model), now()
        moves = []
        for class_id, head_version in head_versions.items():
            before = aliases.version(alias, class_id)
            if expect is not None and before != (expected := None if expect == "none" else expect):
                raise ArtifactError(
                    f"alias {alias!r} of {(model if class_id is None else class_id)!r} names {_version(before)} by now, not "
                    f"{_version(expected)}; {_last(store, model, alias, class_id)}nothing was moved"
                )
            if before != version.version:
                moves.append(Move(alias, class_id, before, version.version, head_version, who, when, why))
        if moves:
            store.write(model, moves)
    return moves


def _head_versions(bundle: ModelBundle, version: Version, class_ids: Sequence[str] | None) -> dict[str | None, int | None]:
    """Return the head's version of each class; None for the model itself."""
    if class_ids is None:
        return {None: None}
    known = set(bundle.taxonomy.ids)
    if unknown := [class_id for class_id in class_ids if class_id not in known]:
        near = _named(unknown[0], bundle.taxonomy.ids)
        raise TaxonomyError(f"version {version.version} of {version.model!r} has no class {unknown[0]!r}; {near}")
    return {class_id: bundle.head(class_id).version for class_id in class_ids}


def _last(store: Store, model: str, alias: str, class_id: str | None) -> str:
    """Return who moved the alias last."""
    of = [move for move in store.moves(model) if (move.alias, move.class_id) == (alias, class_id)]
    return f"{of[-1].who} moved it at {of[-1].when} ({of[-1].why}); " if of else ""


def _version(number: int | None) -> str:
    return "no version" if number is None else f"version {number}"


def _numbers(numbers: list[int]) -> str:
    """Return numbers in words: 1 to 7, or 1, 2, 5."""
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]} alone"
    return ", ".join(map(str, numbers[-MAX_SHOWN:]))


def _named(name: str, known: Iterable[str]) -> str:
    """Return what may have been meant, or else what there is."""
    names = list(known)
    more = ", ..." if len(names) > MAX_SHOWN else ""
    return nearest(name, names) or (f"there are: {', '.join(names[:MAX_SHOWN])}{more}" if names else "")
