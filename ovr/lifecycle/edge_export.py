"""A bundle as one small directory for a device: the fused model, and a record of how it was made. Needs no torch.

    model.onnx, or model.ort     raw rows -> probabilities, with the card (taxonomy, thresholds, policy, input) in its metadata
    card.json                    what it was made of and how, its digest, sizes, latencies, and what the gate found of each head
    signatures/bundle.sig        of a signed bundle, where model.onnx is its fused graph byte for byte: it names that digest

K = heads
"""

import statistics
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from ovr.core.artifact import ModelCard
from ovr.core.bundle import BUNDLE_SIGNATURE, ModelBundle
from ovr.core.files import canonical_json, place, sha256_bytes, staged_directory
from ovr.core.onnx_file import EDGE_OPS
from ovr.errors import ArtifactError, ConfigError, TaxonomyError
from ovr.export.check import check_structure, run
from ovr.export.derived import check_derived
from ovr.export.fused import fused_model
from ovr.export.reduced import PRECISIONS
from ovr.export.stored import parsed, stored_models
from ovr.export.versions import asked_ir_version, check_versions, opset_of, ort_file, with_versions
from ovr.lifecycle.assemble import check_out
from ovr.lifecycle.edge_gate import GateRows, ReducedModel, check_reducible, kept_rows, reduce_model
from ovr.lifecycle.edge_heads import MIN_KNOWN, Limits
from ovr.lifecycle.logits import open_session
from ovr.runtime.edge_files import EXPORT_CARD
from ovr.runtime.reference import Reference, load_reference

SCHEMA_VERSION = 1
FORMATS = ("onnx", "ort")
EXPORT_KEY = "ovr.edge"  # of the model's metadata: where it is not the bundle's fused graph, what was done to that
SAME = 1e-6  # probabilities before and after a change of the opset
NUM_CALLS = 100


@dataclass(frozen=True, slots=True)
class EdgeOptions:
    """What an edge export is to be.

    Args:
        class_ids: these heads only.
        precision, refit: see `reduce_model`.
        margin, min_positives, min_negatives: see `Limits`.
        opset, ir_version: see `with_versions`.
        format: "onnx", or "ort" for ONNX Runtime's small builds.
    """

    class_ids: Collection[str] | None = None
    precision: str = "fp32"
    margin: float = 0.01
    min_positives: int = MIN_KNOWN
    min_negatives: int = MIN_KNOWN
    refit: bool = True
    opset: int | None = None
    ir_version: int | None = None
    format: str = "onnx"

    @property
    def limits(self) -> Limits:
        """What a head of a reduced precision must keep to."""
        return Limits(self.margin, self.min_positives, self.min_negatives)


def check_options(bundle: ModelBundle, out: Path, options: EdgeOptions) -> list[int]:
    """Return the columns of the chosen heads, in the bundle's order, once the options fit the bundle.

    Raises:
        ConfigError: an option that there is not, or that does not go with another or with this bundle.
        TaxonomyError: class ids that the bundle does not have, each with those that are near.
        ArtifactError: `out` exists, cannot be made or lies within the bundle; the bundle has no fused graph, and no classes are
            named.
    """
    for name, value, known in (("precision", options.precision, PRECISIONS), ("format", options.format, FORMATS)):
        if value not in known:
            raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(known)}")
    check_versions(options.opset, options.ir_version)
    if options.format == "ort" and (options.opset, options.ir_version) != (None, None):
        raise ConfigError("opset and ir_version are of ONNX files; a file in ONNX Runtime's format is for that runtime's version")
    if options.format == "ort" and options.precision == "fp16":
        raise ConfigError(
            "format=ort holds weights as they are computed with, so that fp16 would be as large as fp32; expected precision=fp32 "
            "or int8"
        )
    if options.precision != "fp32":
        check_reducible(bundle, options.precision, options.limits)
    check_out(bundle, out)
    if options.class_ids is None:
        if not bundle.has_fused:
            raise ArtifactError(
                f"bundle {bundle.path} has no fused graph: its {len(bundle.heads)} heads do not fit one ONNX file; name those that "
                "the device needs with classes=[ID,...]"
            )
        return [*range(len(bundle.heads))]
    if not options.class_ids:
        raise ConfigError("classes is an empty list; name the class ids of the heads to export, or leave it out to export all")
    if twice := [class_id for class_id, times in Counter(options.class_ids).items() if times > 1]:
        raise ConfigError(f"classes names {', '.join(map(repr, twice[:5]))} more than once; name each class once")
    if unknown := bundle.taxonomy.unknown(options.class_ids):
        raise TaxonomyError(f"classes names what the bundle of {len(bundle.taxonomy)} classes does not have: {unknown}")
    return sorted(bundle.taxonomy.column(class_id) for class_id in options.class_ids)


def export_edge(bundle: ModelBundle, out: Path, options: EdgeOptions, rows: GateRows | None = None) -> dict[str, Any]:
    """Write the export of an opened bundle to `out` by one atomic rename, and return what its card.json holds.

    With fp32, all classes and no other versions the model is the bundle's fused graph byte for byte. With fp32 and some classes,
    the probabilities are those that the fused graph gives, bit for bit; that is checked on the bundle's reference rows.

    Args:
        rows: labelled rows of the chosen heads that a reduced precision is judged on; by default those that the bundle keeps.

    Raises:
        ConfigError, TaxonomyError, ArtifactError: what `edge_files` refuses.
    """
    parts, card = edge_files(bundle, out, options, rows)
    with staged_directory(out) as staging:
        place(staging, parts)
    return card


def edge_files(
    bundle: ModelBundle, out: Path, options: EdgeOptions, rows: GateRows | None = None
) -> tuple[dict[str, bytes | Path], dict[str, Any]]:
    """Return the files of the export that `export_edge` writes to `out`, by their path in it, and what its card.json holds.

    Raises:
        ConfigError, TaxonomyError, ArtifactError: what `check_options`, `reduce_model` and `with_versions` refuse.
        ArtifactError: the fused graph is not that of the bundle's heads; a model that does not give the reference probabilities.
    """
    columns = check_options(bundle, out, options)
    reference = load_reference(bundle).of(columns)
    every = len(columns) == len(bundle.heads)
    full = _fp32(bundle, columns, reference)
    model, found = parsed(full, what="the fused graph"), None
    if options.precision != "fp32":
        rows = kept_rows(bundle, columns) if rows is None else rows
        found = reduce_model(
            bundle,
            card_of(bundle, columns),
            columns,
            rows,
            precision=options.precision,
            limits=options.limits,
            refit=options.refit,
        )
        model = found.model
    identical = every and found is None and _has_versions(model, options)
    if not identical:
        made = {"bundle_sha256": bundle.bundle_sha256, "precision": options.precision, "classes": None if every else len(columns)}
        props = {entry.key: entry.value for entry in model.metadata_props}
        helper.set_model_props(model, {**props, EXPORT_KEY: canonical_json(made).decode()})
        before = check_structure(model, allowed_ops=EDGE_OPS, what="the edge model")
        model = with_versions(model, options.opset, options.ir_version)
        data = check_structure(model, allowed_ops=EDGE_OPS, what="the edge model")
        if (difference := float(np.abs(run(data, reference.x) - run(before, reference.x)).max())) > SAME:
            raise ArtifactError(
                f"in opset {opset_of(model)} the model gives probabilities that differ by {difference:.1e} on the reference rows; "
                "expected the same; leave opset out"
            )
    else:
        data = full
    prob_NK = run(data, reference.x)
    if options.format == "ort":
        data = ort_file(data)
        if (difference := float(np.abs(run(data, reference.x) - prob_NK).max())) > SAME:
            raise ArtifactError(
                f"in ONNX Runtime's format the model gives probabilities that differ by {difference:.1e}; expected the same; use "
                "format=onnx"
            )
    if found is not None:
        fp32_bytes = len(full if options.format == "onnx" else ort_file(full))
        if len(data) >= fp32_bytes:
            counts = _precisions(found, len(columns))["num_heads"]
            why = ", ".join([found.because.get("reason", ""), *map(repr, found.because.get("heads", ())[:5])])
            raise ArtifactError(
                f"in {options.precision} the model has {len(data)} bytes, and in fp32 no more than {fp32_bytes}: its backbone is "
                f"{found.backbone}{f' ({why})' if why else ''}, and {counts.get('fp32', 0)} of {len(columns)} heads stay in "
                "fp32, in a product of their own. Nothing was written; use precision=fp32, or what lets more pass: raw rows "
                "(data=...), more rows, a larger margin"
            )
    file = f"model.{options.format}"
    card = {
        "schema_version": SCHEMA_VERSION,
        "target": "edge",
        "model": {
            "file": file,
            "sha256": sha256_bytes(data),
            "size_bytes": len(data),
            "opset": opset_of(model),
            "ir_version": model.ir_version,
        },
        "bundle_sha256": bundle.bundle_sha256,
        "classes": None if every else [bundle.taxonomy.ids[column] for column in columns],
        "num_classes": len(columns),
        "same_bytes_as_fused_graph": identical and options.format == "onnx",
        "precision": {"asked": options.precision, **_precisions(found, len(columns))},
        "size_bytes": {"fp32": len(full), "model": len(data)},
        "latency_p50_s": _latencies({"fp32": full, "model": data}, reference),
        "largest_difference_of_reference_rows": float(np.abs(prob_NK - reference.prob_NK).max()),
    }
    if found is not None:
        assert rows is not None
        settings = {**asdict(options.limits), "refit": options.refit, "data": rows.record}
        changed = {"num_rows_decided_otherwise": found.final.changed_from(found.full)[1]}
        card["gate"] = {**settings, **changed, "heads": _table(found, bundle, columns)}
    parts: dict[str, bytes | Path] = {file: data, EXPORT_CARD: canonical_json(card)}
    if card["same_bytes_as_fused_graph"] and (bundle.path / BUNDLE_SIGNATURE).is_file():
        parts[BUNDLE_SIGNATURE] = bundle.path / BUNDLE_SIGNATURE
    return parts, card


def card_of(bundle: ModelBundle, columns: list[int]) -> ModelCard:
    """Return the card of the heads in some columns."""
    card = bundle.card
    return card if len(columns) == len(bundle.heads) else card.of_classes([bundle.taxonomy.ids[column] for column in columns])


def _fp32(bundle: ModelBundle, columns: list[int], reference: Reference) -> bytes:
    """Return the fused graph of some heads, whose probabilities for the reference rows are those of the bundle's, bit for bit."""
    whole = None
    if bundle.has_fused:
        check_derived(bundle)
        whole = bundle.fused_onnx.read_bytes()
        all_NK = run(whole, reference.x)
        reference.compare(all_NK[:, columns], what="the fused graph")
        if len(columns) == len(bundle.heads):
            return whole
    backbone = parsed(bundle.backbone_onnx.read_bytes(), what="the backbone")
    model = fused_model(backbone, list(stored_models(bundle, columns)), card_of(bundle, columns))
    data = check_structure(model, allowed_ops=EDGE_OPS, what="the edge model")
    prob_NK = run(data, reference.x)
    reference.compare(prob_NK, what="the edge model")
    if whole is not None and not np.array_equal(prob_NK, all_NK[:, columns]):
        differs = reference.class_ids[int(np.flatnonzero((prob_NK != all_NK[:, columns]).any(axis=0))[0])]
        raise ArtifactError(
            f"without the other heads, class {differs!r} has other bits than in the fused graph on this machine; export all classes"
        )
    return data


def _has_versions(model: onnx.ModelProto, options: EdgeOptions) -> bool:
    """Return whether the model has the opset and the IR version that are asked for."""
    ir_version = asked_ir_version(options.opset, options.ir_version)
    return options.opset in (None, opset_of(model)) and ir_version in (None, int(model.ir_version))


def _precisions(found: ReducedModel | None, num_heads: int) -> dict[str, Any]:
    if found is None:
        return {"backbone": "fp32", "num_heads": {"fp32": num_heads}}
    counts = {name: found.head_precisions.count(name) for name in PRECISIONS if name in found.head_precisions}
    return {"backbone": found.backbone, **({"backbone_because": found.because} if found.because else {}), "num_heads": counts}


def _table(found: ReducedModel, bundle: ModelBundle, columns: list[int]) -> list[dict[str, Any]]:
    """Return a line a head: its precision, its rows, what it was in fp32, and what it is with and without its calibration refitted.

    `with_refit` is measured on rows that the calibration was not fitted on, whether it was taken or not. A decision is that of the
    bundle's policy on the class, among the classes of the export.
    """
    states = {"fp32": found.full, "without_refit": found.without_refit, "final": found.final}
    num_changed_K = found.final.changed_from(found.full)[0]
    return [
        {
            "class_id": bundle.taxonomy.ids[column],
            "precision": found.head_precisions[k],
            "num_positives": int(found.num_known_K2[k, 0]),
            "num_negatives": int(found.num_known_K2[k, 1]),
            "judged": bool(found.is_judged_K[k]),
            "refitted": found.refitted_K[k],
            "ece_upper": {
                **{name: float(state.ece_upper_K[k]) for name, state in states.items()},
                "with_refit": None if np.isnan(found.refit_ece_upper_K[k]) else float(found.refit_ece_upper_K[k]),
            },
            "average_precision": {
                name: None if np.isnan(state.ap_K[k]) else float(state.ap_K[k]) for name, state in states.items()
            },
            "num_decisions_changed": int(num_changed_K[k]),
        }
        for k, column in enumerate(columns)
    ]


def _latencies(models: dict[str, bytes], reference: Reference) -> dict[str, float]:
    """Return the median seconds of one row on one thread; the models answer in turn."""
    sessions = {name: open_session(data, num_threads=1, what=f"the {name} model") for name, data in models.items()}
    found: dict[str, list[float]] = {name: [] for name in sessions}
    for call in range(NUM_CALLS):
        row = reference.x[call % len(reference.x)][None]
        for name, session in sessions.items():
            began = time.perf_counter()
            session.run(None, {session.get_inputs()[0].name: row})
            found[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in found.items()}
