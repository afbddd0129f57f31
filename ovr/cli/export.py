"""`ovr export`: a bundle as standalone ONNX files."""

from pathlib import Path

from omegaconf import DictConfig, ListConfig

from ovr.errors import ConfigError


def run(cfg: DictConfig) -> None:
    """Write the files into a new directory and print where they lie, with their largest difference from torch's probabilities.

    Raises:
        ConfigError: `heads` is no list, an empty one, or holds what is no class id.
        TaxonomyError: a class id that the bundle does not have.
        ArtifactError: the bundle cannot be used, the directory exists, or a file does not give the bundle's probabilities.
    """
    from ovr.core.bundle import open_bundle
    from ovr.export.standalone import export_onnx

    if not isinstance(cfg.heads, ListConfig | None):
        raise ConfigError(f"heads is {cfg.heads!r}; expected a list of class ids, such as [{cfg.heads}]")
    # Hydra reads the id 7 as a number; of other values, such as 1.50 or true, the spelling is lost.
    if lost := [class_id for class_id in cfg.heads or () if type(class_id) not in (str, int)]:
        raise ConfigError(f"heads holds {lost[0]!r}, which is no text; quote class ids that Hydra reads as something else")
    class_ids = None if cfg.heads is None else [str(class_id) for class_id in cfg.heads]
    exported = export_onnx(open_bundle(Path(cfg.bundle)), Path(cfg.out), class_ids=class_ids)
    diffs = ", ".join(f"{name} {diff:.1e}" for name, diff in exported.max_abs_diff.items())
    fused = " and fused graph" if "fused" in exported.max_abs_diff else ""
    print(f"backbone, {exported.num_heads} heads{fused} in {exported.path} (largest difference from torch: {diffs})")
