"""`ovr edge ...`: patches of edge exports. Needs no torch."""

from pathlib import Path

from omegaconf import DictConfig

from ovr.cli.signatures import files
from ovr.cli.tables import table
from ovr.errors import ConfigError

MAX_LINES = 20


def diff_edge(cfg: DictConfig) -> None:
    """Write a patch and print which classes it changes, and how large it is.

    Raises:
        ArtifactError: OLD or NEW is no edge export, or was changed; they are the same; `out` exists.
        ConfigError: the key cannot be used.
    """
    from ovr.lifecycle.edge_diff import write_patch
    from ovr.serving.signing import password

    key = None if cfg.key is None else Path(cfg.key)
    made = write_patch(Path(cfg.old), Path(cfg.new), Path(cfg.out), key=key, password=password())
    if made.changes:
        print(table([["class", "what", "old", "new"], *made.changes[:MAX_LINES]]))
    if len(made.changes) > MAX_LINES:
        print(f"... and {len(made.changes) - MAX_LINES} more")
    whole = ", ".join(made.whole)
    print(
        f"{cfg.out}: {made.size_bytes} bytes, {100 * made.size_bytes / made.model_bytes:.2g} % of the {made.model_bytes} of "
        f"{made.model}{f'; whole in it: {whole}' if whole else ''}{'' if key is None else f'; signed with {key}'}"
    )


def apply_edge(cfg: DictConfig) -> None:
    """Apply a patch and print what came of it.

    Raises:
        ArtifactError: as `apply_patch`.
        ConfigError: signatures are required and nobody is trusted, or the other way round; a key cannot be used.
    """
    from ovr.edge.apply import apply_patch

    keys = files(cfg.trusted_keys, "trusted_keys")
    if bool(cfg.require_signature) != bool(keys):
        raise ConfigError("require_signature=true and trusted_keys=[FILE] belong together; give both or none")
    out = None if cfg.out is None else Path(cfg.out)
    print(apply_patch(Path(cfg.patch), Path(cfg.directory), out=out, trusted_keys=keys).told())
