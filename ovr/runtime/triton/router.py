"""The model `ovr` that clients talk to: checks the rows, has them scored, decides. Runs inside Triton's Python backend.

It needs numpy, the files of ovr that it imports (published beside it, the encoder's among them) and `card.json`; it does not know
how scores are computed, or what is done about heads that do not answer.

B = batch, K = heads, C = classes that a request asks for, M = top-k
"""

import json
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ovr.core.artifact import ModelCard
from ovr.core.cohorts import COHORT
from ovr.core.faults import PLAN, HeadPlan
from ovr.core.request_log import PROBE_ID
from ovr.errors import InputError
from ovr.runtime.triton.answer import Answers, NotAnswered
from ovr.runtime.triton.class_counts import Answered
from ovr.runtime.triton.class_metrics import ClassMetrics
from ovr.runtime.triton.encoding import Encoding
from ovr.runtime.triton.heads import Scored
from ovr.runtime.triton.needed import NotScored
from ovr.runtime.triton.parameters import Asked, parameters_of
from ovr.runtime.triton.request import given_id, made_id, parameters_text, traceparent_of
from ovr.runtime.triton.request_log import MAX_ID_CHARS, OK, HeadVersions, Noted, RequestLog
from ovr.runtime.triton.row_counts import RowCounts
from ovr.runtime.triton.scores import FusedScores, HeadScores
from ovr.runtime.triton.spans import exporter
from ovr.runtime.triton.together import Call, alike, scored_of

CODES = {"INVALID_ARGUMENT": "INVALID_ARG", "UNAVAILABLE": "UNAVAILABLE", "INTERNAL": "INTERNAL"}  # gRPC's names: Triton's
REQUEST_ID = "request_id"  # an output


class TritonPythonModel:
    """One instance of the router."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the model card of this version, and from the configuration how the heads are asked.

        Raises:
            ArtifactError, ConfigError: a package that the encoder of the rows needs is not here.
        """
        directory = Path(args["model_repository"]) / args["model_version"]
        self.card = ModelCard.from_json(json.loads((directory / "card.json").read_bytes()))
        parameters = json.loads(args["model_config"]).get("parameters", {})
        plan = HeadPlan.from_json(json.loads(parameters[PLAN]["string_value"])) if PLAN in parameters else HeadPlan()
        version = int(args["model_version"])
        self.encoding = Encoding(self.card, max_text_chars=plan.max_text_chars)
        self.scores = (
            FusedScores(self.card, version, plan) if plan.backbone_version is None else HeadScores(self.card, version, plan)
        )
        self.answers = Answers(self.card, plan)
        self.parse = parameters_of(self.card)
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self.row_counts = RowCounts(
            "ovr_rows_total",
            "Rows asked for: those that fit the input schema, and those that do not and for which a request is refused",
            "outcome",
            ("passed", "refused"),
            labels,
        )
        self.cohort_counts = None
        if self.card.cohorts is not None:
            self.cohort_counts = RowCounts(
                "ovr_cohort_rows_total",
                "Rows answered of a cohort that the model knows, and pooled ones: of one that it does not, and of none",
                "cohort",
                ("known", "unknown", "missing"),
                labels,
            )
        self.head_faults = self.scores.faults if isinstance(self.scores, HeadScores) else None
        told = [counts.tell for counts in (self.row_counts, self.cohort_counts, self.head_faults) if counts is not None]
        self.class_metrics = ClassMetrics(self.card, plan.metrics, labels, told)
        self.request_log = RequestLog(
            self.card.taxonomy.ids,
            plan.request_log,
            version=version,
            bundle_sha256=self.card.bundle_sha256,
            export=exporter(pb_utils.Logger.log_warn),
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request, with its own parameters; a bad one gets an error of its own, the others are scored together."""
        began_s = time.perf_counter()
        responses: list[Any] = [None] * len(requests)
        try:
            self._execute(requests, responses, began_s)
        except Exception:  # of whatever kind: what is wrong with one request is not its neighbours' affair
            for index, request in enumerate(requests):
                if responses[index] is None:
                    responses[index] = self.execute([request])[0] if len(requests) > 1 else self._failed(request, began_s)
        return responses

    def _execute(self, requests: Sequence[Any], responses: list[Any], began_s: float) -> None:
        """Fill in the responses; what is raised is an error of ours, or of something that is missing here."""
        calls: list[Call] = []
        for index, request in enumerate(requests):
            sent = pb_utils.get_input_tensor_by_name(request, self.encoding.input_name).as_numpy()
            try:
                wishes = self.parse(parameters_text(request))
            except InputError as error:
                responses[index] = self._refused(request, "INVALID_ARGUMENT", error, began_s, len(sent))
                continue
            is_probe = len(sent) == 1 and given_id(request) == PROBE_ID
            call = Call(index, request, sent, wishes, tuple(request.requested_output_names()), is_probe=is_probe)
            if self.card.cohorts is not None:
                given = pb_utils.get_input_tensor_by_name(request, COHORT)
                call.cohorts = None if given is None else given.as_numpy()
            calls.append(call)
        calls, x, cohorts = self._encoded(calls, responses, began_s)
        if not calls:
            return
        start = 0
        for call in calls:
            call.start, start = start, start + call.num_rows
        groups = alike(calls)
        try:
            scored = self.scores.score(x, self._cohort_numbers(cohorts), self._columns(groups))
        except NotScored as error:
            if error.details:
                pb_utils.Logger.log_warn(f"{error}: {error.details}")
            for call in calls:
                responses[call.index] = self._refused(call.request, "UNAVAILABLE", error, began_s, call.num_rows, call.wishes)
            return
        for group in groups:
            self._answer(group, scored, responses, began_s)

    def finalize(self) -> None:
        """Let go of the counts before their family."""
        self.class_metrics.finalize()
        self.row_counts.finalize()
        if self.cohort_counts is not None:
            self.cohort_counts.finalize()
        self.request_log.finalize()
        if self.head_faults is not None:
            self.head_faults.finalize()

    def _encoded(
        self, calls: list[Call], responses: list[Any], began_s: float
    ) -> tuple[list[Call], np.ndarray[Any, Any], list[str | None]]:
        """Return the calls that go on, their rows as the network takes them, and of a model with cohorts the cohort of each."""
        x = self.encoding.of_all(calls) if len(calls) > 1 else None
        if x is None:
            return self._encoded_one_by_one(calls, responses, began_s)
        self.row_counts.add({"passed": len(x) - sum(call.is_probe for call in calls)})  # a probe is one row
        return calls, x, []

    def _encoded_one_by_one(
        self, calls: list[Call], responses: list[Any], began_s: float
    ) -> tuple[list[Call], np.ndarray[Any, Any], list[str | None]]:
        fine: list[Call] = []
        rows: list[np.ndarray[Any, Any]] = []
        cohorts: list[str | None] = []
        own_cohorts: list[str | None] = []  # without those of probes
        counts = {"passed": 0, "refused": 0}
        for call in calls:
            num_refused = 0
            try:
                x, names = self.encoding.of(call)
            except InputError as error:
                responses[call.index] = self._refused(call.request, "INVALID_ARGUMENT", error, began_s, call.num_rows, call.wishes)
                num_refused = self.encoding.num_refused(call)
            else:
                fine.append(call)
                rows.append(x)
                cohorts += names
                own_cohorts += () if call.is_probe else names
            counts["passed"] += 0 if call.is_probe else call.num_rows - num_refused
            counts["refused"] += num_refused
        self.row_counts.add(counts)
        if self.card.cohorts is not None and self.cohort_counts is not None:
            self.cohort_counts.add(self.card.cohorts.count(own_cohorts))
        return fine, rows[0] if len(rows) == 1 else np.concatenate(rows or [np.zeros(0)]), cohorts

    def _columns(self, groups: Sequence[Sequence[Call]]) -> Sequence[int]:
        """Return the columns that any of the calls asks for, rising."""
        wanted: set[int] = set()
        for call, *_ in groups:
            if call.wishes.column_C is None:
                return range(len(self.card.taxonomy))
            wanted.update(call.wishes.column_C.tolist())
        return sorted(wanted)

    def _cohort_numbers(self, cohorts: Sequence[str | None]) -> np.ndarray[Any, Any] | None:
        return None if self.card.cohorts is None else self.card.cohorts.numbers(cohorts)[:, None]

    def _answer(self, calls: list[Call], scored: Scored, responses: list[Any], began_s: float) -> None:
        """Answer calls that ask for the same: all at once, or where that is an error each by itself."""
        wishes, own = calls[0].wishes, scored_of(calls, scored)
        try:
            outputs = self.answers.outputs(own, wishes, calls[0].wanted)
        except (NotAnswered, InputError) as error:
            if len(calls) > 1:
                for call in calls:
                    self._answer([call], scored, responses, began_s)
                return
            # A finite row can still overflow within the model.
            status = "UNAVAILABLE" if isinstance(error, NotAnswered) else "INTERNAL"
            (call,) = calls
            responses[call.index] = self._refused(call.request, status, error, began_s, call.num_rows, wishes)
            return
        columns = slice(None) if wishes.column_C is None else wishes.column_C
        version_BC, latency_s = own.head_version_BK[:, columns], time.perf_counter() - began_s
        if not calls[0].is_probe:
            self.class_metrics.note(
                Answered(
                    column_C=wishes.column_C,
                    prob_BC=own.prob_BK[:, columns],
                    label_BC=outputs["label"],
                    abstained_B=outputs["abstained"][:, 0],
                    top_B=outputs["top"][:, 0],
                    head_version_BC=version_BC,
                    rows_R=[call.num_rows for call in calls],
                    latency_s=latency_s,
                )
            )
        start = 0
        for call in calls:
            rows = slice(start, start + call.num_rows)
            start = rows.stop
            responses[call.index] = self._response(call, outputs, version_BC, rows, latency_s)

    def _response(
        self,
        call: Call,
        outputs: dict[str, np.ndarray[Any, Any]],
        version_BC: np.ndarray[Any, Any],
        rows: slice,
        latency_s: float,
    ) -> Any:
        """Return the answer to one call, whose rows are these of the outputs."""
        if self.request_log.notes_answers or REQUEST_ID in call.wanted:
            request_id = given_id(call.request) or made_id()
            if self.request_log.exports or self.request_log.writes(request_id, OK):
                heads = HeadVersions.of(version_BC[rows])
                self._note(call.request, request_id, OK, latency_s, call.num_rows, call.wishes, heads)
        tensors = []
        for name in call.wanted:
            if name == REQUEST_ID:
                array = np.full((call.num_rows, 1), request_id.encode(), dtype=np.object_)
            else:
                array = outputs[name][rows]
            tensors.append(pb_utils.Tensor(name, array))
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def _refused(
        self, request: Any, status: str, error: Exception, began_s: float, num_rows: int, wishes: Asked | None = None
    ) -> Any:
        """Return the answer to a request that is refused: names it where the client has no name for it, and the log has."""
        message = str(error)
        if self.request_log.exports or self.request_log.writes("", status):
            given = given_id(request)
            request_id = given or made_id()
            self._note(request, request_id, status, time.perf_counter() - began_s, num_rows, wishes)
            message += "" if given else f" (request {request_id})"
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, CODES[status])))

    def _failed(self, request: Any, began_s: float) -> Any:
        """Return the answer to a request that met the error at hand, which the log has; the client is told where, and no more."""
        given = given_id(request)
        request_id = given or made_id()
        pb_utils.Logger.log_error(f"request {request_id[:MAX_ID_CHARS]!r} failed:\n{traceback.format_exc()}")
        if self.request_log.exports or self.request_log.writes("", "INTERNAL"):
            self._note(request, request_id, "INTERNAL", time.perf_counter() - began_s, 0, None)
        message = "the request failed within the server, whose log says why" + ("" if given else f" (request {request_id})")
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INTERNAL))

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
        traceparent, now_s = traceparent_of(request), time.time()
        self.request_log.note(Noted(request_id, status, now_s - latency_s, latency_s, num_rows, column_C, heads, traceparent))
