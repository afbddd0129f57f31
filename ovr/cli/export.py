"""`ovr export`: a bundle as standalone ONNX files."""

from pathlib import Path

from omegaconf import DictConfig

from ovr.cli.labelled_rows import class_ids


def run(cfg: DictConfig) -> None:
    """Write the files into a new directory and print where they lie, with their largest difference from torch's probabilities.

    Raises:
        ConfigError: `heads` is no list, an empty one, or holds what is no class id.
        TaxonomyError: a class id that the bundle does not have.
        ArtifactError: the bundle cannot be used, the directory exists, or a file does not give the bundle's probabilities.
    """
    from ovr.core.bundle import open_bundle
    from ovr.export.standalone import export_onnx

    ids = class_ids(cfg.heads, key="heads")
    exported = export_onnx(open_bundle(Path(cfg.bundle)), Path(cfg.out), class_ids=ids)
    diffs = ", ".join(f"{name} {diff:.1e}" for name, diff in exported.max_abs_diff.items())
    fused = " and fused graph" if "fused" in exported.max_abs_diff else ""
    print(f"backbone, {exported.num_heads} heads{fused} in {exported.path} (largest difference from torch: {diffs})")
