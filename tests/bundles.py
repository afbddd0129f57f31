"""Small bundles for tests of what is made from a bundle: a dense backbone and linear heads, built without torch.

D = features, K = heads
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ovr.core.artifact import Calibration, DecisionPolicy, HeadArtifact
from ovr.core.bundle import FUSED_ONNX, MANIFEST, ModelBundle, head_directory, open_bundle
from ovr.core.bundle_writer import write_bundle
from ovr.core.cohorts import CohortCalibrations
from ovr.core.files import canonical_json, sha256_bytes
from ovr.core.schema import InputSchema
from ovr.core.shards import npy_bytes
from ovr.core.taxonomy import ClassSpec, Taxonomy
from ovr.export.fused import fused_model
from ovr.export.head import head_metadata, head_model

ODD_IDS = ("/", "..", "äöü 猫", "train", "a b", "c" * 300, "line\nbreak", 'quo"te\\', "model.onnx", "A")


def small_bundle(
    path: Path,
    class_ids: Sequence[str] = ("cat", "dog", "owl"),
    *,
    shape: tuple[int, ...] = (6,),
    num_features: int = 5,
    seed: int = 0,
    head_seeds: Sequence[int] | None = None,
    version: int = 1,
    versions: Sequence[int] | None = None,
    policy: DecisionPolicy | None = None,
    encoder: dict | None = None,
    cohorts: CohortCalibrations | None = None,
    owners: Sequence[str] = (),
) -> ModelBundle:
    """Write a bundle with random weights; `seed` decides the backbone, `head_seeds` (by default the columns) each head."""
    backbone = dense_backbone(shape, num_features, seed=seed)
    data = backbone.SerializeToString(deterministic=True)
    heads, models, weights_K = [], [], []
    for column, class_id in enumerate(class_ids):
        rng = np.random.default_rng(head_seeds[column] if head_seeds is not None else column)
        calibration = Calibration(scale=float(rng.uniform(0.5, 2.0)), status="ok", num_rows=9, num_positives=3)
        head = HeadArtifact(
            class_id=class_id,
            version=versions[column] if versions is not None else version,
            backbone_sha256=sha256_bytes(data),
            kind="linear",
            calibration=calibration,
            threshold=float(rng.uniform(0.3, 0.7)),
        )
        weights = {"weight": normal(rng, 1, num_features), "bias": normal(rng, 1)}
        heads.append(head)
        weights_K.append(weights)
        models.append(head_model("linear", weights, calibration, head_metadata(head)))
    parts: dict[str, bytes | Path] = {"backbone/model.onnx": data}
    parts |= {
        f"{head_directory(h)}/model.onnx": m.SerializeToString(deterministic=True) for h, m in zip(heads, models, strict=True)
    }
    parts |= reference_parts(backbone, heads, weights_K, shape, with_logits=cohorts is not None)
    return write_bundle(
        path,
        taxonomy=Taxonomy(ClassSpec(i, owner=o) for i, o in zip(class_ids, owners or [""] * len(class_ids), strict=True)),
        heads=heads,
        input=InputSchema(shape, encoder=encoder),
        policy=policy or DecisionPolicy(mode="multilabel", abstain_below=0.2, top_k=2),
        provenance={"seed": seed},
        parts=parts,
        fuse=lambda card: fused_model(backbone, models, card).SerializeToString(deterministic=True),
        cohorts=cohorts,
    )


def forge(path: Path, files: Mapping[str, bytes], change: Callable[[dict[str, Any]], Any] = lambda manifest: None) -> None:
    """Put other files into a bundle, change its manifest, and make every digest right, as one who may write to it can."""
    for relative, data in files.items():
        (path / relative).parent.mkdir(parents=True, exist_ok=True)
        (path / relative).unlink(missing_ok=True)
        (path / relative).write_bytes(data)
    manifest = json.loads((path / MANIFEST).read_bytes())
    derived = manifest.pop("derived")
    del manifest["bundle_sha256"]
    manifest.pop("merkle_root", None)  # as bundles of earlier versions have none
    for relative, data in files.items():
        entry = {"sha256": sha256_bytes(data), "size_bytes": len(data)}
        (derived if relative in derived else manifest["files"])[relative] = entry
    change(manifest)
    digest = sha256_bytes(canonical_json(manifest))
    (path / MANIFEST).write_bytes(canonical_json({**manifest, "bundle_sha256": digest, "derived": derived}))


def with_graph(bundle: ModelBundle, path: Path, change: Callable[[onnx.ModelProto], Any]) -> ModelBundle:
    """Return a copy of the bundle whose fused graph is another, its digest put right: the bundle's own digest stays as it was."""
    shutil.copytree(bundle.path, path)
    model = onnx.load(path / FUSED_ONNX)
    change(model)
    data = model.SerializeToString()
    (path / FUSED_ONNX).write_bytes(data)
    manifest = json.loads((path / MANIFEST).read_bytes())
    manifest["derived"][FUSED_ONNX] = {"sha256": sha256_bytes(data), "size_bytes": len(data)}
    (path / MANIFEST).write_bytes(canonical_json(manifest))
    return open_bundle(path)


def changed_weight(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[onnx.ModelProto], None]:
    """Return what changes the values of a model's weights of this name."""

    def of_model(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        value = numpy_helper.to_array(tensor).copy()
        change(value)
        tensor.CopyFrom(numpy_helper.from_array(value, name))

    return of_model


def reference_parts(
    backbone: onnx.ModelProto,
    heads: Sequence[HeadArtifact],
    weights_K: Sequence[dict[str, np.ndarray]],
    shape: tuple[int, ...],
    *,
    with_logits: bool,
) -> dict[str, bytes | Path]:
    """Return the reference rows of a bundle and the answers for them, in numpy."""
    x = normal(np.random.default_rng(5), 4, *shape)
    w, b = (numpy_helper.to_array(tensor) for tensor in backbone.graph.initializer)
    z_ND = np.maximum(x.reshape(len(x), -1).astype(np.float64) @ w + b, 0)
    logit_NK = np.concatenate([z_ND @ weights["weight"].T + weights["bias"] for weights in weights_K], axis=1)
    scale_K, bias_K = (np.array([getattr(head.calibration, name) for head in heads]) for name in ("scale", "bias"))
    prob_NK = 1 / (1 + np.exp(-(scale_K * logit_NK + bias_K)))
    arrays = {"x": x, "prob": prob_NK, **({"logit": logit_NK.astype(np.float32)} if with_logits else {})}
    return {f"reference/{name}.npy": npy_bytes(array) for name, array in arrays.items()}


def dense_backbone(shape: tuple[int, ...], num_features: int, *, seed: int) -> onnx.ModelProto:
    """Return Flatten, Gemm, Relu with random weights: x (B, *shape) -> features (B, D)."""
    rng = np.random.default_rng(1000 + seed)
    size = int(np.prod(shape))
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w", "b"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["features"]),
        ],
        "backbone",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", num_features])],
        [numpy_helper.from_array(normal(rng, size, num_features), "w"), numpy_helper.from_array(normal(rng, num_features), "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)
