"""What became of heads, at Triton's /metrics and in its log. Runs inside Triton's Python backend; knows not who is at fault.

It is told now and then, by the thread that tells of classes: an increment takes Triton some 0.1 ms, for which a request would wait.
"""

import threading
from collections import Counter
from typing import Any

import triton_python_backend_utils as pb_utils

from ovr.core.artifact import ModelCard
from ovr.runtime.triton.class_counts import POOLED, own_series
from ovr.runtime.triton.heads import Fault, Head

Key = tuple[int, int]  # of a head: its column, -1 for all that have no series of their own; and its version, 0 for those


class HeadFaults:
    """Counts of one instance of the router, and the state of its breakers."""

    def __init__(self, card: ModelCard, *, max_classes: int, labels: dict[str, str]) -> None:
        """Begin; `max_classes` heads have series of their own, as in `ClassCounts`, and `labels` are those of every series."""
        self._ids, self._labels = card.taxonomy.ids, labels
        self._is_own_K = own_series([spec.critical for spec in card.taxonomy], max_classes)
        self._faults_total = pb_utils.MetricFamily(  # must outlive its metrics
            name="ovr_head_faults_total",
            description="Batches for which a head was missing, late, or sick (no probability of some row), or skipped: not asked",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self._breakers_open = pb_utils.MetricFamily(
            name="ovr_class_breaker_open",
            description="Breakers that are open or on trial: 0 or 1, or how many of the classes without series of their own",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        self._metrics: dict[tuple[Key, str], Any] = {}  # made when there is something to tell: most heads never fail
        self._lock = threading.Lock()
        self._noted: dict[tuple[str, int, Fault], tuple[Head, int, str]] = {}
        self._open: set[tuple[int, int]] = set()
        self._changed: set[Key] = set()

    def count(self, head: Head, fault: Fault, why: str) -> None:
        """Count a batch, soon, and have the log say why."""
        key = (head.model, head.version, fault)
        with self._lock:
            self._noted[key] = (head, self._noted.get(key, (head, 0, ""))[1] + 1, why)

    def changed(self, head: Head) -> None:
        """Take note of a breaker that opened or closed."""
        pb_utils.Logger.log_warn(f"the breaker of {head.model} version {head.version} is {head.breaker.state}")
        with self._lock:
            self._changed.add(self._key(head))
            if head.breaker.state == "closed":
                self._open.discard((head.column, head.version))
            else:
                self._open.add((head.column, head.version))

    def tell(self) -> None:
        """Tell Triton what has come together."""
        with self._lock:
            noted, self._noted = self._noted, {}
            changed, self._changed = self._changed, set()
            num_open = Counter(key if self._is_own_K[key[0]] else (-1, 0) for key in self._open)
        for (model, version, fault), (head, count, why) in noted.items():
            key = self._key(head)
            label = {"head": "" if key[0] < 0 else model, "head_version": str(key[1]), "fault": fault}
            self._metric(self._faults_total, key, fault, label).increment(count)
            if fault != "skipped":
                times = "" if count == 1 else f" {count} times, the last time"
                pb_utils.Logger.log_warn(f"{model} version {version} was {fault}{times}: {why}")
        for key in changed:
            label = {"class": POOLED if key[0] < 0 else self._ids[key[0]], "head_version": str(key[1])}
            self._metric(self._breakers_open, key, "", label).set(num_open[key])

    def finalize(self) -> None:
        """Tell what is left, and let go of the metrics before their families."""
        self.tell()
        self._metrics.clear()

    def _key(self, head: Head) -> Key:
        return (head.column, head.version) if self._is_own_K[head.column] else (-1, 0)

    def _metric(self, family: Any, key: Key, what: str, label: dict[str, str]) -> Any:
        if (key, what) not in self._metrics:
            self._metrics[key, what] = family.Metric(labels={**self._labels, **label})
        return self._metrics[key, what]
