"""`ovr explain`: what each part of a row adds to the logits of some heads, as a page and as JSON."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, ListConfig, OmegaConf

from ovr.cli.instantiate import build_recorded
from ovr.core.bundle import ModelBundle, open_bundle
from ovr.core.nearest import nearest
from ovr.errors import ArtifactError, ConfigError, InputError

# Whose weights the bundle has: nothing is fetched or drawn, and nothing is trained.
FROM_BUNDLE: dict[str, dict[str, Any]] = {
    "ovr.backbone.transformer.Transformer": {
        "frozen": True,
        "lora_rank": None,
        "trained_layers": "all",
        "gradient_checkpointing": False,
    },
    "ovr.backbone.timm.Timm": {"pretrained": False, "checkpoint": None},
}


def run(cfg: DictConfig) -> None:
    """Explain one row and write the page and the figures.

    Raises:
        ConfigError: a class that the bundle does not have, or a setting that cannot be used; captum is not installed.
        ArtifactError: the bundle is damaged, or its backbone cannot be built again.
        InputError: rows that the model cannot take, a row that is not there, or an output file that exists.
    """
    from ovr.core.files import write_file
    from ovr.explain import attribute
    from ovr.explain.explain import Explainer
    from ovr.explain.page import page, to_json
    from ovr.input.encoder import encoder_from_json
    from ovr.runtime.predictor import EdgePredictor

    out = Path(cfg.out)
    if out.suffix.lower() != ".html":
        raise ConfigError(f"out={out} must end in .html")
    for file in (out, out.with_suffix(".json")):
        if file.exists() and not cfg.overwrite:
            raise InputError(f"{file} exists already; choose another place or say overwrite=true")
    if not out.absolute().parent.is_dir():
        raise InputError(f"the folder {out.absolute().parent} of out= does not exist")
    if out.resolve().is_relative_to(Path(cfg.bundle).resolve()):
        raise InputError(f"{out} is inside the bundle {cfg.bundle}, which must not change; write it somewhere else")
    attribute.captum_attr()
    bundle = open_bundle(Path(cfg.bundle))
    wanted = _wanted(cfg["class"], bundle)
    record = _record(cfg, bundle)
    prob_K = None
    if bundle.has_fused:
        prob_K = EdgePredictor(bundle.path).predict_proba([record])[0]
    if not wanted:
        if prob_K is None:
            raise ConfigError("the bundle has no fused graph to find the most probable class with; give class=ID")
        wanted = [bundle.taxonomy[int(prob_K.argmax())].id]
    model = _model(bundle, wanted, cfg.allow_targets)
    reference = np.load(bundle.path / "reference" / "x.npy", allow_pickle=False)
    explainer = Explainer(model, bundle.input, encoder_from_json(bundle.input.encoder), reference, num_heads=len(wanted))
    made = explainer.explain(record, method=cfg.method, steps=cfg.steps, baseline=cfg.baseline, window=cfg.window)
    of_classes = [None if prob_K is None else float(prob_K[bundle.taxonomy.column(class_id)]) for class_id in wanted]
    source = {"bundle_sha256": bundle.bundle_sha256, "input": Path(cfg.input).name, "row": cfg.row}
    value = to_json(made, wanted, prob_K=of_classes, source=source)
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1, default=str)
    write_file(out.with_suffix(".json"), text.encode())
    write_file(out, page(made, wanted, prob_K=of_classes, title=f"Row {cfg.row} of {Path(cfg.input).name}").encode())
    print(f"{', '.join(map(repr, wanted))} of row {cfg.row} explained in {out} and {out.with_suffix('.json')}")


def _wanted(given: Any, bundle: ModelBundle) -> list[str]:
    """Return the class ids that are asked for, each once; none for the most probable class."""
    listed = [] if given is None else list(given) if isinstance(given, ListConfig) else [given]
    known = set(bundle.taxonomy.ids)
    ids = list(dict.fromkeys(map(str, listed)))  # YAML reads the id 7 as a number
    if unknown := [class_id for class_id in ids if class_id not in known]:
        near = nearest(unknown[0], bundle.taxonomy.ids)
        raise ConfigError(
            f"class {unknown[0]!r} is not one of the {len(known)} classes of {bundle.path}"
            + (f"; {near}" if near else f", such as {bundle.taxonomy[0].id!r}")
        )
    return ids


def _record(cfg: DictConfig, bundle: ModelBundle) -> Any:
    """Return the row that is asked for, as the bundle's encoder takes it."""
    from ovr.runtime.images import read_images
    from ovr.runtime.record_files import TextColumns, read_records
    from ovr.runtime.rows import read_rows

    source, kind = Path(cfg.input), bundle.input.raw_kind
    how = {"format": cfg.format, "header": cfg.header, "delimiter": cfg.delimiter, "drop": [str(name) for name in cfg.drop]}
    rows: Any
    if kind is None:
        rows = read_rows(source, bundle.input, **how)
    elif kind == "image":
        rows = read_images(source, column=cfg.path_column)
    else:
        rows = read_records(source, kind, text=TextColumns.of(bundle.input.encoder), **how)
    if not isinstance(cfg.row, int) or isinstance(cfg.row, bool) or not 0 <= cfg.row < len(rows):
        raise InputError(f"row={cfg.row!r}: {source} has rows 0 to {len(rows) - 1}")
    return rows[cfg.row]


def _model(bundle: ModelBundle, class_ids: list[str], allow_targets: Any) -> Any:
    from ovr.training.rebuild import rebuilt_model

    config = bundle.provenance.get("config")
    if not isinstance(config, dict) or not all(isinstance(config.get(part), dict) for part in ("backbone", "head")):
        raise ArtifactError(
            f"{bundle.path} keeps no configuration of backbone and head, as bundles of `ovr train` do, so its backbone cannot be "
            "built in torch again"
        )
    whole = OmegaConf.create(config)
    for part in (whole.backbone, *whole.backbone.get("parts", {}).values()):
        target = str(part.get("_target_"))
        part.update(FROM_BUNDLE.get(target, {}))
        if target == "ovr.backbone.transformer.Transformer":
            part.path = str(bundle.path)
    backbone, head = (build_recorded(whole[part], part, allow_targets) for part in ("backbone", "head"))
    return rebuilt_model(bundle, class_ids, backbone=backbone, head=head)
