"""What each class answers, at Triton's /metrics. Runs inside Triton's Python backend; what is counted is `class_counts`'s affair.

A thread tells Triton every few seconds what has come together: one increment takes it some 0.1 ms, too long for a request.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from ovr.core.artifact import ModelCard
from ovr.core.class_metrics import ClassMetricsSettings
from ovr.runtime.triton.class_counts import Answered, ClassCounts

MAX_NOTED = 2_000_000  # probabilities; more are counted before the interval is over
FAMILIES = {
    "requests": ("ovr_class_requests_total", "Requests that were answered for a class"),
    "rows": ("ovr_class_rows_total", "Rows that were answered for a class"),
    "decided": ("ovr_class_decisions_total", "Rows decided to be of a class"),
    "abstained": ("ovr_class_abstentions_total", "Rows abstained on, by the class with the highest probability"),
    "unavailable": ("ovr_class_unavailable_total", "Rows for which a class was unavailable"),
    "score": ("ovr_class_score_bucket", "Probabilities of a class up to the bound le"),
    "score_sum": ("ovr_class_score_sum", "Sum of the probabilities of a class"),
    "latency": ("ovr_class_latency_seconds_bucket", "Requests for a class that were answered within le seconds"),
    "latency_sum": ("ovr_class_latency_seconds_sum", "Seconds that requests for a class took in the router"),
}


class ClassMetrics:
    """Counts the answers of one instance of the router."""

    def __init__(
        self, card: ModelCard, settings: ClassMetricsSettings, labels: dict[str, str], also: Sequence[Callable[[], None]] = ()
    ) -> None:
        """Begin; `labels` are those of every series, `also` is what else has something to tell, first."""
        critical = [spec.critical for spec in card.taxonomy]
        self._counts = ClassCounts(card.taxonomy.ids, is_critical=critical, max_classes=settings.max_classes)
        self._labels, self._also = labels, also
        self._families = {
            key: pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)
            for key, (name, description) in FAMILIES.items()
        }
        self._metrics: dict[tuple[str, str, int, str | None], Any] = {}
        self._lock = threading.Lock()
        self._wake, self._stopped = threading.Event(), False
        self._thread = threading.Thread(target=self._run, args=(settings.interval_s,), name="class metrics", daemon=True)
        self._thread.start()

    def note(self, answered: Answered) -> None:
        """Count an answer, soon."""
        with self._lock:
            self._counts.note(answered)
        if self._counts.num_noted > MAX_NOTED:
            self._wake.set()

    def finalize(self) -> None:
        """Tell what is left, and let go of the metrics before their families."""
        self._stopped = True
        self._wake.set()
        self._thread.join()
        self._metrics.clear()

    def _run(self, interval_s: float) -> None:
        while not self._stopped:
            self._wake.wait(interval_s)
            self._wake.clear()
            self._tell()
        self._tell()  # what was noted while the others were told

    def _tell(self) -> None:
        for tell in self._also:
            tell()
        with self._lock:
            noted = self._counts.take()
        for (class_id, head_version), counts in self._counts.count(noted).items():
            for key, bound, increment in counts.increments():
                self._metric(key, class_id, head_version, bound).increment(increment)

    def _metric(self, key: str, class_id: str, head_version: int, bound: str | None) -> Any:
        known = self._metrics.get((key, class_id, head_version, bound))
        if known is None:
            labels = {**self._labels, "class": class_id, "head_version": str(head_version)}
            if bound is not None:
                labels["le"] = bound
            known = self._metrics[key, class_id, head_version, bound] = self._families[key].Metric(labels=labels)
        return known
