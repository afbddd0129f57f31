"""`ovr bundle lineage`: what a version was made from. Needs no torch."""

import json

from omegaconf import DictConfig

from ovr.cli.registry import print_table, store_of, text


def run(cfg: DictConfig) -> None:
    """Print each step of a version's making, the files of data that it read, and the moves of aliases.

    Raises:
        ConfigError: no such model, version or alias.
        ArtifactError: the version's bundle is damaged.
    """
    from ovr.registry.aliases import find
    from ovr.registry.lineage import lineage

    store = store_of(cfg)
    found = lineage(store, find(store, text(cfg, "model"), cfg.version))
    if cfg.json:
        print(json.dumps(found.to_json(), ensure_ascii=False))
        return
    version = found.version
    print(f"version {version.version} of {version.model}, registered by {version.who} at {version.when}: {version.why}\n")
    steps, files, moves = [], [], []
    for step in found.steps:
        parent, commit = (None if digest is None else digest[:12] for digest in (step.parent_bundle_sha256, step.git_commit))
        commit = f"{commit}, changed" if step.details.get("git_dirty") else commit
        steps.append([step.command, step.bundle_sha256[:12], step.version, parent, step.when, commit, step.who, step.why])
        files += [[step.command, file.get("name"), file.get("sha256"), file.get("size_bytes")] for file in step.files]
    print_table([["step", "bundle", "version", "parent", "when", "commit", "who", "why"], *steps], max_lines=cfg.max_lines)
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
