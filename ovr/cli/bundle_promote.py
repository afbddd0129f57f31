"""`ovr bundle promote`: let an alias name a version. Needs no torch."""

from omegaconf import DictConfig

from ovr.cli.labelled_rows import class_ids
from ovr.cli.registry import store_of, text, who


def run(cfg: DictConfig) -> None:
    """Move the alias and print from where to where.

    Raises:
        ConfigError: no such model or version, or a setting that cannot be used.
        TaxonomyError: a class that the version does not have.
        ArtifactError: the version's bundle is damaged, or the alias is not where it was expected to be.
    """
    from ovr.registry.aliases import promote

    moves = promote(
        store_of(cfg),
        text(cfg, "model"),
        cfg.version,
        text(cfg, "alias"),
        who=who(cfg),
        why=text(cfg, "why"),
        class_ids=class_ids(cfg.classes, key="classes"),
        expect=cfg.expect,
    )
    for move in moves:
        of = f"{cfg.model}" if move.class_id is None else f"class {move.class_id} of {cfg.model}"
        head = "" if move.head_version is None else f" (head version {move.head_version})"
        print(f"{move.alias} of {of}: {'none' if move.before is None else move.before} -> {move.version}{head}")
    if not moves:
        print(f"{cfg.alias} names that version already; nothing moved")
