"""Beta and isotonic calibrations in ONNX Runtime, against `calibrated_prob`."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ovr.calibrator.apply import calibrated_prob, sigmoid
from ovr.calibrator.auto import Auto
from ovr.core.artifact import MIN_KNOT_STEP, Calibration
from ovr.core.onnx_file import HEAD_OPS
from ovr.errors import ArtifactError
from ovr.export.calibrated import table
from ovr.export.check import check_structure, run
from ovr.export.fused import fused_model
from ovr.export.head import head_constants, head_model
from ovr.runtime.reference import tolerances
from tests.bundles import dense_backbone
from tests.export.sample import HEADS, sample_bundle, sample_model, sample_rows
from tests.export.test_fused import card, head_protos, serialised

BETA = Calibration("beta", 0.4, -0.7, scale_negative=2.5)
# One feature, which is the logit.
ITSELF = {"weight": np.ones((1, 1), np.float32), "bias": np.zeros(1, np.float32)}


def isotonic(num_knots, seed=0, step=MIN_KNOT_STEP):
    rng = np.random.default_rng(seed)
    knots = np.cumsum(rng.integers(1, 4, num_knots)) * step - 2.0
    probs = np.sort(rng.uniform(0.01, 0.99, num_knots))
    return Calibration("isotonic", knot_logits=tuple(knots.tolist()), knot_probs=tuple(probs.tolist()))


def spline():
    """Return what `auto` makes of rows whose log-odds bend."""
    z = np.random.default_rng(0).normal(-1.0, 3.0, (600, 5))
    target = np.random.default_rng(1).random(z.shape) < sigmoid(np.interp(z, [-20.0, -3.0, 1.0, 20.0], [-7.0, -3.6, 1.2, 3.1]))
    return Auto(kinds=["spline"]).fit(z, target, np.ones_like(target))[0]


KINDS = [BETA, Calibration("beta", 20.0, 3.0, scale_negative=0.05), *map(isotonic, (1, 2, 3, 4, 7, 8, 100)), spline()]


def every_float_near(values):
    values = np.asarray(values, np.float32)
    return np.concatenate([np.nextafter(values, np.float32(-np.inf)), values, np.nextafter(values, np.float32(np.inf))])


def head_prob(calibration, logit_N):
    data = check_structure(head_model("linear", ITSELF, calibration, {}), allowed_ops=HEAD_OPS, what="head")
    return run(data, np.asarray(logit_N, np.float32)[:, None])[:, 0]


@pytest.mark.parametrize("calibration", KINDS)
def test_a_heads_file_gives_the_probabilities_of_its_calibration_and_never_falls(calibration):
    near = every_float_near(calibration.knot_logits)
    logit_N = np.random.default_rng(0).normal(size=3000) * 8
    logit_N = np.sort(np.concatenate([logit_N, near, [-3e38, -1e4, 0.0, 1e4, 3e38]]).astype(np.float32))
    got_N = head_prob(calibration, logit_N)
    np.testing.assert_allclose(got_N, calibrated_prob(logit_N[:, None], [calibration])[:, 0], atol=2e-6)
    # ONNX Runtime's own sigmoid falls by so much here and there.
    assert np.diff(got_N).min() >= (0 if calibration.kind == "isotonic" else -1e-6)
    assert got_N.min() >= 0
    assert got_N.max() <= 1


def test_at_its_knots_and_outside_isotonic_is_exact():
    calibration = isotonic(100, step=0.25)
    logits, probs = np.float32(calibration.knot_logits), np.float32(calibration.knot_probs)
    np.testing.assert_array_equal(head_prob(calibration, logits), probs)
    np.testing.assert_array_equal(head_prob(calibration, [-np.inf, -100.0, 100.0, np.inf]), probs[[0, 0, -1, -1]])


def test_a_logit_that_is_off_moves_a_probability_by_no_more_than_its_tolerance_allows():
    for calibration in (BETA, isotonic(50), isotonic(3, step=4.0), Calibration("beta", 0.1, scale_negative=0.3)):
        logit_N = np.random.default_rng(0).normal(size=5000) * 2
        moved_N = calibrated_prob(np.stack([logit_N, logit_N + 4e-5], axis=1), [calibration] * 2)
        assert np.diff(moved_N, axis=1).max() <= tolerances([calibration])[0] * (1 + 1e-9)
    assert tolerances([isotonic(3, step=4.0), isotonic(1)]).tolist() == [1e-5, 1e-5]


def test_tables_end_in_what_a_search_needs():
    assert [len(table(np.arange(n))) for n in (1, 2, 3, 4, 7, 8)] == [3, 5, 5, 9, 9, 17]
    assert table([1.0, 2.0]).tolist() == [1.0, 1.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("kind", HEADS)
def test_kind_and_constants_are_read_back(kind):
    module = HEADS[kind](5, 1)
    for calibration, names in ((BETA, {"scale", "scale_negative", "calibration_bias"}), (isotonic(5), {"knot_logit", "knot_prob"})):
        got_kind, constants = head_constants(head_model(kind, module.head_weights(0), calibration, {}))
        assert got_kind == kind
        assert set(constants) == {*module.head_weights(0), *names}


def test_swapping_the_knots_recalibrates():
    model, other = (head_model("linear", ITSELF, isotonic(12, seed), {}) for seed in (0, 1))
    swapped = {tensor.name: tensor for tensor in other.graph.initializer}
    for tensor in model.graph.initializer:
        if tensor.name.startswith("knot"):
            tensor.CopyFrom(swapped[tensor.name])
    x = np.linspace(-3, 3, 100, dtype=np.float32)[:, None]
    assert np.array_equal(run(model.SerializeToString(), x), run(other.SerializeToString(), x))


def test_an_affine_heads_bytes_are_what_they_were_before_there_were_others():
    model = head_model("linear", ITSELF, Calibration("platt", 0.5, 0.25), {})
    arrays = {
        "weight": ITSELF["weight"],
        "bias": ITSELF["bias"],
        "scale": np.float32([0.5]),
        "calibration_bias": np.float32([0.25]),
    }
    expected = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Gemm", ["features", "weight", "bias"], ["logit"], transB=1),
            onnx.helper.make_node("Mul", ["logit", "scale"], ["scaled_logit"]),
            onnx.helper.make_node("Add", ["scaled_logit", "calibration_bias"], ["calibrated_logit"]),
            onnx.helper.make_node("Sigmoid", ["calibrated_logit"], ["prob"]),
        ],
        "ovr_head",
        [onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["batch", 1])],
        [onnx.helper.make_tensor_value_info("prob", onnx.TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    assert model.graph.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)


@pytest.fixture(scope="module")
def trunk():
    model = sample_model(backbone="identity").eval()
    return model, dense_backbone((64,), 40, seed=0)


def fused(trunk, calibrations, kinds=("linear",)):
    """Return the bytes of the fused graph of heads of these calibrations, of the kinds in turn."""
    num_heads = len(calibrations)
    the_card = card(trunk[1], num_heads)
    protos = []
    for kind in kinds:
        protos.append(head_protos(MODULES[kind, num_heads], calibrations, the_card))
    return serialised(fused_model(trunk[1], [protos[k % len(kinds)][k] for k in range(num_heads)], the_card))


MODULES = {(kind, num_heads): HEADS[kind](40, num_heads) for kind in HEADS for num_heads in (6, 10, 70)}


@pytest.mark.parametrize("kinds", [("linear",), ("mlp",), ("linear", "mlp")])
@pytest.mark.parametrize("num_heads", [10, 70])
def test_other_kinds_leave_the_bits_of_all_affine_heads(trunk, kinds, num_heads):
    affine = [Calibration("platt", 0.3 + 0.1 * (k % 20), 0.1 * (k % 7)) for k in range(num_heads)]
    x = np.random.default_rng(0).normal(size=(70, 64)).astype(np.float32) * 3
    before = fused(trunk, affine, kinds)
    few, many = {3: BETA, 6: isotonic(9)}, {3: BETA, 4: BETA, 6: isotonic(9), 0: isotonic(40, 1), 9: isotonic(2, 2)}
    probs = {}
    for name, changes in (("few", few), ("many", many)):
        calibrations = [changes.get(k, affine[k]) for k in range(num_heads)]
        after = fused(trunk, calibrations, kinds)
        for batch_size in (1, 2, 7, 64, 70):
            here, there = (run(data, x, batch_size=batch_size) for data in (before, after))
            same_K = (here == there).all(axis=0)
            assert set(np.flatnonzero(~same_K).tolist()) == set(changes), (name, batch_size)
            probs.setdefault((name, 3), []).append(there[:, 3])
            probs.setdefault((name, 6), []).append(there[:, 6])
    for k in (3, 6):  # nor does a row's batch, or how many others there are, change those of the others
        assert all(np.array_equal(prob_N, probs["few", k][0]) for name in ("few", "many") for prob_N in probs[name, k])


def test_a_bundle_with_all_kinds_gives_torchs_probabilities_and_is_read_back(tmp_path):
    calibrations = [BETA, Calibration("identity"), isotonic(30), isotonic(3, step=1.0), Calibration("platt", 0.5, 0.1)]
    for name in ("linear", "mlp"):
        bundle, diffs = sample_bundle(tmp_path / name, sample_model(head=name), list("abcde"), calibrations=calibrations)
        assert [head.calibration for head in bundle.heads] == calibrations
        assert max(diffs.values()) < tolerances(calibrations).max()
        prob_NK = run(bundle.fused_onnx.read_bytes(), sample_rows())
        assert np.abs(prob_NK - np.load(bundle.path / "reference" / "prob.npy")).max() == diffs["fused"]


WRONG = [{"scale": None}, {"scale_negative": np.zeros(2, np.float32)}, {"knot_prob": np.zeros(1, np.float32)}]


@pytest.mark.parametrize("changes", WRONG)
def test_constants_of_no_calibration_are_refused(changes):
    model = head_model("linear", ITSELF, BETA, {})
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in changes]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *(numpy_helper.from_array(v, k) for k, v in changes.items() if v is not None)])
    with pytest.raises(ArtifactError, match="needs the initialisers scale and calibration_bias of shape"):
        head_constants(model)


def test_a_beta_calibration_that_is_none_is_refused():
    with pytest.raises(ArtifactError, match=r"scale 1\.0, -1\.0, bias 0\.0; expected finite, scale above 0"):
        head_model("linear", ITSELF, Calibration("beta", scale_negative=-1.0), {})
