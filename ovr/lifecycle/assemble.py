"""A bundle made of another one's backbone and of heads that are its own, earlier ones, or new: whatever does not change is shared.

Every file of a head that stays is the same file, by hard link where the file system allows. Versions that go out of use stay in the
bundle beside those in use. Reference answers of heads that stay are kept as they were; those of others are computed in float64 from
their weights, and every model that is written must give them.

N = rows, D = features, K = heads
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ovr.calibrator.apply import calibrated_prob
from ovr.core.artifact import DecisionPolicy, HeadArtifact, ModelCard
from ovr.core.bundle import FUSED_ONNX, MANIFEST, SIGNATURES, ModelBundle, head_directory, version_of
from ovr.core.bundle_writer import write_bundle
from ovr.core.calibrations import Calibrations
from ovr.core.commit import git_state
from ovr.core.files import canonical_json, check_new
from ovr.core.ledger import successor
from ovr.core.shards import npy_bytes
from ovr.core.taxonomy import ClassSpec, Taxonomy
from ovr.errors import ArtifactError, ConfigError, TaxonomyError
from ovr.export.fused import fused_model
from ovr.export.head import head_metadata, head_model
from ovr.export.reference import check_fused, check_parts
from ovr.export.stored import Weights, parsed
from ovr.runtime.reference import Reference
from ovr.serving.head_signatures import carried_signatures

ABSTENTION_STATUS = "abstention_status"  # of the provenance, and of a step that changes it
COHORTS_FILE = "cohorts.json"  # of a head that is kept and not in use
REFERENCE_PROB, REFERENCE_LOGIT = "reference/prob.npy", "reference/logit.npy"
Parts = dict[str, bytes | Path]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """The new bundle, the ids of the heads that changed, and the largest differences from the reference answers."""

    bundle: ModelBundle
    changed_ids: tuple[str, ...]
    max_abs_diff: dict[str, float]


@dataclass(frozen=True, slots=True)
class NewModel:
    """A head that the bundle has no file of: its kind and weights, as `head_model` takes them."""

    kind: str
    weights: Weights


def assembled(
    bundle: ModelBundle,
    out: Path,
    *,
    taxonomy: Taxonomy,
    heads: Sequence[HeadArtifact],
    new: Mapping[str, NewModel],
    reference: Reference,
    policy: DecisionPolicy,
    provenance: dict[str, Any],
    parts: Parts | None = None,
) -> tuple[ModelBundle, dict[str, float]]:
    """Write the bundle with these heads to `out`; return it, and the largest differences from the reference answers.

    Args:
        bundle: with a file a head.
        taxonomy, heads: of the new bundle, in column order.
        new: by class id, the heads that are neither in use in `bundle` nor kept by it.
        reference: the answers that the new bundle must give, for all its heads.
        parts: further files that differ from the bundle's.

    Raises:
        ArtifactError: `out` exists; a head that is not new and that the bundle does not have, or whose version it has with other
            contents; a model that does not give the reference answers. Nothing is written then.
    """
    files: Parts = {**kept(bundle), **(parts or {})}
    files[REFERENCE_PROB] = unchanged(bundle, REFERENCE_PROB, npy_bytes(reference.prob_NK))
    files.pop(REFERENCE_LOGIT, None)
    if reference.logit_NK is not None:
        files[REFERENCE_LOGIT] = unchanged(bundle, REFERENCE_LOGIT, npy_bytes(reference.logit_NK))
    protos: list[onnx.ModelProto] = []
    for head in heads:
        name = f"{head_directory(head)}/model.onnx"
        if (head.class_id in new) == (name in files):
            what = "has that version already" if name in files else "does not have it"
            raise ArtifactError(f"head {head.class_id!r} is to be version {head.version}, and bundle {bundle.path} {what}")
        if head.class_id in new:
            made = new[head.class_id]
            protos.append(head_model(made.kind, made.weights, head.calibration, head_metadata(head)))
        else:
            protos.append(parsed((bundle.path / name).read_bytes(), what=f"head {head.class_id!r}"))
    backbone = parsed(bundle.backbone_onnx.read_bytes(), what="the backbone")
    diffs: dict[str, float] = {}
    columns = [k for k, head in enumerate(heads) if head.class_id in new or head not in bundle.heads]
    if columns:
        checked = check_parts(backbone, [protos[k] for k in columns], reference.of(columns))
        diffs["heads"] = checked.max_abs_diff
        for k, data in zip(columns, checked.heads, strict=True):
            if heads[k].class_id in new:
                files[f"{head_directory(heads[k])}/model.onnx"] = data

    def fuse(card: ModelCard) -> bytes:
        data, diffs["fused"] = check_fused(fused_model(backbone, protos, card), reference)
        return data

    files |= _cohorts_of_earlier(bundle, heads)
    old, now = ([version_of(head) for head in some] for some in (bundle.heads, heads))
    made_bundle = write_bundle(
        out,
        taxonomy=taxonomy,
        heads=heads,
        input=bundle.input,
        policy=policy,
        provenance=provenance,
        parts=files,
        fuse=fuse,
        cohorts=reference.cohorts,
        ledger=successor(bundle.ledger, old, taxonomy, now, class_specs(bundle)),
        signatures=lambda manifest: carried_signatures(bundle, manifest),  # of heads; the bundle itself is another, and not signed
    )
    return made_bundle, diffs


def _cohorts_of_earlier(bundle: ModelBundle, heads: Sequence[HeadArtifact]) -> Parts:
    """Return what heads that go out of use had for each cohort, beside their models: a version comes back as it was."""
    if bundle.cohorts is None:
        return {}
    return {
        f"{head_directory(head)}/{COHORTS_FILE}": canonical_json(bundle.cohorts.of_head(k))
        for k, head in enumerate(bundle.heads)
        if head not in heads
    }


def named_once(class_ids: Sequence[str]) -> Sequence[str]:
    """Return the ids of classes that a step is asked to change.

    Raises:
        ConfigError: there is none.
        TaxonomyError: one is named more than once.
    """
    if not class_ids:
        raise ConfigError("no class is named; give the class ids of the heads to change")
    if twice := sorted({each for each in class_ids if list(class_ids).count(each) > 1}):
        raise TaxonomyError(f"class {twice[0]!r} is named more than once")
    return class_ids


def class_specs(bundle: ModelBundle) -> dict[str, ClassSpec]:
    """Return the classes that a bundle has or has had, by their id."""
    return {spec.id: spec for spec in (*bundle.taxonomy, *bundle.ledger.retired)}


def reference_prob(kind: str, weights: Weights, head: HeadArtifact, z_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return a head's calibrated probabilities (N,) for features, in float64."""
    return calibrated_prob(head_logits(kind, weights, z_ND)[:, None], Calibrations.of([head.calibration]))[:, 0]


def head_logits(kind: str, weights: Weights, z_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return a head's logits (N,) for features, in float64."""
    hidden: NDArray[np.float64] = z_ND.astype(np.float64)
    if kind == "mlp":
        hidden = np.maximum(hidden @ weights["hidden_weight"].T.astype(np.float64) + weights["hidden_bias"], 0.0)
    logit_N: NDArray[np.float64] = hidden @ weights["weight"][0].astype(np.float64) + weights["bias"][0]
    return logit_N


def told(bundle: ModelBundle, entry: Mapping[str, Any], *, num_changed: int) -> dict[str, Any]:
    """Return the provenance of a bundle that is made of another, with this step as the last of its history."""
    history = bundle.provenance.get("history", [])
    step = {
        **entry,
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **git_state(),
        "gated": "gate" in entry,  # whether heads were judged before they came in, but for those of `ungated`
        "parent_bundle_sha256": bundle.bundle_sha256,
        "num_changed_heads": num_changed,
        # report/ stays as it was, and is of the bundle that was trained
        "report_is_of_bundle_sha256": str(history[-1]["report_is_of_bundle_sha256"]) if history else bundle.bundle_sha256,
    }
    of_limit = {name: entry[name] for name in (ABSTENTION_STATUS,) if name in entry}
    return {**bundle.provenance, "history": [*history, step], **of_limit}


def check_out(bundle: ModelBundle, out: Path) -> None:
    """Raise ArtifactError where a new bundle must not be written, before any work."""
    check_new(out)
    if out.resolve().is_relative_to(bundle.path.resolve()):
        raise ArtifactError(f"{out} lies within the bundle {bundle.path}, which is never changed; choose another place")


def unchanged(bundle: ModelBundle, name: str, content: bytes) -> bytes | Path:
    """Return the bundle's own file where it holds the same."""
    file = bundle.path / name
    return file if file.is_file() and file.read_bytes() == content else content


def kept(bundle: ModelBundle) -> Parts:
    """Return all files of a bundle but its signatures, and the two that are written with every bundle."""
    files = {path.relative_to(bundle.path).as_posix(): path for path in bundle.path.rglob("*") if path.is_file()}
    own = (MANIFEST, FUSED_ONNX)
    return {name: path for name, path in files.items() if name not in own and not name.startswith(f"{SIGNATURES}/")}
