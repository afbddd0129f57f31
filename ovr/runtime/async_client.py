"""The client of `ovr.runtime.client` for programs with an event loop. Knows nothing of how the server was started.

B = batch, K = heads
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
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
from ovr.runtime.remote.http import AsyncHttp, closed
from ovr.runtime.remote.retry import Deadline, Failure, Retries, Retry, check_seconds
from ovr.runtime.remote.v2 import Answer, Request

if TYPE_CHECKING:
    from typing import Self


class AsyncClient:
    """Connections to the model that one server serves, for many tasks of one event loop."""

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
        """Prepare a client; nothing is sent yet. Arguments and errors as those of `Client`, but `max_in_flight` is of each call."""
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
        self._closed = False
        self._connections: Any
        if self._address.is_http:
            self._connections = AsyncHttp(self._address, security)
        else:
            from ovr.runtime.remote.grpc import AsyncGrpc

            self._connections = AsyncGrpc(self._address, security)

    @property
    def num_retries(self) -> int:
        """The number of requests that were sent again so far."""
        return self._retries.count

    async def card(self) -> ModelCard:
        """Return the model card of what the server serves now; errors as of `Client.card`."""
        return (await self._ask(Deadline(self.deadline_s))).card

    async def predict(
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
        """Return the server's probabilities and decisions for `rows`; arguments and errors as of `Client.predict`."""
        asked = Asked(batch_size, self.max_request_bytes, request_id, cohort, top_k, classes, threshold, traceparent)
        call, answers = await self._infer(ROUTER, rows, asked, deadline_s, progress)
        return call.prediction(answers)

    async def scores(
        self,
        rows: Any,
        *,
        cohort: Any = None,
        batch_size: int | None = None,
        deadline_s: float | None = None,
        progress: Callable[[int], Any] | None = None,
    ) -> NDArray[np.float32]:
        """Return probabilities (B, K) float32 from the scores model directly; arguments and errors as of `Client.scores`."""
        asked = Asked(batch_size, self.max_request_bytes, cohort=cohort)
        call, answers = await self._infer(SCORES, rows, asked, deadline_s, progress)
        return call.scores(answers)

    async def close(self) -> None:
        """Close the connections. Calls that other tasks are in fail, and so do later ones."""
        self._closed = True
        await self._connections.close()

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def _ask(self, deadline: Deadline) -> Served:
        """Return what the server serves now."""
        parameters, max_batch_size = await self._until_done(lambda s: self._connections.config(ROUTER, s), deadline)
        self._served = served_from(self._address, parameters, max_batch_size)
        return self._served

    async def _infer(
        self, model: str, rows: Any, asked: Asked, deadline_s: float | None, progress: Callable[[int], Any] | None
    ) -> tuple[Call, list[Answer]]:
        """Return the call and its answers, all of one model version."""
        deadline = Deadline(self.deadline_s if deadline_s is None else deadline_s)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            call = await self._call(model, rows, asked, deadline)
            answers: list[Answer] = []
            try:
                async with aclosing(self._answers(call, deadline)) as coming:
                    async for answer in coming:
                        number = len(answers)
                        call.check(number, answer)
                        answers.append(answer)
                        if progress is not None:
                            progress(call.num_rows(number))
                return call, answers
            except Replaced as error:
                self._served, failure = None, call.replaced(error)
            except TooManyRows as error:
                if (await self._ask(deadline)).max_batch_size >= call.served.max_batch_size:
                    raise
                failure = Failure(error, may_retry=True)
            if attempt == MAX_ATTEMPTS:
                raise failure.error
            if answers:
                await self._pause(failure, attempt, deadline)
                if progress is not None:
                    progress(-sum(map(call.num_rows, range(len(answers)))))
        raise AssertionError("the last attempt returns or raises")

    async def _call(self, model: str, rows: Any, asked: Asked, deadline: Deadline) -> Call:
        """Return the call by what is known of the model; what that refuses, by what is served now: a class may be new there."""
        if (known := self._served) is not None:
            with suppress(InputError, ServingError):
                return Call(known, self._address, model, rows, asked)
        return Call(await self._ask(deadline), self._address, model, rows, asked)

    async def _answers(self, call: Call, deadline: Deadline) -> AsyncGenerator[Answer, None]:
        """Yield the answers of a call in order, several requests in flight."""
        if len(call) == 1:
            for request in call.requests():
                yield await self._send(request, deadline)
            return
        waiting: deque[asyncio.Task[Answer]] = deque()
        try:
            for request in call.requests():
                waiting.append(asyncio.ensure_future(self._send(request, deadline)))
                if len(waiting) == self._max_in_flight:
                    yield await waiting[0]
                    waiting.popleft()
            while waiting:
                yield await waiting[0]
                waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _send(self, request: Request, deadline: Deadline) -> Answer:
        answer: Answer = await self._until_done(lambda s: self._connections.infer(request, s), deadline)
        return answer

    async def _until_done(self, send: Callable[[float], Awaitable[Any]], deadline: Deadline) -> Any:
        """Return what `send`, given the seconds that it may take, returns; called again where it fails and that may help."""
        attempt, last = 0, None
        while True:
            attempt += 1
            deadline.check(self.url, last)
            try:
                answer = await send(deadline.remaining_s(self.timeout_s))
            except Failure as failure:
                last = failure
                await self._pause(failure, attempt, deadline)
                continue
            self._retries.succeeded()
            return answer

    async def _pause(self, failure: Failure, attempt: int, deadline: Deadline) -> None:
        """Wait before the next attempt, or raise the error of this one."""
        await asyncio.sleep(self._retries.delay_s(failure, attempt, deadline))
        if self._closed:
            raise closed(self._address).error from None
