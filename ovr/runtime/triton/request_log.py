"""A line of JSON for a request: which, when, which heads answered, how long it took. Knows nothing of Triton, nor what is in rows.

B = rows of a request, C = classes of a request
"""

import json
import os
import threading
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.request_log import RequestLogSettings

OK = "OK"
OUTPUT_FD = "OVR_REQUEST_LOG_FD"  # environment: where lines go; else to the standard output of Triton
MAX_CLASSES = 20  # named in a line; numbers are of all
MAX_ID_CHARS = 128
MAX_LINE_BYTES = 4096  # what a pipe takes in one piece, whoever else writes into it
MAX_NOTED = 10_000  # that wait to be written; more are dropped, and counted
INTERVAL_S = 0.2
STOP_S = 2.0  # for what is left at the end, where nobody takes it

Exported = Sequence[tuple["Noted", dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class HeadVersions:
    """Which heads answered the rows of a request."""

    missing_C: NDArray[np.bool_]  # classes for which none did, of some row
    versions: list[list[int]] | None  # of each class, where they are few enough to be named

    @classmethod
    def of(cls, version_BC: NDArray[np.int64]) -> "HeadVersions":
        """Return those of the versions that answered each row, 0 where none did."""
        versions = None
        if version_BC.shape[1] <= MAX_CLASSES:
            versions = [sorted({*version_B} - {0}) for version_B in version_BC.T.tolist()]
        return cls((version_BC == 0).any(axis=0), versions)


@dataclass(frozen=True, slots=True)
class Noted:
    """What became of one request."""

    id: str
    status: str  # OK, or the gRPC code that a client gets
    began_s: float  # since 1970
    latency_s: float  # in the router
    num_rows: int
    column_C: NDArray[np.int64] | None = None  # classes asked for; None: all
    heads: HeadVersions | None = None  # None: there is no answer
    traceparent: str = ""  # of W3C's trace context


class RequestLog:
    """The lines of one instance of the router, written by a thread of its own."""

    def __init__(
        self,
        class_ids: Sequence[str],
        settings: RequestLogSettings,
        *,
        version: int,
        bundle_sha256: str,
        write: Callable[[bytes], Any] | None = None,
        export: Callable[[Exported], Any] | None = None,
    ) -> None:
        """Begin.

        Args:
            write: takes one line; by default it goes to the file `OUTPUT_FD`, else to standard output.
            export: takes requests that have a trace, each with what its line says, whether or not that is written.
        """
        self._ids, self._settings = class_ids, settings
        self._of_all = {"model": "ovr", "version": version, "bundle_sha256": bundle_sha256}
        self._below = int(settings.share * 2**32)
        fd = int(os.environ.get(OUTPUT_FD, "1"))
        self._write = write or (lambda line: os.write(fd, line))
        self._export = export
        self._noted: deque[Noted] = deque()
        self._num_dropped = 0
        self._wake, self._stopped = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="request log", daemon=True)
        self._thread.start()

    @property
    def exports(self) -> bool:
        """Whether requests that have a trace are noted, whether or not they are written."""
        return self._export is not None

    @property
    def notes_answers(self) -> bool:
        """Whether any request that is answered may be noted: else its id does not matter."""
        return self.exports or self._below > 0

    def writes(self, request_id: str, status: str) -> bool:
        """Return whether there is a line about a request."""
        if status != OK:
            return self._settings.errors
        return self._below > 0 and zlib.crc32(request_id.encode(errors="replace")) < self._below

    def note(self, noted: Noted) -> None:
        """Take in a request, to be written and exported soon."""
        if len(self._noted) < MAX_NOTED:
            self._noted.append(noted)
        else:
            self._num_dropped += 1

    def finalize(self) -> None:
        """Write what is left, unless nobody takes it."""
        self._stopped = True
        self._wake.set()
        self._thread.join(STOP_S)

    def _run(self) -> None:
        while not self._stopped:
            self._wake.wait(INTERVAL_S)
            self._tell()
        self._tell()  # what was noted while the others were told

    def _tell(self) -> None:
        traced = []
        for _ in range(len(self._noted)):
            noted = self._noted.popleft()
            fields = fields_of(noted, self._ids) | self._of_all
            if self.writes(noted.id, noted.status):
                self._write_line(fields)
            if noted.traceparent:
                traced.append((noted, fields))
        if self._num_dropped:
            dropped, self._num_dropped = self._num_dropped, 0
            self._write_line({"dropped": dropped} | self._of_all)
        if self._export is not None and traced:
            self._export(traced)

    def _write_line(self, fields: dict[str, Any]) -> None:
        try:
            self._write(line_of(fields))
        except OSError:  # nobody reads any more, or the disk is full
            self._num_dropped += fields.get("dropped", 1)


def fields_of(noted: Noted, class_ids: Sequence[str]) -> dict[str, Any]:
    """Return what a line says of one request, `MAX_CLASSES` classes at most by name."""
    num_classes = len(class_ids) if noted.column_C is None else len(noted.column_C)
    columns = np.arange(min(num_classes, MAX_CLASSES)) if noted.column_C is None else noted.column_C[:MAX_CLASSES]
    named = [class_ids[column] for column in columns.tolist()]
    version, trace_id, span_id = (*noted.traceparent.split("-"), "", "", "")[:3]
    fields: dict[str, Any] = {
        "time": datetime.fromtimestamp(noted.began_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "request_id": noted.id[:MAX_ID_CHARS],
        "status": noted.status,
        "latency_ms": round(noted.latency_s * 1000, 3),
        "rows": noted.num_rows,
        "num_classes": num_classes,
        "classes": None if noted.column_C is None else named,
        "num_unavailable": None,
        "unavailable": None,
        "head_versions": None,
        "trace_id": trace_id if version else None,
        "span_id": span_id if version else None,
    }
    if noted.heads is not None:
        missing = np.flatnonzero(noted.heads.missing_C)
        columns = missing if noted.column_C is None else noted.column_C[missing]
        fields["num_unavailable"] = len(missing)
        fields["unavailable"] = [class_ids[column] for column in columns[:MAX_CLASSES].tolist()]
        if noted.heads.versions is not None:
            fields["head_versions"] = dict(zip(named, noted.heads.versions, strict=True))
    return fields


def line_of(fields: dict[str, Any]) -> bytes:
    """Return one line of JSON in ASCII, without the names of classes where these make it too long to be written at once."""
    line = b""
    for left_out in ((), ("classes", "unavailable", "head_versions")):
        line = json.dumps({**fields, **dict.fromkeys(left_out)}, separators=(",", ":")).encode() + b"\n"
        if len(line) <= MAX_LINE_BYTES:
            break
    return line
