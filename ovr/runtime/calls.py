"""What a call of a client sends, and what the answers make together. Knows nothing of connections, threads and event loops.

B = batch, K = heads, M = top-k
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.artifact import ModelCard
from ovr.core.cohorts import COHORT
from ovr.core.faults import PLAN
from ovr.core.prediction import Decision, Prediction
from ovr.core.schema import check_rows
from ovr.errors import ConfigError, InputError, ServingError
from ovr.input.records import records_of, to_bytes, wire_name
from ovr.runtime.cohort_rows import check_takes_cohorts, cohort_names
from ovr.runtime.frames import index_of, numbers_of
from ovr.runtime.remote.address import Address
from ovr.runtime.remote.retry import Failure
from ovr.runtime.remote.v2 import LENGTH, Answer, Request, Tensor

ROUTER = "ovr"
SCORES = "ovr_scores"
OUTPUTS = ("prob", "label", "abstained", "top", "unavailable")
MAX_REQUEST_BYTES = 4 << 20  # of the rows of one request, unless a client is told otherwise; a gateway of ours takes 6 MiB in all
TRACEPARENT = re.compile("00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
HEADER_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")  # a request id that a gateway's log has too, as X-Request-Id
MAX_ATTEMPTS = 3  # of a call that begins anew, as the model is not the one that the card is of


class Replaced(Exception):
    """The server answered with another version of the model than the card is of."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a server serves now."""

    version: str
    card: ModelCard
    max_batch_size: int
    takes_parameters: bool = True  # an earlier ovr's router takes none, and says nothing when it gets any
    is_per_head: bool = False  # a model a head, of which an earlier version may answer


@dataclass(frozen=True, slots=True)
class Asked:
    """How a caller wants `predict` or `scores` to answer."""

    batch_size: int | None
    max_request_bytes: int
    request_id: str = ""
    cohort: Any = None
    top_k: int | None = None
    classes: Sequence[str] | None = None
    threshold: float | Mapping[str, float] | None = None
    traceparent: str = ""

    def __post_init__(self) -> None:
        for name in ("batch_size", "top_k"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InputError(f"{name} is {value!r}; expected at least 1, a whole number")
        if self.classes is not None and (isinstance(self.classes, str) or not self.classes):
            raise InputError(f"classes is {self.classes!r}; expected a list of class ids, at least one")
        if self.traceparent and not (isinstance(self.traceparent, str) and TRACEPARENT.fullmatch(self.traceparent)):
            raise InputError(
                f"traceparent is {self.traceparent!r}; expected 00-TRACE-PARENT-FLAGS, of 32, 16 and 2 hexadecimal digits"
            )

    def parameters(self) -> dict[str, str | int | float]:
        """Return the parameters of a request to the router."""
        sent: dict[str, str | int | float] = {}
        if self.top_k is not None:
            sent["top_k"] = self.top_k
        if self.classes is not None:
            sent["classes"] = json.dumps(list(self.classes), ensure_ascii=False)
        if isinstance(self.threshold, Mapping):
            sent["threshold"] = json.dumps(dict(self.threshold), ensure_ascii=False)
        elif self.threshold is not None:
            sent["threshold"] = float(self.threshold)
        return sent


class Call:
    """One call of `predict` or `scores`: its requests, and what their answers make."""

    def __init__(self, served: Served, address: Address, model: str, rows: Any, asked: Asked) -> None:
        """Check the rows, so that nothing is sent of what cannot be answered whole.

        Raises:
            InputError: the rows do not fit, or the cohorts, classes or thresholds.
            ServingError: parameters for a router that takes none.
        """
        self.served, self._address, self._model = served, address, model
        self.card = card_of(served.card, asked)
        self.index = index_of(rows)
        self.request_id = asked.request_id or os.urandom(16).hex()
        known: tuple[str, ...] = OUTPUTS if served.takes_parameters else OUTPUTS[:-1]
        known += ("head_version",) if served.is_per_head else ()
        self._outputs = known if model == ROUTER else OUTPUTS[:1]
        self._parameters = asked.parameters() if model == ROUTER else {}
        self._headers = {"traceparent": asked.traceparent} if asked.traceparent else {}
        if HEADER_ID.fullmatch(self.request_id):
            self._headers["x-request-id"] = self.request_id
        if self._parameters and not served.takes_parameters:
            raise ServingError(
                f"the router at {address.url} is of an earlier ovr and takes no {', '.join(self._parameters)}; "
                "publish the bundle again with this one"
            )
        self._sent = tensors(served.card, rows, asked.cohort, to_router=model == ROUTER)
        size = min(asked.batch_size or served.max_batch_size, served.max_batch_size)
        self.bounds = batches(self._sent[0][2], size, asked.max_request_bytes)

    def __len__(self) -> int:
        """The number of requests."""
        return len(self.bounds)

    def requests(self) -> Iterator[Request]:
        """Yield the requests, in the order of their rows."""
        for start, end in self.bounds:
            parts = [Tensor(name, dtype, values[start:end]) for name, dtype, values in self._sent]
            what = f"infer rows {start} to {end - 1}"
            yield Request(self._model, parts, self._outputs, self.request_id, what, self._parameters, self._headers)

    def num_rows(self, number: int) -> int:
        """Return the number of rows of a request."""
        start, end = self.bounds[number]
        return end - start

    def check(self, number: int, answer: Answer) -> None:
        """Check the answer to a request.

        Raises:
            Replaced: it is of another version of the model.
            ServingError: it is not of this request, or has not the size that was asked for.
        """
        if answer.version != self.served.version:
            raise Replaced(f"version {self.served.version}, then {answer.version}")
        if answer.id != self.request_id:
            raise ServingError(
                f"{self._address.url} answered request {answer.id!r}, and {self.request_id!r} was asked; "
                "something on the way mixes answers up"
            )
        expected = (self.num_rows(number), len(self.card.taxonomy))
        got = {name: answer.arrays[name].shape if name in answer.arrays else None for name in self._outputs}
        if got["prob"] != expected or any(shape is None or shape[0] != expected[0] for shape in got.values()):
            raise ServingError(f"the server at {self._address.url} answered with {got}; expected prob of shape {expected}")

    def replaced(self, error: Replaced) -> Failure:
        """Return the failure of a call whose answers are of two versions: all of it may be asked again."""
        told = f"the model at {self._address.url} was replaced during the call ({error}); repeat it"
        return Failure(ServingError(told), may_retry=True)

    def prediction(self, answers: Sequence[Answer]) -> Prediction:
        """Return what all answers of the router make together."""
        joined = {name: _joined([answer.arrays[name] for answer in answers]) for name in self._outputs}
        decision = Decision(joined["label"], joined["abstained"][:, 0], joined["top"])
        return Prediction(
            self.card,
            joined["prob"],
            decision,
            request_id=self.request_id,
            unavailable_BK=joined.get("unavailable"),
            index=self.index,
            answered_BK=joined.get("head_version"),
        )

    def scores(self, answers: Sequence[Answer]) -> NDArray[np.float32]:
        """Return the probabilities (B, K) of all answers."""
        return _joined([answer.arrays["prob"] for answer in answers])


def served_from(address: Address, parameters: Mapping[str, str], max_batch_size: int) -> Served:
    """Return what a server serves, by the configuration of its router.

    Raises:
        ServingError: it is not ovr's.
    """
    try:
        card = ModelCard.from_json(json.loads(parameters["ovr.card"]))
        plan = json.loads(parameters[PLAN]) if PLAN in parameters else None
        is_per_head = plan is not None and plan["backbone_version"] is not None
        return Served(parameters["ovr.version"], card, max_batch_size, plan is not None, is_per_head)
    except (KeyError, ValueError, TypeError) as error:
        raise ServingError(
            f"{address.url} has a model {ROUTER!r} that was not published by ovr: {error}; publish a bundle with `ovr publish`"
        ) from None


def card_of(card: ModelCard, asked: Asked) -> ModelCard:
    """Return the card of the answer: of the classes asked for, in their order, with the thresholds asked for.

    Raises:
        InputError: a class that the model does not have or that is named twice, or a threshold that is none.
    """
    if asked.classes is None and asked.threshold is None:
        return card
    named = [*(asked.classes or ()), *(asked.threshold if isinstance(asked.threshold, Mapping) else ())]
    if unknown := card.taxonomy.unknown(named):
        raise InputError(f"the model at work has no class {unknown}")
    classes = card.taxonomy.ids if asked.classes is None else tuple(asked.classes)
    if len(set(classes)) < len(classes):
        raise InputError(f"classes has {len(classes) - len(set(classes))} ids more than once; expected each once")
    threshold = asked.threshold
    values = threshold.values() if isinstance(threshold, Mapping) else () if threshold is None else (threshold,)
    for value in values:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0.0 <= value <= 1.0:
            raise InputError(f"threshold is {value!r}; expected a number from 0 to 1, or one for each class by its id")
    return card.of_classes(classes, threshold)


def tensors(card: ModelCard, rows: Any, cohort: Any, *, to_router: bool) -> list[tuple[str, str, NDArray[Any]]]:
    """Return name, datatype and values of all rows of each input, or raise InputError."""
    check_takes_cohorts(card, cohort)
    kind = card.input.raw_kind if to_router else None
    if kind is None:
        sent: list[tuple[str, str, NDArray[Any]]] = [
            (card.input.name, "FP32", check_rows(numbers_of(rows, card.input), card.input))
        ]
    else:
        sent = [(wire_name(kind), "BYTES", to_bytes(records_of(rows, kind)))]
    if card.cohorts is None or (to_router and cohort is None):
        return sent
    names = cohort_names(cohort, len(sent[0][2]))
    if not to_router:
        return [*sent, (COHORT, "INT64", card.cohorts.numbers(names)[:, None])]
    return [*sent, (COHORT, "BYTES", np.array([[(name or "").encode()] for name in names], dtype=np.object_))]


def batches(values: NDArray[Any], max_rows: int, max_bytes: int) -> list[tuple[int, int]]:
    """Return start and end of each request's rows: `max_rows` at most, and no more bytes of `values` than `max_bytes`.

    A row that is larger is sent by itself.
    """
    if values.dtype != np.object_:
        if len(values) <= max_rows and values.nbytes <= max_bytes:
            return [(0, len(values))]
        step = max(1, min(max_rows, max_bytes // max(1, values[:1].nbytes)))
        return [(start, min(start + step, len(values))) for start in range(0, len(values), step)]
    ends = np.cumsum([LENGTH.size + len(value) for value in values[:, 0]])
    bounds, start = [], 0
    while start < len(values):
        before = int(ends[start - 1]) if start else 0
        fits = int(np.searchsorted(ends, before + max_bytes, side="right"))
        end = max(start + 1, min(start + max_rows, fits))
        bounds.append((start, end))
        start = end
    return bounds


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Return an array of its own: parts lie in what was received."""
    return np.concatenate(parts) if len(parts) > 1 else parts[0].copy()


def check_settings(**counts: int) -> None:
    """Raise ConfigError, with the name of what is none, unless all are counts of something."""
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(f"{name} is {count!r}; expected a whole number of at least 1")
