"""`ovr export`: a bundle as standalone ONNX files."""

from pathlib import Path

from omegaconf import DictConfig


def run(cfg: DictConfig) -> None:
    """Write the files into a new directory and print where they lie."""
    from ovr.core.bundle import open_bundle
    from ovr.export.bundle import export_onnx

    out = Path(cfg.out)
    export_onnx(open_bundle(Path(cfg.bundle)), out)
    print(f"ONNX files in {out}")
