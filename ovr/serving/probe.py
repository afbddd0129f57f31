"""Asking one model for one row, to see whether it answers. Knows nothing of what is done if it does not."""

import http.client
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from ovr.core.request_log import PROBE_ID
from ovr.serving.control import reason

UNAVAILABLE = "unavailable"  # an output of the router: classes that are answered without their head
Outcome = Literal["ok", "failed", "dead", "busy", "slow", "gone"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one probe.

    `outcome`: "ok"; "failed", an error of the model; "dead", Triton's word that the model's process is not there any more; "busy",
    its queue is full; "slow", no answer in time, or none at all; "gone", no such model.
    `not_finite` names columns of `prob` by output: a model that answers so has bad weights, which no reload cures.
    `unavailable` are the columns of classes that the router answered without their head.
    """

    outcome: Outcome
    latency_s: float
    error: str = ""
    not_finite: Mapping[str, tuple[int, ...]] | None = None
    unavailable: tuple[int, ...] = ()


class Probe:
    """One request to one version of one model, made once and sent whenever it is asked for."""

    def __init__(self, model: str, version: int | None, inputs: Mapping[str, NDArray[Any]], outputs: list[str]) -> None:
        """Make it.

        Args:
            version: None asks the one that clients get.
            inputs: one row of each.
            outputs: those to be looked at: of numbers, or `UNAVAILABLE`.
        """
        import tritonclient.http as http_api
        from tritonclient.utils import np_to_triton_dtype

        self.model, self._outputs = model, outputs
        tensors = []
        for name, values in inputs.items():
            tensors.append(http_api.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype)))
            tensors[-1].set_data_from_numpy(values)
        wanted = [http_api.InferRequestedOutput(name) for name in outputs]
        self._body, json_size = http_api.InferenceServerClient.generate_request_body(tensors, outputs=wanted, request_id=PROBE_ID)
        self._headers = {} if json_size is None else {"Inference-Header-Content-Length": str(json_size)}
        which = "" if version is None else f"/versions/{version}"
        self._path = f"/v2/models/{quote(model, safe='')}{which}/infer"

    def ask(self, connection: http.client.HTTPConnection) -> Answer:
        """Return what comes of it; the connection has the time limit, and is as good as new afterwards."""
        before = time.monotonic()
        try:
            connection.request("POST", self._path, body=self._body, headers=self._headers)
            response = connection.getresponse()
            body = response.read()
        except TimeoutError:
            connection.close()
            return Answer("slow", time.monotonic() - before, f"no answer within {connection.timeout:g} s")
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return Answer("slow", time.monotonic() - before, f"{type(error).__name__}: {error}")
        latency_s = time.monotonic() - before
        if response.status != 200:
            return Answer(self._outcome(text := reason(body)), latency_s, text or f"HTTP status {response.status}")
        columns = self._odd_columns(body, response.headers.get("Inference-Header-Content-Length"))
        return Answer("ok", latency_s, unavailable=columns.pop(UNAVAILABLE, ()), not_finite=columns)

    def _outcome(self, error: str) -> Outcome:
        if "maximum queue size" in error:
            return "busy"
        if error.startswith("Request for unknown model"):
            return "gone"
        # An error of a model that this one calls has that model's name in it.
        dead = re.search(rf"Stub process '{re.escape(self.model)}_\d+_\d+' is not healthy", error)
        return "dead" if dead else "failed"

    def _odd_columns(self, body: bytes, header_size: str | None) -> dict[str, tuple[int, ...]]:
        """Return by output the columns that are not finite, or true, where there are any."""
        import tritonclient.http as http_api

        result = http_api.InferResult.from_response_body(body, header_length=None if header_size is None else int(header_size))
        found = {}
        for name in self._outputs:
            values = result.as_numpy(name)[0]
            if (columns := np.flatnonzero(values if values.dtype == np.bool_ else ~np.isfinite(values))).size:
                found[name] = tuple(columns.tolist())
        return found
