"""`ovr export`: a bundle as standalone ONNX files, as one small directory for a device, or as a page for browsers."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ovr.cli.labelled_rows import class_ids, read_rows
from ovr.cli.tables import table
from ovr.core.files import read_json
from ovr.errors import ConfigError

TARGETS = ("onnx", "edge", "web")
# Settings of some targets alone, and what they are where they are not used.
GATE_SETTINGS = {"margin": 0.01, "min_positives": 5, "min_negatives": 5, "refit": True, "data": None}  # of a reduced precision
ROW_SETTINGS = {"rows": "all", "max_overlap": 0}  # of `data`
EDGE_SETTINGS = {"classes": None, "precision": "fp32", "opset": None, "ir_version": None, "format": "onnx"}
WEB_SETTINGS = {"runtime": None, "examples": 10}
MAX_LINES = 20


def run(cfg: DictConfig) -> None:
    """Write the files into a new directory and print where they lie, and how far their answers are from those of the bundle.

    Raises:
        ConfigError: a setting that cannot be used, or that is of another target.
        TaxonomyError: a class id that the bundle does not have.
        ArtifactError: the bundle cannot be used, the directory exists, or a file does not give the bundle's probabilities.
        DataError: rows that cannot be read, do not fit the bundle, or were trained on.
    """
    if cfg.target not in TARGETS:
        raise ConfigError(f"target is {cfg.target!r}; expected one of {', '.join(TARGETS)}")
    if cfg.target != "web" and (used := _used(cfg, WEB_SETTINGS)):
        raise ConfigError(f"{used} is of target=web; add that, or leave it out")
    if cfg.target != "onnx":
        _edge(cfg)
        return
    if used := _used(cfg, EDGE_SETTINGS | GATE_SETTINGS | ROW_SETTINGS):
        raise ConfigError(f"{used} is of target=edge; add that, or leave it out")
    from ovr.core.bundle import open_bundle
    from ovr.export.standalone import export_onnx

    ids = class_ids(cfg.heads, key="heads")
    exported = export_onnx(open_bundle(Path(cfg.bundle)), Path(cfg.out), class_ids=ids)
    diffs = ", ".join(f"{name} {diff:.1e}" for name, diff in exported.max_abs_diff.items())
    fused = " and fused graph" if "fused" in exported.max_abs_diff else ""
    print(f"backbone, {exported.num_heads} heads{fused} in {exported.path} (largest difference from torch: {diffs})")


def _used(cfg: DictConfig, settings: Mapping[str, Any]) -> str:
    """Return the names of the settings that are not as they are where they are not used."""
    return ", ".join(name for name, absent in settings.items() if cfg[name] != absent)


def _edge(cfg: DictConfig) -> None:
    from ovr.core.bundle import open_bundle
    from ovr.input.encoder import packages_of
    from ovr.lifecycle.edge_export import EdgeOptions, check_options, export_edge
    from ovr.lifecycle.edge_gate import given_rows
    from ovr.lifecycle.web_export import check_page, export_web
    from ovr.web.runtime import runtime_files

    if cfg.heads is not None:
        raise ConfigError(f"heads is of target=onnx; name the heads of target={cfg.target} with classes=[ID,...]")
    if type(cfg.refit) is not bool:
        raise ConfigError(f"refit is {cfg.refit!r}; expected true or false")
    if cfg.precision == "fp32" and (used := _used(cfg, GATE_SETTINGS | ROW_SETTINGS)):
        raise ConfigError(f"{used} is of precision=fp16 and int8, which are judged; add one of them, or leave it out")
    if cfg.data is None and cfg.max_overlap != 0:
        raise ConfigError(f"max_overlap={cfg.max_overlap} is of a source of rows; say which: data=table data.path=FILE, say")
    options = EdgeOptions(
        class_ids=class_ids(cfg.classes, key="classes"),
        precision=cfg.precision,
        margin=cfg.margin,
        min_positives=cfg.min_positives,
        min_negatives=cfg.min_negatives,
        refit=cfg.refit,
        opset=cfg.opset,
        ir_version=cfg.ir_version,
        format=cfg.format,
    )
    bundle, out = open_bundle(Path(cfg.bundle)), Path(cfg.out)
    web = cfg.target == "web"
    columns = check_page(bundle, out, options, cfg.examples) if web else check_options(bundle, out, options)
    runtime = runtime_files(None if cfg.runtime is None else Path(cfg.runtime)) if web else {}
    new = read_rows(cfg, bundle, purpose="judged on", retired=True)
    rows = None if new is None else given_rows(new, columns)
    if web:
        card = export_web(bundle, out, options, runtime, rows, num_examples=cfg.examples)
    else:
        card = export_edge(bundle, out, options, rows)
    print("\n".join(_told(card)))
    if not web and (packages := packages_of(bundle.input.encoder)):
        names = " ".join(shlex.quote(package) for package in packages)
        print(f"to encode its rows a device needs more than 'ovr[edge]': pip install {names}")
    if web:
        if num_examples := len(read_json(out / "page.json")["examples"]):
            print(f"{num_examples} reference rows of the bundle are published with the page, to be tried (examples=0: none)")
        print(f"page in {out}; look at it: python -m http.server 8000 --bind 127.0.0.1 --directory {shlex.quote(str(out))}")


def _told(card: dict[str, Any]) -> list[str]:
    """Return what the terminal shows of an export's card."""
    lines = []
    if gate := card.get("gate"):
        shown = sorted(gate["heads"], key=lambda head: (head["precision"] != "fp32", -_rise(head)))[:MAX_LINES]
        states = ["ece<= fp32", "no refit", "refit", "final", "AP fp32", "no refit", "final"]
        cells = [["class", "precision", "rows", *states, "refit taken", "decisions changed"]]
        for head in shown:
            ece, ap = head["ece_upper"], head["average_precision"]
            changes = [_change(figures, state) for figures, state in ((ece, "without_refit"), (ece, "with_refit"), (ece, "final"))]
            changes += [_cell(ap["fp32"]), _change(ap, "without_refit"), _change(ap, "final")]
            rows = f"{head['num_positives']}+{head['num_negatives']}"
            taken = "yes" if head["refitted"] else "no"
            cells.append(
                [head["class_id"], head["precision"], rows, _cell(ece["fp32"]), *changes, taken, head["num_decisions_changed"]]
            )
        lines.append(table(cells))
        if len(gate["heads"]) > len(shown):
            lines.append(f"... and {len(gate['heads']) - len(shown)} more in card.json")
        num_rows, num_changed = gate["data"]["num_rows"], gate["num_rows_decided_otherwise"]
        lines.append(f"{num_changed} of {num_rows} rows are decided otherwise than in fp32, by the bundle's policy")
        if few := [head["class_id"] for head in gate["heads"] if not head["judged"]]:
            lines.append(
                f"{len(few)} heads are not judged, and stay in fp32, as they have fewer than {gate['min_positives']} known rows of "
                f"their class or {gate['min_negatives']} of others: {_named(few, len(few))}"
            )
    precision, sizes, times = card["precision"], card["size_bytes"], card["latency_p50_s"]
    heads = ", ".join(f"{count} heads {name}" for name, count in precision["num_heads"].items())
    because = _because(precision["backbone_because"]) if "backbone_because" in precision else ""
    lines.append(f"backbone {precision['backbone']}{because}, {heads}")
    lines.append(
        f"{card['model']['file']}: {sizes['model']} bytes (fp32 {sizes['fp32']}), one row {times['model'] * 1e3:.3f} ms (fp32 "
        f"{times['fp32'] * 1e3:.3f} ms), largest difference on reference rows {card['largest_difference_of_reference_rows']:.1e}"
    )
    return lines


def _because(because: dict[str, Any]) -> str:
    heads = f": {_named(because['heads'], because['num_heads'])}" if "heads" in because else ""
    return f" ({because['reason']}{heads})"


def _named(class_ids: list[str], count: int) -> str:
    shown = ", ".join(map(repr, class_ids[:5]))
    return shown if count <= 5 else f"{shown} and {count - 5} more"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _change(figures: dict[str, float | None], state: str) -> str:
    """Return by how much a figure is above that of fp32."""
    now, before = figures[state], figures["fp32"]
    return "-" if now is None or before is None else f"{round(now - before, 4) + 0.0:+.4f}"  # no -0.0000


def _rise(head: dict[str, Any]) -> float:
    return float(head["ece_upper"]["final"] - head["ece_upper"]["fp32"])
