"""Predictions from a running Triton server over HTTP or gRPC. Knows nothing of how the server was started.

B = batch, K = heads
"""

import json
from collections.abc import Callable, Sequence
from http.client import HTTPException
from types import ModuleType, TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from ovr.core.artifact import ModelCard
from ovr.core.cohorts import COHORT
from ovr.core.prediction import Decision, Prediction
from ovr.core.schema import check_rows
from ovr.errors import InputError, ServingError
from ovr.input.records import records_of, to_bytes, wire_name
from ovr.runtime.cohort_rows import check_takes_cohorts, cohort_names

ROUTER = "ovr"
SCORES = "ovr_scores"
DEFAULT_PORTS = {"http": 8000, "https": 8000, "grpc": 8001, "grpcs": 8001}
MAX_ATTEMPTS = 3  # at the first batch, where the model card is of a version that has been replaced since


class Client:
    """A connection to the model that one server serves. Not for use by several threads at once."""

    def __init__(self, url: str, *, timeout_s: float = 60.0) -> None:
        """Prepare a connection; nothing is sent yet.

        Args:
            url: http://HOST:PORT or grpc://HOST:PORT (https and grpcs with TLS).
            timeout_s: of one request.

        Raises:
            ServingError: the address is not of that form.
        """
        parts = urlsplit(url)
        if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
            raise ServingError(f"server address {url!r} is not understood; expected http://HOST:PORT or grpc://HOST:PORT")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        try:
            address = f"{host}:{parts.port or DEFAULT_PORTS[parts.scheme]}"
        except ValueError as error:
            raise ServingError(f"server address {url!r} is not understood: {error}") from None
        self.url = url
        self.timeout_s = timeout_s
        self._api: ModuleType
        if parts.scheme in ("http", "https"):
            import tritonclient.http as http_api

            self._api = http_api
            self._connection = http_api.InferenceServerClient(
                address, ssl=parts.scheme == "https", network_timeout=timeout_s, connection_timeout=timeout_s
            )
            self._options: dict[str, Any] = {}
        else:
            import tritonclient.grpc as grpc_api

            self._api = grpc_api
            self._connection = grpc_api.InferenceServerClient(address, ssl=parts.scheme == "grpcs")
            self._options = {"client_timeout": timeout_s}
        self._card: tuple[str, ModelCard, int] | None = None  # version, card, largest batch

    def card(self) -> ModelCard:
        """Return the model card of what the server serves now.

        Raises:
            ServingError: the server is not there, or serves no model of ovr.
        """
        return self._fetch_card()[1]

    def predict(
        self,
        rows: Any,
        *,
        cohort: Any = None,
        batch_size: int = 64,
        progress: Callable[[int], Any] | None = None,
        request_id: str = "",
    ) -> Prediction:
        """Return the server's probabilities and decisions for `rows`: as `EdgePredictor.encode` takes them.

        Args:
            cohort: as in `EdgePredictor.predict_proba`.
            batch_size: rows a request; no more are sent than the server takes.
            progress: called with the number of rows done since the last call.
            request_id: given to the server and back with the prediction.

        Raises:
            InputError: numbers that do not fit the model's input schema, rows of another kind, or cohorts of another number than
                rows or for a model that has none; nothing has been sent then.
            ServingError: the server is not there or answers with an error, such as for a text or a cell that does not fit, or its
                model was replaced during the call.
        """
        outputs = ("prob", "label", "abstained", "top", "unavailable")
        card, answers = self._infer(ROUTER, outputs, rows, cohort, batch_size, progress, request_id)
        prob_BK, label_BK, abstained_B1, top_BM, unavailable_BK = (np.concatenate(parts) for parts in zip(*answers, strict=True))
        return Prediction(card, prob_BK, Decision(label_BK, abstained_B1[:, 0], top_BM), request_id, unavailable_BK)

    def scores(
        self, rows: Any, *, cohort: Any = None, batch_size: int = 64, progress: Callable[[int], Any] | None = None
    ) -> NDArray[np.float32]:
        """Return probabilities (B, K) float32 from the scores model directly: no decision, and the rows are checked here only.

        Args:
            rows: what the network takes, numbers (B, *card.input.shape); the others as in `predict`, errors too.
        """
        _, answers = self._infer(SCORES, ("prob",), rows, cohort, batch_size, progress, "")
        return np.concatenate([prob_BK for (prob_BK,) in answers])

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _fetch_card(self) -> tuple[str, ModelCard, int]:
        config = self._call(self._connection.get_model_config, ROUTER, what="get the model card", **self._as_json())
        config = config.get("config", config)
        try:
            parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
            card = ModelCard.from_json(json.loads(parameters["ovr.card"]))
            self._card = (parameters["ovr.version"], card, int(config["max_batch_size"]))
        except (KeyError, ValueError) as error:
            raise ServingError(f"{self.url} has a model {ROUTER!r} that was not published by ovr: {error}") from None
        return self._card

    def _as_json(self) -> dict[str, Any]:
        return {"as_json": True, **self._options} if self._options else {}

    def _infer(
        self,
        model: str,
        outputs: Sequence[str],
        rows: Any,
        cohort: Any,
        batch_size: int,
        progress: Callable[[int], Any] | None,
        request_id: str,
    ) -> tuple[ModelCard, list[list[Any]]]:
        """Return the card, and for each batch the arrays of `outputs`; all of one model version."""
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected at least 1")
        for attempt in range(1, MAX_ATTEMPTS + 1):
            if self._card is None:
                self._fetch_card()
            try:
                return self._infer_all(model, outputs, rows, cohort, batch_size, progress, request_id)
            except _Replaced as error:
                self._card = None
                if error.num_done or attempt == MAX_ATTEMPTS:
                    raise ServingError(f"the model at {self.url} was replaced during the call ({error}); repeat it") from None
        raise AssertionError("the last attempt returns or raises")

    def _infer_all(
        self,
        model: str,
        outputs: Sequence[str],
        rows: Any,
        cohort: Any,
        batch_size: int,
        progress: Callable[[int], Any] | None,
        request_id: str,
    ) -> tuple[ModelCard, list[list[Any]]]:
        assert self._card is not None
        version, card, max_batch_size = self._card
        check_takes_cohorts(card, cohort)
        kind = card.input.raw_kind if model == ROUTER else None
        x = check_rows(rows, card.input) if kind is None else to_bytes(records_of(rows, kind))
        name, dtype = (card.input.name, "FP32") if kind is None else (wire_name(kind), "BYTES")
        sent = [(name, dtype, x), *_cohort_tensor(card, cohort, len(x), to_router=model == ROUTER)]
        batch_size = min(batch_size, max_batch_size)
        answers = []
        for start in range(0, len(x), batch_size):
            tensors = []
            for name, dtype, values in sent:
                part = values[start : start + batch_size]
                tensors.append(self._api.InferInput(name, list(part.shape), dtype))
                tensors[-1].set_data_from_numpy(part)
            result = self._call(
                self._connection.infer,
                model,
                tensors,
                what=f"infer rows {start} to {start + len(part) - 1}",
                outputs=[self._api.InferRequestedOutput(name) for name in outputs],
                request_id=request_id,
                **self._options,
            )
            response = result.get_response()
            answered = response["model_version"] if isinstance(response, dict) else response.model_version
            if answered != version:
                raise _Replaced(f"version {version}, then {answered}", num_done=start)
            answers.append([result.as_numpy(name) for name in outputs])
            if progress is not None:
                progress(len(part))
        return card, answers

    def _call(self, method: Callable[..., Any], *args: Any, what: str, **kwargs: Any) -> Any:
        from tritonclient.utils import InferenceServerException

        try:
            return method(*args, **kwargs)
        except InferenceServerException as error:
            if error.status() == "StatusCode.UNAVAILABLE" and "failed to connect" in str(error.message()):
                raise ServingError(f"no server answers at {self.url}: {error.message()}") from None
            raise ServingError(f"the server at {self.url} could not {what}: {error.message()}") from None
        except (OSError, TimeoutError) as error:
            raise ServingError(f"no server answers at {self.url}: {error}") from None
        except (HTTPException, ValueError) as error:
            raise ServingError(f"what answers at {self.url} is no Triton server, or not this protocol's port: {error}") from None


def _cohort_tensor(card: ModelCard, cohort: Any, num_rows: int, *, to_router: bool) -> list[tuple[str, str, NDArray[Any]]]:
    """Return the input `cohort`: names to the router, which may go without, and numbers to the scores, which may not."""
    if card.cohorts is None or (to_router and cohort is None):
        return []
    names = cohort_names(cohort, num_rows)
    if not to_router:
        return [(COHORT, "INT64", card.cohorts.numbers(names)[:, None])]
    return [(COHORT, "BYTES", np.array([[(name or "").encode()] for name in names], dtype=np.object_))]


class _Replaced(Exception):
    """The server answered with another version of the model than the card is of, after `num_done` rows with the right one."""

    def __init__(self, message: str, *, num_done: int) -> None:
        super().__init__(message)
        self.num_done = num_done
