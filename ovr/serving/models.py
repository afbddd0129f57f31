"""The Triton models that a bundle is served by. Knows which directories there are already, not when they are written."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import onnx

from ovr.core.artifact import ModelCard
from ovr.core.bundle import BUNDLE_SIGNATURE, HEAD_SIGNATURES, SIGNATURES, ModelBundle
from ovr.core.faults import HeadPlan
from ovr.core.files import canonical_json
from ovr.errors import ArtifactError
from ovr.input.encoder import KINDS
from ovr.serving.contents import versions_of
from ovr.serving.labels import labels_file
from ovr.serving.pbtxt import Scheduling, backbone_config, ensemble_config, head_config, router_config, scores_config
from ovr.serving.scores_graph import with_required_cohort
from ovr.serving.transition import Model, is_same
from ovr.serving.vendored import import_closure

Layout = Literal["fused", "per_head"]
ROUTER = "ovr.runtime.triton.router"
ROUTER_MODEL_PY = f"""\"\"\"The router: {ROUTER} from the copy of ovr in this directory.\"\"\"

import sys
from pathlib import Path

sys.dont_write_bytecode = True  # the stub does not heed the environment variable
sys.path.insert(0, str(Path(__file__).resolve().parent))

from {ROUTER} import TritonPythonModel  # noqa: E402

__all__ = ["TritonPythonModel"]
"""


def models_of(
    repository: Path, bundle: ModelBundle, layout: Layout, scheduling: Scheduling, plan: HeadPlan, version: int
) -> tuple[list[Model], list[Model]]:
    """Return the models that others call, and those that call them."""
    card = bundle.card
    labels = labels_file(card.taxonomy)
    fused = served_graph(bundle)
    labels_version = version_with_labels(repository, labels, version)
    scores: dict[str, bytes | Path] = {"model.onnx": fused} | ({"labels.txt": labels} if labels_version == version else {})
    callees = [Model(scores_config(card, scheduling, version=version, labels_version=labels_version), scores)]
    router = router_files(card)
    signatures = [bundle.path / name for name in (BUNDLE_SIGNATURE, HEAD_SIGNATURES) if (bundle.path / name).is_file()]
    router |= {f"{SIGNATURES}/{file.name}": file for file in signatures}
    if signatures and isinstance(fused, bytes):
        router[f"{SIGNATURES}/fused.onnx"] = bundle.fused_onnx  # what was signed; the scores have it changed
    callers = []
    if layout == "per_head":
        num_features = num_features_of(bundle.backbone_onnx)
        backbone_version = _version_of(repository / "backbone", bundle.backbone_onnx)
        plan = replace(plan, backbone_version=backbone_version)
        backbone = backbone_config(card, scheduling, version=backbone_version, num_features=num_features)
        callees.append(Model(backbone, {"model.onnx": bundle.backbone_onnx}))
        for head in bundle.heads:
            earlier = plan.earlier.get(head.class_id)
            config = head_config(head.class_id, scheduling, version=head.version, num_features=num_features, earlier=earlier)
            callees.append(Model(config, {"model.onnx": bundle.head_onnx(head)}))
        ensemble = ensemble_config(card, scheduling, version=version, backbone_version=backbone_version)
        callers.append(Model(ensemble, {}))
    callers.append(Model(router_config(card, scheduling, version=version, plan=plan), router))
    return callees, callers


def served_graph(bundle: ModelBundle) -> bytes | Path:
    """Return the fused graph as `ovr_scores` has it: the bundle's file, or what is made of it where there are cohorts."""
    return bundle.fused_onnx if bundle.cohorts is None else with_required_cohort(bundle.fused_onnx.read_bytes())


def router_files(card: ModelCard) -> dict[str, bytes | Path]:
    """Return what the router's version directory holds, signatures apart: its code is this ovr's own."""
    files: dict[str, bytes | Path] = {"model.py": ROUTER_MODEL_PY.encode(), "card.json": canonical_json(card.to_json())}
    files |= import_closure(ROUTER)
    if card.input.raw_kind is not None:
        files |= import_closure(KINDS[card.input.raw_kind].rpartition(".")[0])
    return files


def version_with_labels(repository: Path, labels: bytes, version: int) -> int:
    """Return the lowest version of the scores whose directory holds this label file, or `version` where none does yet."""
    scores = repository / "ovr_scores"
    return next((v for v in versions_of(scores) if is_same(scores / str(v) / "labels.txt", labels)), version)


def num_features_of(backbone_onnx: Path) -> int:
    """Return D of a backbone's ONNX file."""
    shape = onnx.load(backbone_onnx, load_external_data=False).graph.output[0].type.tensor_type.shape
    num_features = int(shape.dim[-1].dim_value)
    if len(shape.dim) != 2 or num_features < 1:
        raise ArtifactError(f"{backbone_onnx} must return features of a fixed size (B, D), got {len(shape.dim)} axes")
    return num_features


def _version_of(model: Path, content: Path) -> int:
    """Return the version of `model` that holds `content`, or else the next free one."""
    versions = versions_of(model)
    return next((v for v in versions if is_same(model / str(v) / "model.onnx", content)), 1 + max(versions, default=0))
