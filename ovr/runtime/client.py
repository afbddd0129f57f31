"""Predictions from a running Triton server over HTTP or gRPC, for programs with threads. Knows not how the server was started.

`ovr.runtime.async_client` has the same for event loops. B = batch, K = heads
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.artifact import ModelCard
from ovr.core.prediction import Prediction
from ovr.errors import InputError, ServingError
from ovr.runtime.calls import (
    MAX_ATTEMPTS,
    MAX_REQUEST_BYTES,
    ROUTER,
    SCORES,
    Asked,
    Call,
    Replaced,
    Served,
    check_settings,
    served_from,
)
from ovr.runtime.remote import address as addresses
from ovr.runtime.remote.failures import TooManyRows
from ovr.runtime.remote.http import Http, closed
from ovr.runtime.remote.retry import Deadline, Failure, Retries, Retry, check_seconds
from ovr.runtime.remote.v2 import Answer, Request

if TYPE_CHECKING:
    from typing import Self


class Client:
    """Connections to the model that one server serves. Safe for use by several threads at once, which share them."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 60.0,
        deadline_s: float | None = None,
        retry: Retry | None = None,
        max_in_flight: int = 4,
        max_request_bytes: int = MAX_REQUEST_BYTES,
        headers: Mapping[str, str] | None = None,
        token: str | None = None,
        root_certificates: str | Path | None = None,
        private_key: str | Path | None = None,
        certificate_chain: str | Path | None = None,
        verify: bool = True,
    ) -> None:
        """Prepare a client; nothing is sent yet.

        Args:
            url: http://HOST:PORT or grpc://HOST:PORT (https and grpcs with TLS); of HTTP also with a path in front of Triton's.
                Ports, where there are none: 8000, 8001, with TLS 443.
            timeout_s: of one request.
            deadline_s: of a whole call, with all of its requests, retries and pauses; each request gets what is left of it.
            retry: when requests are sent again; None: as `Retry()` says.
            max_in_flight: requests that the calls of this client which need several send at a time.
            max_request_bytes: of the rows of one request; a row that is larger is sent by itself.
            headers: sent with every request, as HTTP headers or gRPC metadata.
            token: sent as `Authorization: Bearer TOKEN`.
            root_certificates: a PEM file with the authorities that may have signed the server's certificate; None: the system's.
            private_key: a PEM file, and with it `certificate_chain`, where the server asks for this client's certificate.
            verify: of https alone: False takes any certificate.

        Raises:
            ServingError: the address is not of that form.
            ConfigError: a setting that cannot be used.
        """
        self.url = url
        self._address = addresses.parse(url)
        check_seconds("timeout_s", timeout_s)
        check_seconds("deadline_s", deadline_s, is_optional=True)
        check_settings(max_in_flight=max_in_flight, max_request_bytes=max_request_bytes)
        security = addresses.security(
            self._address,
            headers=headers,
            token=token,
            root_certificates=root_certificates,
            private_key=private_key,
            certificate_chain=certificate_chain,
            verify=verify,
        )
        self.timeout_s, self.deadline_s, self.max_request_bytes = timeout_s, deadline_s, max_request_bytes
        self._max_in_flight = max_in_flight
        self._retries = Retries(retry or Retry())
        self._served: Served | None = None
        self._closing = threading.Event()
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._connections: Any
        if self._address.is_http:
            self._connections = Http(self._address, security)
        else:
            from ovr.runtime.remote.grpc import Grpc

            self._connections = Grpc(self._address, security)

    @property
    def num_retries(self) -> int:
        """The number of requests that were sent again so far."""
        return self._retries.count

    def card(self) -> ModelCard:
        """Return the model card of what the server serves now.

        Raises:
            ServingError: the server is not there, or serves no model of ovr.
        """
        return self._ask(Deadline(self.deadline_s)).card

    def predict(
        self,
        rows: Any,
        *,
        cohort: Any = None,
        top_k: int | None = None,
        classes: Sequence[str] | None = None,
        threshold: float | Mapping[str, float] | None = None,
        batch_size: int | None = None,
        deadline_s: float | None = None,
        progress: Callable[[int], Any] | None = None,
        request_id: str = "",
        traceparent: str = "",
    ) -> Prediction:
        """Return the server's probabilities and decisions for `rows`, in their order.

        Args:
            rows: as `EdgePredictor.encode` takes them, or of a model of numbers a DataFrame with the model's columns. The index of
                pandas rows is kept.
            cohort: as in `EdgePredictor.predict_proba`.
            top_k: most probable classes a row, instead of the model's.
            classes: ids of the only classes to answer and decide about, in the order that the prediction is to have.
            threshold: instead of the model's: one for all classes, or some by class id.
            batch_size: rows a request; None: as many as the server takes. No more are sent than that, nor than the client's
                `max_request_bytes` hold.
            deadline_s: instead of the client's.
            progress: called with the number of rows done since the last call, in this thread; with a number below 0 where all
                begins anew, as the model was replaced during the call.
            request_id: given to the server with every request of the call and back with the prediction; "": a random one.
            traceparent: of W3C's trace context: the trace that the call is part of, where the server sends traces.

        Raises:
            InputError: rows that do not fit the input schema of the model that is served now or are of another kind, cohorts of
                another number than rows or for a model that has none, or classes, thresholds or a traceparent that cannot be; no
                row has been sent then.
            UnavailableError: the server cannot be reached or is full, after all retries.
            DeadlineError: a request or the call took too long.
            ServingError: the server answers with an error, such as for a text or a cell that does not fit, its router is of an
                earlier ovr and takes no parameters, or its model was replaced during the call. The two above are ServingErrors too.
        """
        asked = Asked(batch_size, self.max_request_bytes, request_id, cohort, top_k, classes, threshold, traceparent)
        call, answers = self._infer(ROUTER, rows, asked, deadline_s, progress)
        return call.prediction(answers)

    def scores(
        self,
        rows: Any,
        *,
        cohort: Any = None,
        batch_size: int | None = None,
        deadline_s: float | None = None,
        progress: Callable[[int], Any] | None = None,
    ) -> NDArray[np.float32]:
        """Return probabilities (B, K) float32 from the scores model directly: no decision, and the rows are checked here only.

        Args:
            rows: what the network takes, numbers (B, *card.input.shape); the others as in `predict`, errors too.
        """
        asked = Asked(batch_size, self.max_request_bytes, cohort=cohort)
        call, answers = self._infer(SCORES, rows, asked, deadline_s, progress)
        return call.scores(answers)

    def close(self) -> None:
        """Close the connections. Calls that other threads are in fail with a ServingError, and so do later ones."""
        self._closing.set()
        self._connections.close()
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(cancel_futures=True)

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _ask(self, deadline: Deadline) -> Served:
        """Return what the server serves now."""
        parameters, max_batch_size = self._until_done(lambda s: self._connections.config(ROUTER, s), deadline)
        self._served = served_from(self._address, parameters, max_batch_size)
        return self._served

    def _infer(
        self, model: str, rows: Any, asked: Asked, deadline_s: float | None, progress: Callable[[int], Any] | None
    ) -> tuple[Call, list[Answer]]:
        """Return the call and its answers, all of one model version."""
        deadline = Deadline(self.deadline_s if deadline_s is None else deadline_s)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            call = self._call(model, rows, asked, deadline)
            answers: list[Answer] = []
            try:
                for number, answer in enumerate(self._answers(call, deadline)):
                    call.check(number, answer)
                    answers.append(answer)
                    if progress is not None:
                        progress(call.num_rows(number))
                return call, answers
            except Replaced as error:
                self._served, failure = None, call.replaced(error)
            except TooManyRows as error:
                if self._ask(deadline).max_batch_size >= call.served.max_batch_size:
                    raise
                failure = Failure(error, may_retry=True)
            if attempt == MAX_ATTEMPTS:
                raise failure.error
            if answers:
                self._pause(failure, attempt, deadline)
                if progress is not None:
                    progress(-sum(map(call.num_rows, range(len(answers)))))
        raise AssertionError("the last attempt returns or raises")

    def _call(self, model: str, rows: Any, asked: Asked, deadline: Deadline) -> Call:
        """Return the call by what is known of the model; what that refuses, by what is served now: a class may be new there."""
        if (known := self._served) is not None:
            with suppress(InputError, ServingError):
                return Call(known, self._address, model, rows, asked)
        return Call(self._ask(deadline), self._address, model, rows, asked)

    def _answers(self, call: Call, deadline: Deadline) -> Iterator[Answer]:
        """Yield the answers of a call in order, several requests in flight."""
        if len(call) == 1 or self._max_in_flight == 1:
            for request in call.requests():
                yield self._send(request, deadline)
            return
        with self._lock:
            if self._threads is None:
                if self._closing.is_set():
                    raise closed(self._address).error
                self._threads = ThreadPoolExecutor(self._max_in_flight, thread_name_prefix="ovr-client")
            threads = self._threads
        deadline = deadline.copy()
        waiting: deque[Future[Answer]] = deque()
        try:
            for request in call.requests():
                waiting.append(self._submit(threads, request, deadline))
                if len(waiting) == self._max_in_flight:
                    yield self._result(waiting.popleft())
            while waiting:
                yield self._result(waiting.popleft())
        finally:
            for future in waiting:
                future.cancel()
            deadline.end()  # for what is in flight and nobody waits for: it is not sent again

    def _submit(self, threads: ThreadPoolExecutor, request: Request, deadline: Deadline) -> Future[Answer]:
        try:
            return threads.submit(self._send, request, deadline)
        except RuntimeError:  # closed by another thread
            raise closed(self._address).error from None

    def _result(self, future: Future[Answer]) -> Answer:
        try:
            return future.result()
        except CancelledError:  # closed by another thread, before it was sent
            raise closed(self._address).error from None

    def _send(self, request: Request, deadline: Deadline) -> Answer:
        answer: Answer = self._until_done(lambda s: self._connections.infer(request, s), deadline)
        return answer

    def _until_done(self, send: Callable[[float], Any], deadline: Deadline) -> Any:
        """Return what `send`, given the seconds that it may take, returns; called again where it fails and that may help."""
        attempt, last = 0, None
        while True:
            attempt += 1
            deadline.check(self.url, last)
            try:
                answer = send(deadline.remaining_s(self.timeout_s))
            except Failure as failure:
                last = failure
                self._pause(failure, attempt, deadline)
                continue
            self._retries.succeeded()
            return answer

    def _pause(self, failure: Failure, attempt: int, deadline: Deadline) -> None:
        """Wait before the next attempt, or raise the error of this one."""
        if self._closing.wait(self._retries.delay_s(failure, attempt, deadline)):
            raise closed(self._address).error from None
