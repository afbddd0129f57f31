"""The checks against recorded answers, with arrays in place of a server. With a real one: tests/triton/test_swap.py."""

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from ovr import EdgePredictor
from ovr.core.taxonomy import slug
from ovr.errors import ServingError
from ovr.serving import recorded_answers
from ovr.serving.recorded_answers import RecordedAnswers
from tests.bundles import small_bundle
from tests.cohorts import some_cohorts


def answers_of(bundle, monkeypatch, *, off=0.0, head_version=1, num_unavailable=0):
    """Return the checks of a bundle, asked of what ONNX Runtime gives, with class dog off by so much, and at first unavailable."""
    edge, asked = EdgePredictor(bundle.path), []

    def ask(self, model, version, inputs, outputs):
        asked.append((model, version))
        number_N1 = inputs.get("cohort")
        cohort = None if number_N1 is None else ([None, *bundle.cohorts.names][i] for i in number_N1[:, 0])
        x = inputs.get("x", self.reference.x)
        prob_NK = edge.predict_proba(x, cohort=None if cohort is None else list(cohort)).astype(np.float64)
        prob_NK[:, 1] += off
        column = {f"head_{slug(class_id)}": k for k, class_id in enumerate(bundle.taxonomy.ids)}.get(model)
        found = {
            "prob": prob_NK if column is None else prob_NK[:, [column]],
            "head_version": np.full(prob_NK.shape, head_version),
            "unavailable": np.full(prob_NK.shape, [False, len(asked) <= num_unavailable, False]),
            "features": np.zeros((len(x), 5), np.float32),
        }
        found |= {f"prob_{slug(class_id)}": prob_NK[:, [k]] for k, class_id in enumerate(bundle.taxonomy.ids)}
        return [found[name] for name in outputs]

    monkeypatch.setattr(RecordedAnswers, "_ask", ask)
    return RecordedAnswers(bundle, "http://127.0.0.1:9", max_batch_size=8), asked


def test_what_gives_the_recorded_answers_passes(tmp_path, monkeypatch):
    bundle = small_bundle(tmp_path / "bundle")
    answers, asked = answers_of(bundle, monkeypatch)
    answers.check_scores(3)
    answers.check_router(3)
    answers.check_ensemble(3)
    answers.check_heads(7, ["owl"])
    assert asked == [("ovr_scores", 3), ("ovr", 3), ("ovr_heads", 3), ("backbone", 7), ("head_owl", 1)]


def test_what_gives_others_is_named_with_class_and_row(tmp_path, monkeypatch):
    bundle = small_bundle(tmp_path / "bundle")
    answers, _ = answers_of(bundle, monkeypatch, off=2e-5)
    for model, check in (
        ("ovr_scores version 3", lambda: answers.check_scores(3)),
        ("ovr version 3", lambda: answers.check_router(3)),
        ("ovr_heads version 3", lambda: answers.check_ensemble(3)),
        ("head_dog version 1", lambda: answers.check_heads(7, ["owl", "dog"])),
    ):
        with pytest.raises(ServingError, match=rf"does not give the bundle's recorded answers: {model} gives class 'dog' on ref"):
            check()


def test_a_router_of_other_heads_is_told(tmp_path, monkeypatch):
    answers, _ = answers_of(small_bundle(tmp_path / "bundle"), monkeypatch, head_version=2)
    with pytest.raises(ServingError, match=r"ovr version 3 says that its heads are of versions \[2, 2, 2\]; expected \[1, 1, 1\]"):
        answers.check_router(3)


def test_heads_of_a_new_router_are_waited_for_and_not_forever(tmp_path, monkeypatch):
    bundle = small_bundle(tmp_path / "bundle")
    answers, asked = answers_of(bundle, monkeypatch, num_unavailable=2)
    answers.check_router(3)
    assert asked == [("ovr", 3)] * 3
    monkeypatch.setattr(recorded_answers, "READY_TIMEOUT_S", 0.2)
    answers, _ = answers_of(bundle, monkeypatch, num_unavailable=1000)
    with pytest.raises(ServingError, match="ovr version 3 says that class 'dog' is unavailable: its head does not answer in time"):
        answers.check_router(3)


def test_a_router_of_texts_is_not_asked_for_numbers(tmp_path, monkeypatch):
    bundle = small_bundle(tmp_path / "bundle")
    answers, asked = answers_of(bundle, monkeypatch)
    monkeypatch.setattr(type(bundle.input), "raw_kind", "text")
    answers.check_router(3)
    assert asked == []


def test_scores_are_asked_for_every_cohort(tmp_path, monkeypatch):
    bundle = small_bundle(tmp_path / "bundle", cohorts=some_cohorts(3))
    answers, asked = answers_of(bundle, monkeypatch)
    answers.check_scores(1)
    assert len(asked) == 3
    answers, _ = answers_of(bundle, monkeypatch, off=1e-3)
    with pytest.raises(ServingError, match="ovr_scores version 1 gives class 'dog'"):
        answers.check_scores(1)


class FullQueue:
    """A connection to a server whose queue is full so many times."""

    def __init__(self, times):
        self.times = times

    def infer(self, model, tensors, **options):
        self.times -= 1
        if self.times >= 0:
            raise InferenceServerException("Exceeds maximum queue size")
        return "answer"


def test_a_full_queue_is_waited_for_and_not_forever(tmp_path, monkeypatch):
    answers = RecordedAnswers(small_bundle(tmp_path / "bundle"), "http://127.0.0.1:9", max_batch_size=8)
    assert answers._infer(FullQueue(2), "ovr", [], model_version="3") == "answer"
    monkeypatch.setattr(recorded_answers, "TIMEOUT_S", 0.0)
    with pytest.raises(ServingError, match="ovr version 3 does not answer the bundle's reference rows: Exceeds maximum queue size"):
        answers._infer(FullQueue(9), "ovr", [], model_version="3")


def test_a_server_that_is_gone_is_told(tmp_path):
    answers = RecordedAnswers(small_bundle(tmp_path / "bundle"), "http://127.0.0.1:9", max_batch_size=8)
    with pytest.raises(ServingError, match=r"no Triton server answers at http://127\.0\.0\.1:9"):
        answers.check_scores(1)
