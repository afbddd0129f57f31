"""The labelled rows that `ovr head add` and `retrain` are given: by `data=`, `features=` or `kept_rows=true`, and `positives=`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig

from ovr.cli.instantiate import build
from ovr.cli.labelled_rows import num_threads
from ovr.errors import ConfigError

if TYPE_CHECKING:
    from ovr.core.bundle import ModelBundle
    from ovr.core.taxonomy import ClassSpec, Taxonomy
    from ovr.lifecycle.head_rows import SplitRows


def check_rows(cfg: DictConfig, bundle: "ModelBundle", specs: Sequence["ClassSpec"]) -> None:
    """Refuse what cannot be done before any row is read.

    Raises:
        ArtifactError: `out` exists, or lies where it may not.
        ConfigError: rows by none or several of the three ways; `positives` of another number than the classes, or not there.
    """
    from ovr.lifecycle.put import check_change

    if cfg.out is not None:
        check_change(bundle, Path(cfg.out))
    if cfg.data is not None and (not isinstance(cfg.data, DictConfig) or "source" not in cfg.data):
        raise ConfigError(f"data is {cfg.data!r}; expected a source of rows, such as data=table data.path=FILE")
    given = [name for name in ("data", "features", "kept_rows") if cfg[name] not in (None, False)]
    if not given:
        raise ConfigError(
            "data is not given; heads need rows of other classes too: data=table data.path=FILE data.target=COLUMN, say, or "
            "features=FILE, or kept_rows=true, the calibration rows that the bundle keeps"
        )
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} are given; expected one of them")
    files = positive_files(cfg)
    if files and len(files) != len(specs):
        raise ConfigError(
            f"positives={cfg.positives} are rows of {len(files)} class{'es' if len(files) > 1 else ''}, a file each, got "
            f"{len(specs)} classes"
        )
    for file in files:
        if not file.exists():
            raise ConfigError(f"positives={file} does not exist; expected a file of rows of the class")


def positive_files(cfg: DictConfig) -> list[Path]:
    """Return the files of `positives`, in the order of the classes; none where it is null."""
    value = cfg.positives
    return [] if value is None else [Path(str(file)) for file in (value if isinstance(value, ListConfig) else [value])]


def rows_of(
    cfg: DictConfig, bundle: "ModelBundle", taxonomy: "Taxonomy", specs: Sequence["ClassSpec"]
) -> tuple[dict[str, "SplitRows"], dict[str, Any]]:
    """Return the rows, with those of `positives`, and what the history tells of them."""
    from ovr.data.leakage import row_digests
    from ovr.data.origin import Origin, source_files
    from ovr.lifecycle.feature_file import read_features
    from ovr.lifecycle.head_rows import kept_rows, with_positives
    from ovr.lifecycle.logits import bundle_features

    if cfg.data is not None:
        rows, record = source_rows(cfg, bundle, taxonomy)
    elif cfg.features is not None:
        rows = read_features(Path(cfg.features), bundle, taxonomy, max_overlap=cfg.max_overlap)
        record = {"rows": "features", "num_rows": sum(map(len, rows.values())), **Origin(source_files([cfg.features])).to_json()}
    else:
        new_ids = [spec.id for spec in specs if spec.id not in bundle.taxonomy.ids]
        rows = kept_rows(bundle, taxonomy, new_ids)
        record = {"rows": "the bundle's own calibration rows", "num_rows": sum(map(len, rows.values()))}
    for file, spec in zip(positive_files(cfg), specs, strict=False):
        x = _encoded(file, bundle)
        z_PD = bundle_features(bundle, x, num_threads=num_threads(cfg))
        rows = with_positives(bundle, rows, z_PD, row_digests(x), taxonomy.column(spec.id), seed=cfg.fit.seed)
        record.setdefault("positives", []).append({"class": spec.id, "file": file.name, "num_rows": len(x)})
    return rows, record


def source_rows(cfg: DictConfig, bundle: "ModelBundle", taxonomy: "Taxonomy") -> tuple[dict[str, "SplitRows"], dict[str, Any]]:
    """Return the rows of `data` by split, and what the history tells of them."""
    from ovr.data.fitted import Fitted
    from ovr.lifecycle.head_rows import split_rows

    splits = build(cfg.data.source, cfg.allow_targets, fitted=Fitted(taxonomy, bundle.input, whole=False))
    rows = split_rows(bundle, splits, max_overlap=cfg.max_overlap, num_threads=num_threads(cfg))
    return rows, {"num_rows": sum(map(len, rows.values())), **splits.origin.to_json()}


def _encoded(source: Path, bundle: "ModelBundle") -> Any:
    """Return the rows of a file as the backbone takes them."""
    from ovr.runtime.images import read_images
    from ovr.runtime.predictor import EdgePredictor
    from ovr.runtime.record_files import TextColumns, read_records
    from ovr.runtime.rows import read_rows

    kind = bundle.input.raw_kind
    if kind is None:
        return read_rows(source, bundle.input)
    predictor = EdgePredictor(bundle.path)
    if kind == "image":
        return predictor.encode(list(read_images(source, column="path")))
    return predictor.encode(read_records(source, kind, text=TextColumns.of(bundle.input.encoder)))
