"""Exporting heads as ONNX files, and answering with one fused graph against a session for the backbone and one a head.

D = features, K = heads
"""

import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from benchmarks.report import Row, cpu_seconds, main, timed  # first: it pins the number of threads
from ovr.backbone.identity import Identity
from ovr.core.artifact import Calibration, DecisionPolicy
from ovr.core.bundle import ModelBundle
from ovr.core.cohorts import CohortCalibrations
from ovr.core.onnx_file import HEAD_OPS
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.export.bundle import export_bundle
from ovr.export.check import check_structure, run
from ovr.export.head import head_model
from ovr.head.linear import Linear
from ovr.model import Normalizer, OvrModel

D = 384


def export(
    path: Path,
    num_heads: int,
    backbone: Any = None,
    shape: tuple[int, ...] = (D,),
    *,
    policy: DecisionPolicy | None = None,
    encoder: dict[str, Any] | None = None,
    cohorts: CohortCalibrations | None = None,
) -> ModelBundle:
    """Write a bundle of `num_heads` linear heads on what the backbone makes of rows of `shape`, by default the rows themselves."""
    torch.manual_seed(0)
    backbone = backbone or Identity(shape)
    model = OvrModel(Normalizer(torch.zeros(1), torch.ones(1)), backbone, Linear(backbone.num_features, num_heads=num_heads))
    bundle, _ = export_bundle(
        path,
        model=model,
        taxonomy=Taxonomy.from_ids(f"class {k}" for k in range(num_heads)),
        input=InputSchema(shape, encoder=encoder),
        policy=policy or DecisionPolicy(),
        calibrations=[Calibration(scale=0.5, status="ok")] * num_heads,
        thresholds=[0.5] * num_heads,
        versions=[1] * num_heads,
        metrics=[{}] * num_heads,
        reference_rows=np.random.default_rng(0).normal(size=(64, *shape)).astype(np.float32),
        calibration_arrays={},
        report={},
        data_parts={},
        provenance={},
        cohorts=cohorts,
    )
    return bundle


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def export_rows(num_heads: int) -> Iterator[Row]:
    """Yield wall seconds for a whole bundle, and for heads alone against torch's exporter."""
    wall_s, cpu_s = [], []
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder) / "first", 1)  # the first call of torch's exporter loads it
        for run_number in range(3):
            began = time.perf_counter()
            cpu_s.append(cpu_seconds(lambda number=run_number: export(Path(folder) / str(number), num_heads)))
            wall_s.append(time.perf_counter() - began)
    what = "a checked bundle, one file a head"
    yield Row(what, "-", num_heads, statistics.median(wall_s), None, "s wall", None, "flushed to disk, with the backbone")
    yield Row(what, "-", num_heads, statistics.median(cpu_s), None, "s", None)
    heads = Linear(D, num_heads=2)
    z_BD = np.zeros((64, D), np.float32)

    def ours() -> None:
        proto = head_model("linear", heads.head_weights(0), Calibration(), {})
        run(check_structure(proto, allowed_ops=HEAD_OPS, what="head"), z_BD)

    def peer() -> None:
        module = torch.nn.Sequential(torch.nn.Linear(D, 1), torch.nn.Sigmoid()).eval()
        batch = ({0: torch.export.Dim("batch")},)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(module, (torch.zeros(2, D),), dynamo=True, dynamic_shapes=batch, verbose=False)
        assert program is not None
        onnx.checker.check_model(program.model_proto)
        run(program.model_proto.SerializeToString(), z_BD)

    yield timed("one head as checked ONNX", "torch.onnx.export", 1, ours, peer, repeats=5)


def answer_rows(num_heads: int, repeats: int) -> Iterator[Row]:
    """Yield the time of one row through the fused graph and through K head sessions."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(Path(folder) / "bundle", num_heads)
        fused, backbone = session(bundle.fused_onnx), session(bundle.backbone_onnx)
        heads = [session(bundle.head_onnx(head)) for head in bundle.heads]
    row = np.random.default_rng(1).normal(size=(1, D)).astype(np.float32)
    expected_K = fused.run(["prob"], {"x": row})[0][0]
    features = backbone.run(["features"], {"x": row})[0]
    got_K = np.concatenate([head.run(["prob"], {"features": features})[0][0] for head in heads])
    np.testing.assert_allclose(got_K, expected_K, atol=1e-6)
    calls = 100 if num_heads < 1000 else 20  # one call is too short for the clock

    def ours() -> None:
        for _ in range(calls):
            fused.run(["prob"], {"x": row})

    def peer() -> None:
        for _ in range(calls):
            features = backbone.run(["features"], {"x": row})[0]
            for head in heads:
                head.run(["prob"], {"features": features})

    yield timed(
        "fused graph, batch 1", "backbone and K head sessions", num_heads, ours, peer, repeats=repeats, note=f"{calls} calls, D={D}"
    )


def measure(quick: bool) -> Iterator[Row]:
    """Yield all rows."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # of torch's exporter, called as the peer
    yield from export_rows(100 if quick else 1000)
    for num_heads in (10, 100) if quick else (10, 100, 1000):
        yield from answer_rows(num_heads, 5 if quick else 15)


if __name__ == "__main__":
    main(measure, __doc__ or "")
