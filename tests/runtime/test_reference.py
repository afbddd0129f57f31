import numpy as np
import pytest

from ovr.core.artifact import Calibration
from ovr.errors import ArtifactError
from ovr.runtime.reference import Reference, load_reference, tolerances
from tests.export.sample import sample_bundle, sample_model, sample_rows


@pytest.fixture
def reference():
    prob_NK = np.linspace(0, 1, 6).reshape(3, 2)
    return Reference(np.zeros((3, 4), np.float32), prob_NK, np.array([1e-5, 1e-3]), ("a", "b"))


def test_the_largest_difference_comes_back(reference):
    prob_NK = reference.prob_NK.copy()
    prob_NK[1, 1] += 5e-4
    assert reference.compare(prob_NK, what="it") == pytest.approx(5e-4)


@pytest.mark.parametrize("wrong", [2e-5, float("nan")])
def test_a_class_beyond_its_own_tolerance_is_named(reference, wrong):
    prob_NK = reference.prob_NK.copy()
    prob_NK[2, 0] += wrong
    with pytest.raises(ArtifactError, match=r"it gives class 'a' on reference row 2 .* within 1e-05 \(1 of 2 classes are wrong\)"):
        reference.compare(prob_NK, what="it")


def test_another_shape_is_refused(reference):
    with pytest.raises(ArtifactError, match=r"it gives shape \(3, 1\) for the reference rows; expected \(3, 2\)"):
        reference.compare(reference.prob_NK[:, :1], what="it")


def test_the_tolerance_follows_the_scale_where_it_magnifies():
    np.testing.assert_allclose(tolerances([Calibration(scale=0.1), Calibration(), Calibration(scale=20.0)]), [1e-5, 1e-5, 2e-4])


def test_what_a_bundle_keeps_is_read_back(tmp_path):
    bundle, _ = sample_bundle(tmp_path / "bundle", sample_model(num_heads=2), ["a", "b"])
    loaded = load_reference(bundle)
    assert np.array_equal(loaded.x, sample_rows())
    assert loaded.class_ids == ("a", "b")
    assert loaded.parts() == {name: (bundle.path / name).read_bytes() for name in ("reference/x.npy", "reference/prob.npy")}


def test_missing_and_foreign_reference_rows_are_refused(tmp_path):
    bundle, _ = sample_bundle(tmp_path / "bundle", sample_model(num_heads=2), ["a", "b"])
    np.save(bundle.path / "reference" / "x.npy", np.zeros((3, 5), np.float32))
    with pytest.raises(
        ArtifactError, match=r"reference rows of shape \(3, 5\) with probabilities \(32, 2\); expected \(N, 1, 8, 8\)"
    ):
        load_reference(bundle)
    (bundle.path / "reference" / "x.npy").unlink()
    with pytest.raises(ArtifactError, match="has no readable reference rows"):
        load_reference(bundle)
