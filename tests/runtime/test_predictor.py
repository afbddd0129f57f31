import json
import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest

import ovr
from ovr import EdgePredictor
from ovr.core.artifact import DecisionPolicy
from ovr.core.files import canonical_json, sha256_file
from ovr.decision.decide import decide
from ovr.errors import ArtifactError, ConfigError, InputError
from tests.bundles import ODD_IDS, small_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    policy = DecisionPolicy(mode="multilabel", abstain_below=0.99, top_k=3)
    return small_bundle(tmp_path_factory.mktemp("predictor") / "bundle", ODD_IDS, shape=(2, 3), policy=policy)


@pytest.fixture
def x(rng):
    return rng.normal(size=(70, 2, 3)).astype(np.float32)


def test_probabilities_are_those_of_onnx_runtime(bundle, x):
    expected_BK = onnxruntime.InferenceSession(bundle.fused_onnx, providers=["CPUExecutionProvider"]).run(["prob"], {"x": x})[0]
    prob_BK = EdgePredictor(bundle.path).predict_proba(x)
    assert prob_BK.dtype == np.float32
    assert (prob_BK == expected_BK).all()


def test_the_onnx_file_alone_is_enough(bundle, x):
    alone, whole = EdgePredictor(str(bundle.fused_onnx)), EdgePredictor(bundle.path)
    assert alone.card == whole.card == bundle.card
    assert (alone.predict_proba(x) == whole.predict_proba(x)).all()


@pytest.mark.parametrize("batch_size", [1, 3, 64, 1000])
def test_a_row_gets_the_same_bytes_in_every_batch(bundle, x, batch_size):
    predictor = EdgePredictor(bundle.path)
    assert (predictor.predict_proba(x, batch_size=batch_size) == predictor.predict_proba(x)).all()


def test_the_other_heads_keep_their_bytes_when_one_is_replaced(bundle, tmp_path, x):
    seeds = [99, *range(1, len(ODD_IDS))]
    other = small_bundle(tmp_path / "other", ODD_IDS, shape=(2, 3), head_seeds=seeds)
    before_BK, after_BK = (EdgePredictor(path).predict_proba(x) for path in (bundle.path, other.path))
    assert (before_BK[:, 1:] == after_BK[:, 1:]).all()
    assert (before_BK[:, 0] != after_BK[:, 0]).any()


def test_the_decision_is_that_of_the_policy(bundle, x):
    prediction = EdgePredictor(bundle.path).predict(x)
    expected = decide(prediction.prob_BK, threshold_K=[head.threshold for head in bundle.heads], policy=bundle.policy)
    assert (prediction.decision.label_BK == expected.label_BK).all()
    assert (prediction.decision.abstained_B == expected.abstained_B).all()
    assert (prediction.decision.top_BM == expected.top_BM).all()


def test_progress_counts_every_row(bundle, x):
    done = []
    EdgePredictor(bundle.path).predict(x, batch_size=30, progress=done.append)
    assert done == [30, 30, 10]


def test_rows_that_do_not_fit_are_refused(bundle, x):
    predictor = EdgePredictor(bundle.path)
    with pytest.raises(InputError, match=r"rows have shape \(70, 6\); expected \(rows, 2, 3\)"):
        predictor.predict(x.reshape(70, 6))
    for batch_size in (0, "a", 2.0, True):
        with pytest.raises(InputError, match=r"batch_size is .*; expected a whole number of at least 1"):
            predictor.predict(x, batch_size=batch_size)


def test_rows_that_do_not_fit_are_counted_apart(bundle, x):
    edge = EdgePredictor(bundle.path)
    edge.predict(x[:3])
    edge.predict(x[:2], encoded=True)
    with pytest.raises(InputError):
        edge.predict(np.full_like(x[:4], np.nan))
    assert edge.num_rows == {"passed": 3, "refused": 4}
    some_bad = x[:50].copy()
    some_bad[[7, 30], 1, 2] = np.inf
    with pytest.raises(InputError, match=r"row 7, .* holds inf"):
        edge.predict(some_bad)
    assert edge.num_rows == {"passed": 51, "refused": 6}
    with pytest.raises(InputError, match="got dtype"):
        edge.predict("two")
    assert edge.num_rows == {"passed": 51, "refused": 6}


def test_every_row_that_is_refused_is_told_with_its_reason(bundle, x):
    edge = EdgePredictor(bundle.path)
    rows = x[:9].tolist()
    assert edge.check(rows) == edge.check(x[:9]) == {}
    rows[2][0][1] = "one"
    rows[5] = [[1.0]]
    rows[8][1][0] = None
    assert edge.check(rows) == {
        2: "position (0, 1) holds 'one'; expected a number",
        5: "rows have shape (1, 1, 1); expected (rows, 2, 3)",
        8: "position (1, 0) holds None; expected a number",
    }
    assert edge.num_rows == {"passed": 0, "refused": 0}
    with pytest.raises(InputError, match="got no rows"):
        edge.check(x[:0])


@pytest.mark.parametrize(("opset", "ir_version", "takes"), [(18, 99, r"IR version \d+ at most"), (99, 10, r"opset \d+ at most")])
def test_a_runtime_that_is_too_old_for_a_model_is_said_to_be(bundle, tmp_path, opset, ir_version, takes):
    model = onnx.load(bundle.fused_onnx)
    model.ir_version, model.opset_import[0].version = ir_version, opset
    onnx.save(model, tmp_path / "new.onnx")
    said = (
        rf"has opset {opset} and IR version {ir_version}, and needs a later release: onnxruntime [\d.]+ takes {takes}; `ovr export"
    )
    with pytest.raises(ArtifactError, match=rf"{said} target=edge opset=18 ir_version=10` makes a file for this one"):
        EdgePredictor(tmp_path / "new.onnx")


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(
        ArtifactError, match="none does not exist; expected a bundle directory, an edge export or a fused ONNX file"
    ):
        EdgePredictor(tmp_path / "none")


def test_a_bundle_with_one_byte_changed_is_refused(tmp_path):
    bundle = small_bundle(tmp_path / "bundle")
    data = bytearray(bundle.fused_onnx.read_bytes())
    data[len(data) // 2] ^= 1
    bundle.fused_onnx.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"fused/model\.onnx was changed"):
        EdgePredictor(bundle.path)


def test_what_is_no_onnx_file_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match=r"model\.onnx is not a valid ONNX model"):
        EdgePredictor(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"\x3a\x00")  # an empty graph, of no version
    with pytest.raises(ArtifactError, match="cannot be opened as an ONNX model"):
        EdgePredictor(tmp_path / "model.onnx")


def test_an_onnx_file_without_a_card_is_refused(bundle):
    with pytest.raises(ArtifactError, match=r"has no ovr\.card in its metadata"):
        EdgePredictor(bundle.backbone_onnx)


def test_a_damaged_card_is_refused(bundle, tmp_path):
    model = onnx.load(bundle.fused_onnx)
    model.metadata_props[0].value = "{"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match=r"the model card in .* is not JSON"):
        EdgePredictor(tmp_path / "model.onnx")


def test_a_fused_file_of_another_bundle_is_refused(tmp_path):
    bundle = small_bundle(tmp_path / "bundle")
    other = small_bundle(tmp_path / "other", version=2)
    # The digest of the fused file is recorded beside the manifest's own, so that a forger could adapt it.
    other_bytes = other.fused_onnx.read_bytes()
    bundle.fused_onnx.write_bytes(other_bytes)
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    manifest["derived"]["fused/model.onnx"] = {"sha256": sha256_file(bundle.fused_onnx), "size_bytes": len(other_bytes)}
    (bundle.path / "manifest.json").write_bytes(canonical_json(manifest))
    with pytest.raises(ArtifactError, match="is not that of the bundle; export the bundle again"):
        EdgePredictor(bundle.path)


def test_it_needs_neither_torch_nor_onnx_and_reports_to_nobody(bundle, tmp_path):
    code = (
        "import sys\nfrom ovr import EdgePredictor\nimport numpy as np\n"
        f"EdgePredictor({str(bundle.path)!r}).predict(np.zeros((1, 2, 3)))\n"
        "print(*(name for name in ('torch', 'onnx', 'tritonclient', 'hydra', 'lightning') if name in sys.modules))"
    )
    env = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**env, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"
    assert list(tmp_path.iterdir()) == []  # onnxruntime's telemetry would keep a session file here


def test_the_package_knows_its_public_classes_only():
    assert ovr.Client.__name__ == "Client"
    with pytest.raises(AttributeError, match="module 'ovr' has no attribute 'Nothing'"):
        ovr.Nothing  # noqa: B018


@pytest.mark.parametrize("num_threads", [-1, "two", True])
def test_a_number_of_threads_that_is_none_is_refused(bundle, num_threads):
    with pytest.raises(ConfigError, match=r"num_threads is .*; expected a whole number of at least 0"):
        EdgePredictor(bundle.path, num_threads=num_threads)


@pytest.mark.parametrize("path", [None, 3])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(ConfigError, match=r"path is .*; expected that of a bundle directory, an edge export or a fused ONNX file"):
        EdgePredictor(path)


def test_a_frame_keeps_its_index(tmp_path, rng):
    pandas = pytest.importorskip("pandas")
    predictor = EdgePredictor(small_bundle(tmp_path / "bundle").path)
    frame = pandas.DataFrame(rng.normal(size=(5, 6)), index=list("abcde"))
    prediction = predictor.predict(frame)
    assert prediction.to_pandas().index.tolist() == list("abcde")
    assert (prediction.prob_BK == predictor.predict_proba(frame.to_numpy())).all()
    assert predictor.predict(frame.to_numpy()).index is None
