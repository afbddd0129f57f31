"""The model `ovr` that clients talk to: checks the rows, asks `ovr_scores`, decides. Runs inside Triton's Python backend.

It needs numpy, the files of ovr that it imports (published beside it, the encoder's among them) and `card.json`; it does not know
how scores are computed.

B = batch, K = heads, M = top-k
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ovr.core.artifact import ModelCard
from ovr.core.cohorts import COHORT
from ovr.core.outcomes import OUTPUTS
from ovr.core.schema import check_rows
from ovr.decision.decide import decide
from ovr.errors import InputError
from ovr.input.encoder import encoder_from_json
from ovr.input.records import IMAGE, from_bytes, wire_name
from ovr.input.row_problems import row_problems
from ovr.runtime.cohort_rows import cohort_names, split_cohorts

SCORES = "ovr_scores"


class TritonPythonModel:
    """One instance of the router."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the model card of this version."""
        directory = Path(args["model_repository"]) / args["model_version"]
        self.card = ModelCard.from_json(json.loads((directory / "card.json").read_bytes()))
        self.version = int(args["model_version"])  # the scores of the same publication have the same version
        self.encoder = encoder_from_json(self.card.input.encoder)
        self.input_name = self.card.input.name if self.encoder is None else wire_name(self.encoder.kind)
        self.rows_total = pb_utils.MetricFamily(  # must outlive its metrics
            name="ovr_rows_total",
            description="Rows asked for: those that fit the input schema, and those that do not and for which a request is refused",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self.num_rows = {
            outcome: self.rows_total.Metric(
                labels={"model": args["model_name"], "version": args["model_version"], "outcome": outcome}
            )
            for outcome in ("passed", "refused")
        }
        self.num_cohort_rows: dict[str, Any] = {}
        if self.card.cohorts is not None:
            self.cohort_rows_total = pb_utils.MetricFamily(
                name="ovr_cohort_rows_total",
                description="Rows answered of a cohort that the model knows, and pooled ones: of one that it does not, and of none",
                kind=pb_utils.MetricFamily.COUNTER,
            )
            self.num_cohort_rows = {
                cohort: self.cohort_rows_total.Metric(
                    labels={"model": args["model_name"], "version": args["model_version"], "cohort": cohort}
                )
                for cohort in ("known", "unknown", "missing")
            }
        self.threshold_K = np.array(self.card.thresholds)
        self.class_K = np.array([class_id.encode() for class_id in self.card.taxonomy.ids], dtype=np.object_)
        self.head_version_K = np.array(self.card.head_versions, dtype=np.int64)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request; a bad one gets an error of its own, the others are scored together."""
        responses: list[Any] = [None] * len(requests)
        rows: dict[int, np.ndarray[Any, Any]] = {}
        cohorts: list[str | None] = []  # of the rows that are scored, where the model has any
        for index, request in enumerate(requests):
            sent = pb_utils.get_input_tensor_by_name(request, self.input_name).as_numpy()
            try:
                rows[index], names = self._encoded(request, sent)
                cohorts += names
                num_refused = 0
            except InputError as error:
                responses[index] = _error(str(error), pb_utils.TritonError.INVALID_ARG)
                num_refused = len(self._problems(sent))
            self.num_rows["passed"].increment(len(sent) - num_refused)
            self.num_rows["refused"].increment(num_refused)
        if not rows:
            return responses
        scored = self._score(np.concatenate(list(rows.values())), cohorts)
        if scored.has_error():
            failure = _error(f"{SCORES}: {scored.error().message()}", pb_utils.TritonError.UNAVAILABLE)
            return [failure if response is None else response for response in responses]
        prob_BK = pb_utils.get_output_tensor_by_name(scored, "prob").as_numpy()
        start = 0
        for index, x in rows.items():
            try:
                responses[index] = self._answer(requests[index], prob_BK[start : start + len(x)])
            except InputError as error:  # a finite row can still overflow within the model
                responses[index] = _error(str(error), pb_utils.TritonError.INTERNAL)
            start += len(x)
        return responses

    def finalize(self) -> None:
        """Let go of the counts before their family."""
        self.num_rows.clear()
        self.num_cohort_rows.clear()

    def _encoded(self, request: Any, sent: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], list[str | None]]:
        """Return the rows as the network takes them, and of a model with cohorts the cohort of each."""
        x, cells = self._rows(sent)
        if self.card.cohorts is None:
            return x, []
        given = pb_utils.get_input_tensor_by_name(request, COHORT)
        return x, cohort_names(cells if given is None else given.as_numpy()[:, 0], len(x))

    def _rows(self, sent: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], Any]:
        """Return the rows as the network takes them, and the cells of the cohorts' column that they hold."""
        rows = sent if self.encoder is None else from_bytes(sent, self.encoder.kind)
        cells, rows = split_cohorts(rows, self.card, self.encoder)
        return check_rows(rows, self.card.input) if self.encoder is None else self.encoder.encode(rows), cells

    def _problems(self, sent: np.ndarray[Any, Any]) -> dict[int, str]:
        """Return what is wrong with each row that is refused."""
        dear = self.encoder is not None and self.encoder.kind == IMAGE
        return row_problems(len(sent), lambda some: self._rows(sent[some]), one_by_one=dear)

    def _score(self, x: np.ndarray[Any, Any], cohorts: Sequence[str | None]) -> Any:
        inputs = [pb_utils.Tensor(self.card.input.name, x)]
        if self.card.cohorts is not None:
            inputs.append(pb_utils.Tensor(COHORT, self.card.cohorts.numbers(cohorts)[:, None]))
            for cohort, count in self.card.cohorts.count(cohorts).items():
                self.num_cohort_rows[cohort].increment(count)
        request = pb_utils.InferenceRequest(
            model_name=SCORES,
            model_version=self.version,
            requested_output_names=["prob"],
            inputs=inputs,
            # A GPU instance of the scores would otherwise be free to leave them on the GPU, where numpy cannot read them.
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        return request.exec()

    def _answer(self, request: Any, prob_BK: np.ndarray[Any, Any]) -> Any:
        decision = decide(prob_BK, threshold_K=self.threshold_K, policy=self.card.policy)
        outputs = {
            "prob": np.ascontiguousarray(prob_BK),
            "label": decision.label_BK,
            "abstained": decision.abstained_B[:, None],
            "top": decision.top_BM,
            "top_class": self.class_K[decision.top_BM],
            "head_version": np.broadcast_to(self.head_version_K, prob_BK.shape).copy(),
        }
        wanted = request.requested_output_names()
        for name in OUTPUTS.keys() & wanted:
            outputs[name] = OUTPUTS[name](prob_BK).reshape(len(prob_BK), -1)
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(name, outputs[name]) for name in wanted])


def _error(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
