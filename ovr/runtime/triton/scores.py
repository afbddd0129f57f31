"""How the router gets its scores: from `ovr_scores`, or from `backbone` and a model a head. Talks to Triton, decides nothing.

B = batch, D = features, K = heads
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from ovr.core.artifact import ModelCard
from ovr.core.cohorts import COHORT
from ovr.core.faults import HeadPlan
from ovr.core.taxonomy import slug
from ovr.runtime.triton.all_heads import AllHeads
from ovr.runtime.triton.head_faults import HeadFaults
from ovr.runtime.triton.heads import Heads, Scored, scored_at_once
from ovr.runtime.triton.needed import Needed, NotScored

SCORES = "ovr_scores"
BACKBONE = "backbone"
ENSEMBLE = "ovr_heads"
QUEUE_FULL = "Exceeds maximum queue size"  # Triton's words, by which clients know that it is for now


class FusedScores:
    """Layout fused: one model for all heads."""

    def __init__(self, card: ModelCard, version: int, plan: HeadPlan) -> None:
        """Take `version` of the router: the scores of the same publication have the same."""
        self._input, self._version = card.input.name, version
        self._needed = Needed(SCORES, plan.faults.scores_timeout_ms / 1000, _asked)
        self._head_version_K = np.array(card.head_versions, dtype=np.int64)

    def score(self, x: NDArray[np.float32], cohort_B1: NDArray[np.int64] | None, columns: Sequence[int]) -> Scored:
        """Return the scores of all classes, whichever are asked for.

        Raises:
            NotScored: the scores do not answer, or not in time.
        """
        inputs: dict[str, NDArray[Any]] = {self._input: x}
        if cohort_B1 is not None:
            inputs[COHORT] = cohort_B1
        return scored_at_once(self._needed.ask(SCORES, self._version, inputs, "prob"), self._head_version_K)


class HeadScores:
    """Layout per_head: all heads by their ensemble, or else the features once, then the heads at the same time."""

    def __init__(self, card: ModelCard, version: int, plan: HeadPlan) -> None:
        """Take `version` of the router: the ensemble of the same publication has the same."""
        assert plan.backbone_version is not None
        self._input, self._backbone_version = card.input.name, plan.backbone_version
        self._outputs = [f"prob_{slug(class_id)}" for class_id in card.taxonomy.ids]
        self._head_version_K = np.array(card.head_versions, dtype=np.int64)
        self._all_heads = AllHeads(self._prob_of_all, pause_s=plan.faults.breaker_pause_s, tell=pb_utils.Logger.log_warn)
        self._head_timeout_s = plan.faults.head_timeout_ms / 1000
        self._backbone_s: float | None = None  # the longest that it took, but for its first call; None before that
        self._needed = Needed(BACKBONE, plan.faults.scores_timeout_ms / 1000, _asked)
        labels = {"model": "ovr", "version": str(version)}
        self.faults = HeadFaults(card, max_classes=plan.metrics.max_classes, labels=labels)
        count, changed = self.faults.count, self.faults.changed
        self._heads = Heads(card.taxonomy, card.head_versions, plan, call=_head_prob, on_fault=count, on_change=changed)
        self._router_version = version

    def score(self, x: NDArray[np.float32], cohort_B1: NDArray[np.int64] | None, columns: Sequence[int]) -> Scored:
        """Return the scores of these columns.

        Raises:
            NotScored: the backbone does not answer, or not in time.
        """
        assert cohort_B1 is None  # `publish` refuses cohorts in this layout
        if len(columns) == len(self._outputs) and self._heads.are_well():
            prob_BK = self._all_heads.ask(x, (self._backbone_s or 0.0) + self._head_timeout_s)
            if prob_BK is not None:
                self._heads.answered()
                return scored_at_once(prob_BK, self._head_version_K)
        began_s = time.monotonic()
        features_BD = self._needed.ask(BACKBONE, self._backbone_version, {self._input: x}, "features")
        self._backbone_s = 0.0 if self._backbone_s is None else max(self._backbone_s, time.monotonic() - began_s)
        finite_B = np.isfinite(features_BD).all(axis=1)
        if finite_B.all():
            return self._heads.score(features_BD, columns)
        # No head is to blame for what it makes of rows that overflow: they have no features, and get no probability.
        scored = self._heads.score(np.where(finite_B[:, None], features_BD, np.float32(0)), columns)
        scored.prob_BK[~finite_B] = np.nan
        scored.head_version_BK[~finite_B] = 0
        assert scored.is_odd_B is not None
        scored.is_odd_B[~finite_B] = True
        return scored

    def _prob_of_all(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the ensemble of this publication gives, which has the router's version."""
        return np.concatenate(_asked_for(ENSEMBLE, self._router_version, {self._input: x}, self._outputs), axis=1)


def _head_prob(model: str, version: int, features_BD: NDArray[np.float32]) -> NDArray[np.float32]:
    prob_B1 = _asked(model, version, {"features": features_BD}, "prob")
    if prob_B1.shape != (len(features_BD), 1):
        raise NotScored(f"{model} gives an array of shape {prob_B1.shape}; expected {(len(features_BD), 1)}")
    return prob_B1[:, 0]


def _asked(model: str, version: int, inputs: dict[str, NDArray[Any]], output: str) -> NDArray[Any]:
    (array,) = _asked_for(model, version, inputs, [output])
    return array


def _asked_for(model: str, version: int, inputs: dict[str, NDArray[Any]], outputs: list[str]) -> list[NDArray[Any]]:
    request = pb_utils.InferenceRequest(
        model_name=model,
        model_version=version,
        requested_output_names=outputs,
        inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
        # A GPU instance of the scores would otherwise be free to leave them on the GPU, where numpy cannot read them.
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
    )
    response = request.exec()
    if response.has_error():
        details = str(response.error().message())
        told = f"takes no more requests now: {QUEUE_FULL}" if QUEUE_FULL in details else "does not answer"
        raise NotScored(f"{model} {told}", details)
    tensors = {tensor.name(): tensor for tensor in response.output_tensors()}
    return [tensors[output].as_numpy() for output in outputs]
