"""How many rows were asked for, by what became of them. Runs inside Triton's Python backend.

They are told to Triton now and then, by the thread that tells of classes: one increment takes it some 0.1 ms, for which the request
would wait.
"""

import threading
from collections.abc import Mapping
from typing import Any

import triton_python_backend_utils as pb_utils


class RowCounts:
    """A family of counters with one label that differs."""

    def __init__(self, name: str, description: str, label: str, values: tuple[str, ...], labels: Mapping[str, str]) -> None:
        """Begin with 0 for each of the `values` of `label`; `labels` are those of every series."""
        self._family = pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)
        self._metrics: dict[str, Any] = {value: self._family.Metric(labels={**labels, label: value}) for value in values}
        self._counts = dict.fromkeys(values, 0)
        self._lock = threading.Lock()

    def add(self, counts: Mapping[str, int]) -> None:
        """Count these rows, soon."""
        with self._lock:
            for value, count in counts.items():
                self._counts[value] += count

    def tell(self) -> None:
        """Tell Triton what has come together."""
        with self._lock:
            counts, self._counts = self._counts, dict.fromkeys(self._metrics, 0)
        for value, count in counts.items():
            if count:
                self._metrics[value].increment(count)

    def finalize(self) -> None:
        """Tell what is left, and let go of the metrics before their family."""
        self.tell()
        self._metrics.clear()
