"""The model `ovr` that clients talk to: checks the rows, has them scored, decides. Runs inside Triton's Python backend.

It needs numpy, the files of ovr that it imports (published beside it, the encoder's among them) and `card.json`; it does not know
how scores are computed, or what is done about heads that do not answer.

B = batch, K = heads, C = classes that a request asks for, M = top-k
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ovr.core.artifact import ModelCard
from ovr.core.cohorts import COHORT
from ovr.core.faults import PLAN, HeadPlan
from ovr.core.schema import check_rows
from ovr.errors import InputError
from ovr.input.encoder import encoder_from_json
from ovr.input.records import IMAGE, from_bytes, wire_name
from ovr.input.row_problems import row_problems
from ovr.runtime.cohort_rows import cohort_names, split_cohorts
from ovr.runtime.triton.answer import Answers, NotAnswered
from ovr.runtime.triton.class_counts import Answered
from ovr.runtime.triton.class_metrics import ClassMetrics
from ovr.runtime.triton.heads import Scored
from ovr.runtime.triton.needed import NotScored
from ovr.runtime.triton.parameters import Asked, parameters_of
from ovr.runtime.triton.request_log import OK, HeadVersions, Noted, RequestLog
from ovr.runtime.triton.scores import FusedScores, HeadScores
from ovr.runtime.triton.spans import exporter

CODES = {"INVALID_ARGUMENT": "INVALID_ARG", "UNAVAILABLE": "UNAVAILABLE", "INTERNAL": "INTERNAL"}  # gRPC's names: Triton's


class TritonPythonModel:
    """One instance of the router."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the model card of this version, and from the configuration how the heads are asked."""
        directory = Path(args["model_repository"]) / args["model_version"]
        self.card = ModelCard.from_json(json.loads((directory / "card.json").read_bytes()))
        parameters = json.loads(args["model_config"]).get("parameters", {})
        plan = HeadPlan.from_json(json.loads(parameters[PLAN]["string_value"])) if PLAN in parameters else HeadPlan()
        version = int(args["model_version"])
        self.scores = (
            FusedScores(self.card, version, plan) if plan.backbone_version is None else HeadScores(self.card, version, plan)
        )
        self.answers = Answers(self.card, plan)
        self.parse = parameters_of(self.card)
        self.encoder = encoder_from_json(self.card.input.encoder)
        self.input_name = self.card.input.name if self.encoder is None else wire_name(self.encoder.kind)
        self.class_metrics = ClassMetrics(self.card, plan.metrics, {"model": args["model_name"], "version": args["model_version"]})
        self.request_log = RequestLog(
            self.card.taxonomy.ids,
            plan.request_log,
            version=version,
            bundle_sha256=self.card.bundle_sha256,
            export=exporter(pb_utils.Logger.log_warn),
        )
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

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request, with its own parameters; a bad one gets an error of its own, the others are scored together."""
        began_s = time.perf_counter()
        responses: list[Any] = [None] * len(requests)
        asked: dict[int, Asked] = {}
        rows: list[np.ndarray[Any, Any]] = []
        cohorts: list[str | None] = []  # of the rows that are scored, where the model has any
        for index, request in enumerate(requests):
            sent = pb_utils.get_input_tensor_by_name(request, self.input_name).as_numpy()
            num_refused = 0
            try:
                wishes = self.parse(request.parameters())
            except InputError as error:
                responses[index] = self._refused(request, "INVALID_ARGUMENT", error, began_s, len(sent))
                continue
            try:
                x, names = self._encoded(request, sent, wishes.cohort)
                rows.append(x)
                cohorts += names
                asked[index] = wishes
            except InputError as error:
                responses[index] = self._refused(request, "INVALID_ARGUMENT", error, began_s, len(sent), wishes)
                num_refused = len(self._problems(sent))
            self.num_rows["passed"].increment(len(sent) - num_refused)
            if num_refused:
                self.num_rows["refused"].increment(num_refused)
        if not rows:
            return responses
        try:
            scored = self.scores.score(np.concatenate(rows), self._cohort_numbers(cohorts), self._columns(asked))
        except NotScored as error:
            for (index, wishes), x in zip(asked.items(), rows, strict=True):
                responses[index] = self._refused(requests[index], "UNAVAILABLE", error, began_s, len(x), wishes)
            return responses
        start = 0
        for (index, wishes), x in zip(asked.items(), rows, strict=True):
            here = slice(start, start + len(x))
            own = Scored(scored.prob_BK[here], scored.head_version_BK[here], scored.answered_K)
            responses[index] = self._answer(requests[index], wishes, own, began_s)
            start += len(x)
        return responses

    def finalize(self) -> None:
        """Let go of the counts before their family."""
        self.num_rows.clear()
        self.num_cohort_rows.clear()
        self.class_metrics.finalize()
        self.request_log.finalize()
        if isinstance(self.scores, HeadScores):
            self.scores.finalize()

    def _encoded(
        self, request: Any, sent: np.ndarray[Any, Any], cohort: str | None
    ) -> tuple[np.ndarray[Any, Any], list[str | None]]:
        """Return the rows as the network takes them, and of a model with cohorts the cohort of each."""
        x, cells = self._rows(sent)
        if self.card.cohorts is None:
            return x, []
        given = pb_utils.get_input_tensor_by_name(request, COHORT)
        if given is not None and cohort is not None:
            raise InputError("cohort is given twice, as an input and as a parameter; expected one of them")
        if given is not None:
            return x, cohort_names(given.as_numpy()[:, 0], len(x))
        return x, cohort_names(cells if cohort is None else cohort, len(x))

    def _columns(self, asked: dict[int, Asked]) -> Sequence[int]:
        """Return the columns that any of the requests asks for, rising."""
        every = range(len(self.card.taxonomy))
        wanted: set[int] = set()
        for wishes in asked.values():
            if wishes.column_C is None:
                return every
            wanted.update(wishes.column_C.tolist())
        return sorted(wanted)

    def _rows(self, sent: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], Any]:
        """Return the rows as the network takes them, and the cells of the cohorts' column that they hold."""
        rows = sent if self.encoder is None else from_bytes(sent, self.encoder.kind)
        cells, rows = split_cohorts(rows, self.card, self.encoder)
        return check_rows(rows, self.card.input) if self.encoder is None else self.encoder.encode(rows), cells

    def _problems(self, sent: np.ndarray[Any, Any]) -> dict[int, str]:
        """Return what is wrong with each row that is refused."""
        dear = self.encoder is not None and self.encoder.kind == IMAGE
        return row_problems(len(sent), lambda some: self._rows(sent[some]), one_by_one=dear)

    def _cohort_numbers(self, cohorts: Sequence[str | None]) -> np.ndarray[Any, Any] | None:
        if self.card.cohorts is None:
            return None
        for cohort, count in self.card.cohorts.count(cohorts).items():
            self.num_cohort_rows[cohort].increment(count)
        return self.card.cohorts.numbers(cohorts)[:, None]

    def _answer(self, request: Any, wishes: Asked, scored: Scored, began_s: float) -> Any:
        wanted, request_id = request.requested_output_names(), _given_id(request) or _made_id()
        try:
            outputs = self.answers.outputs(scored, wishes, wanted, request_id)
        except NotAnswered as error:
            return self._refused(request, "UNAVAILABLE", error, began_s, len(scored.prob_BK), wishes)
        except InputError as error:  # a finite row can still overflow within the model
            return self._refused(request, "INTERNAL", error, began_s, len(scored.prob_BK), wishes)
        columns = slice(None) if wishes.column_C is None else wishes.column_C
        version_BC, latency_s = scored.head_version_BK[:, columns], time.perf_counter() - began_s
        self.class_metrics.note(
            Answered(
                column_C=wishes.column_C,
                prob_BC=scored.prob_BK[:, columns],
                label_BC=outputs["label"],
                abstained_B=outputs["abstained"][:, 0],
                top_B=outputs["top"][:, 0],
                head_version_BC=version_BC,
                latency_s=latency_s,
            )
        )
        if self.request_log.exports or self.request_log.writes(request_id, OK):
            self._note(request, request_id, OK, latency_s, len(version_BC), wishes, HeadVersions.of(version_BC))
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(name, outputs[name]) for name in wanted])

    def _refused(
        self, request: Any, status: str, error: Exception, began_s: float, num_rows: int, wishes: Asked | None = None
    ) -> Any:
        """Return the answer to a request that is refused: names it where the client has no name for it, and the log has."""
        message = str(error)
        if self.request_log.exports or self.request_log.writes("", status):
            given = _given_id(request)
            request_id = given or _made_id()
            self._note(request, request_id, status, time.perf_counter() - began_s, num_rows, wishes)
            message += "" if given else f" (request {request_id})"
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, CODES[status])))

    def _note(
        self,
        request: Any,
        request_id: str,
        status: str,
        latency_s: float,
        num_rows: int,
        wishes: Asked | None,
        heads: HeadVersions | None = None,
    ) -> None:
        column_C = None if wishes is None else wishes.column_C
        traceparent, now_s = _traceparent(request), time.time()
        self.request_log.note(Noted(request_id, status, now_s - latency_s, latency_s, num_rows, column_C, heads, traceparent))


def _given_id(request: Any) -> str:
    """Return the id that the client gave its request, if any."""
    try:
        return str(request.request_id())
    except UnicodeDecodeError:
        return ""


def _made_id() -> str:
    return os.urandom(16).hex()


def _traceparent(request: Any) -> str:
    """Return where Triton's own spans of a request are, empty where it has none."""
    context = request.trace().get_context()
    return str(json.loads(context).get("traceparent", "")) if context else ""
