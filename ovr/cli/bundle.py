"""`ovr bundle ...`: a registry's versions of a model, the aliases that name them, and where they came from. Needs no torch."""

import getpass
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ovr.cli.instantiate import build
from ovr.cli.labelled_rows import class_ids
from ovr.cli.tables import table
from ovr.errors import ConfigError
from ovr.registry.entries import Store


def register_bundle(cfg: DictConfig) -> None:
    """Keep the bundle as the next version of a model and print its number; one that is kept gets the signatures that it has by now.

    Raises:
        ConfigError: a setting that cannot be used.
        ArtifactError: the bundle cannot be used or has another graph than its heads', or the registry cannot be read.
    """
    from ovr.core.bundle import open_bundle
    from ovr.export.derived import check_derived

    store, model = _store(cfg), text(cfg, "model")
    said = {"who": who(cfg), "why": text(cfg, "why")}
    bundle = open_bundle(Path(cfg.bundle))
    check_derived(bundle)
    known = {version.bundle_sha256 for version in store.versions(model)}
    version = store.register(bundle, model, **said)
    how = "is" if version.bundle_sha256 in known else "is now"
    print(f"bundle {version.bundle_sha256[:12]} {how} version {version.version} of {version.model}, in {store.name}")


def list_bundle(cfg: DictConfig) -> None:
    """Print the versions of a model, or of every model, the newest first, and the aliases of heads.

    Raises:
        ConfigError: there is no such model, or nothing at all.
        ArtifactError: the registry cannot be read.
    """
    from ovr.registry.aliases import known_versions

    store = _store(cfg)
    models = store.models() if cfg.model is None else [text(cfg, "model")]
    if not models:
        raise ConfigError(f"{store.name} has no models; `ovr bundle register` adds one")
    found = {model: (known_versions(store, model), store.aliases(model)) for model in models}
    if cfg.json:
        value = {
            model: {"versions": [version.to_json() for version in versions], "aliases": asdict(aliases)}
            for model, (versions, aliases) in found.items()
        }
        print(json.dumps(value, ensure_ascii=False))
        return
    lines, heads = [], []
    for model, (versions, aliases) in found.items():
        numbers = {version.bundle_sha256: version.version for version in versions}
        for version in reversed(versions):
            named = ", ".join(sorted(alias for alias, number in aliases.model.items() if number == version.version))
            parent = version.parent_bundle_sha256
            made_of = numbers.get(parent, parent[:12]) if parent is not None else None
            told = (version.bundle_sha256[:12], made_of, version.who, version.when, version.why)
            lines.append([model, version.version, named, *told])
        for class_id, places in sorted(aliases.heads.items()):
            heads += [[model, class_id, alias, place.head_version, place.version] for alias, place in sorted(places.items())]
    print_table([["model", "version", "aliases", "bundle", "parent", "who", "when", "why"], *lines], max_lines=cfg.max_lines)
    if heads:
        print()
        print_table([["model", "class", "alias", "head_version", "in_version"], *heads], max_lines=cfg.max_lines)


def promote_bundle(cfg: DictConfig) -> None:
    """Move an alias, of the model or of heads, and print from where to where.

    Raises:
        ConfigError: no such model or version, or a setting that cannot be used.
        TaxonomyError: a class that the version does not have.
        ArtifactError: the version's bundle is damaged, or the alias is not where it was expected to be.
    """
    from ovr.registry.aliases import promote

    if cfg["class"] is not None and cfg.classes is not None:
        raise ConfigError("give class=ID or classes=[ID,...], and not both")
    ids = class_ids(cfg.classes, key="classes") if cfg["class"] is None else [text(cfg, "class")]
    model, alias = text(cfg, "model"), text(cfg, "alias")
    said = {"who": who(cfg), "why": text(cfg, "why")}
    moves = promote(_store(cfg), model, cfg.version, alias, class_ids=ids, expect=cfg.expect, **said)
    for move in moves:
        of = model if move.class_id is None else f"class {move.class_id} of {model}"
        head = "" if move.head_version is None else f" (head version {move.head_version})"
        print(f"{move.alias} of {of}: {'none' if move.before is None else move.before} -> {move.version}{head}")
    if not moves:
        print(f"{alias} names that version already; nothing moved")


def lineage_bundle(cfg: DictConfig) -> None:
    """Print each step of a version's making, the files of data that it read, and the moves of aliases.

    Raises:
        ConfigError: no such model, version or alias.
        ArtifactError: the version's bundle is damaged.
    """
    from ovr.registry.aliases import find
    from ovr.registry.lineage import lineage

    store = _store(cfg)
    found = lineage(store, find(store, text(cfg, "model"), cfg.version))
    if cfg.json:
        print(json.dumps(found.to_json(), ensure_ascii=False))
        return
    version = found.version
    print(f"version {version.version} of {version.model}, registered by {version.who} at {version.when}: {version.why}\n")
    steps, files, moves = [], [], []
    for step in found.steps:
        digests = (step.bundle_sha256, step.parent_bundle_sha256, step.from_bundle_sha256, step.git_commit)
        bundle, parent, heads_of, commit = ("" if digest is None else digest[:12] for digest in digests)
        commit += ", changed" if step.details.get("git_dirty") else ""
        classes = ", ".join(map(str, step.details.get("classes") or ()))
        steps.append(
            [
                step.command,
                classes,
                bundle,
                step.version,
                parent,
                heads_of,
                step.when,
                commit,
                step.who,
                step.why,
                gate_words(step.details),
            ]
        )
        files += [[step.command, file.get("name"), file.get("sha256"), file.get("size_bytes")] for file in step.files]
    header = ["step", "classes", "bundle", "version", "parent", "heads_from", "when", "commit", "who", "why", "gate"]
    print_table([header, *steps], max_lines=cfg.max_lines)
    if files:
        print()
        print_table([["step", "file", "sha256", "bytes"], *files], max_lines=cfg.max_lines)
    elif version.data_sha256 is not None:
        print(f"\nno files of data; its data card is {version.data_sha256}")
    for move in found.moves:
        moves.append([move.alias, move.class_id, move.before, move.version, move.who, move.when, move.why])
    if moves:
        print()
        print_table([["alias", "class", "from", "to", "who", "when", "why"], *moves], max_lines=cfg.max_lines)


def gate_words(told: dict[str, Any]) -> str:
    """Return what the gate said of the heads of a step; nothing of training and of steps that changed no head."""
    verdicts = told.get("gate")
    if not isinstance(verdicts, dict):
        return "none" if told.get("gated") is False and told.get("num_changed_heads") else ""
    words = [f"forced: {', '.join(told['forced'])}"] if told.get("forced") else ["passed"]
    if told.get("ungated"):
        words.append(f"none: {', '.join(told['ungated'])}")
    for key, what in (("undecided", "undecided"), ("looser_than_default", "looser")):
        if found := dict.fromkeys(name for verdict in verdicts.values() for name in verdict.get(key, ())):
            words.append(f"{what}: {', '.join(found)}")
    return "; ".join(words)


def path_bundle(cfg: DictConfig) -> None:
    """Print the directory of a version.

    Raises:
        ConfigError: no such model, version or alias.
        ArtifactError: the bundle cannot be fetched.
    """
    from ovr.registry.aliases import bundle_path

    class_id = None if cfg["class"] is None else text(cfg, "class")
    print(bundle_path(_store(cfg), text(cfg, "model"), cfg.version, class_id=class_id))


def _store(cfg: DictConfig) -> Store:
    """Return the registry that the configuration names."""
    store: Store = build(cfg.registry, cfg.allow_targets)
    return store


def text(cfg: DictConfig, key: str) -> str:
    """Return a name or some words of the configuration.

    Raises:
        ConfigError: it is something else; Hydra reads 7 as a number, and of 1.50 or true the spelling is lost.
    """
    if type(cfg[key]) not in (str, int):
        raise ConfigError(f"{key} is {cfg[key]!r}, which is no text; quote what Hydra reads as something else")
    return str(cfg[key])


def who(cfg: DictConfig) -> str:
    """Return who registers or promotes.

    Raises:
        ConfigError: it is not given, and the process has no user with a name.
    """
    if cfg.who is not None:
        return text(cfg, "who")
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise ConfigError("the user of this process has no name; say who=NAME") from None


def print_table(lines: Sequence[Sequence[Any]], *, max_lines: int) -> None:
    """Print a header and up to `max_lines` lines, empty cells for None.

    Raises:
        ConfigError: `max_lines` is no whole number of at least 0.
    """
    if not isinstance(max_lines, int) or isinstance(max_lines, bool) or max_lines < 0:
        raise ConfigError(f"max_lines is {max_lines!r}; expected a whole number of at least 0")
    print(table([["" if cell is None else cell for cell in line] for line in lines[: max_lines + 1]]))
    if len(lines) > max_lines + 1:
        print(f"and {len(lines) - max_lines - 1} more; json=true prints all of them")
