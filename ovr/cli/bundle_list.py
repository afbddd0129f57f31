"""`ovr bundle list`: the models, versions and aliases of a registry. Needs no torch."""

import json
from dataclasses import asdict

from omegaconf import DictConfig

from ovr.cli.registry import print_table, store_of, text
from ovr.errors import ConfigError


def run(cfg: DictConfig) -> None:
    """Print the versions of a model, or of every model, the newest first, and the aliases of heads.

    Raises:
        ConfigError: there is no such model, or nothing at all.
        ArtifactError: the registry cannot be read.
    """
    from ovr.registry.aliases import known_versions

    store = store_of(cfg)
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
