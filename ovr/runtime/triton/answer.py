"""What the router answers requests for the same, as arrays by the names of its outputs. Knows nothing of Triton's objects.

B = batch, K = heads, C = classes asked for, M = top-k
"""

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.artifact import ModelCard
from ovr.core.faults import FAIL, PRIOR, HeadPlan
from ovr.core.outcomes import OUTPUTS
from ovr.decision.decide import decide
from ovr.errors import InputError, OvrError
from ovr.runtime.triton.heads import Scored
from ovr.runtime.triton.parameters import Asked

SHOWN = 5  # classes named in an error


class NotAnswered(OvrError):
    """Classes that a request cannot do without were not scored; it may succeed later."""


class Answers:
    """The decision of one publication, and what stands in for classes that were not scored."""

    def __init__(self, card: ModelCard, plan: HeadPlan) -> None:
        self._ids = card.taxonomy.ids
        self._class_K = np.array([class_id.encode() for class_id in self._ids] + [b""], dtype=np.object_)  # column -1: no class
        self._bundle_sha256 = card.bundle_sha256.encode()
        self._must_K = np.array([fallback == FAIL for fallback in plan.faults.fallbacks(card.taxonomy)])
        self._prior_K = np.full(len(self._ids), np.nan, np.float32)
        for class_id, fallback in zip(self._ids, plan.faults.fallbacks(card.taxonomy), strict=True):
            if fallback == PRIOR:
                self._prior_K[card.taxonomy.column(class_id)] = plan.prior[class_id]

    def outputs(self, scored: Scored, asked: Asked, wanted: Collection[str]) -> dict[str, NDArray[Any]]:
        """Return the arrays of the outputs, in C order and row by row; those that take work only where they are wanted.

        What a row gets depends on no other row, so that several requests may be answered at once. `request_id` is not among them.

        Raises:
            InputError: a row without a probability of any class that is asked for, of heads that work: it overflows in the model.
            NotAnswered: no head of those works, or the class was not scored of one whose fallback is to fail.
        """
        column_C = asked.column_C
        prob_BC, version_BC = scored.prob_BK, scored.head_version_BK
        if column_C is not None:
            prob_BC, version_BC = prob_BC.take(column_C, axis=1), version_BC.take(column_C, axis=1)  # in C order, unlike indexing
        missing_BC = np.isnan(prob_BC)
        available_BC = None
        if missing_BC.any():
            available_BC = ~missing_BC
            column_C = np.arange(len(self._ids)) if column_C is None else column_C
            self._check(missing_BC, column_C, scored)
            prob_BC = np.where(missing_BC, self._prior_K[column_C], prob_BC)
        decision = decide(prob_BC, threshold_K=asked.threshold_C, policy=asked.policy, available_BK=available_BC)
        num_rows = len(prob_BC)
        outputs: dict[str, NDArray[Any]] = {
            "prob": prob_BC,
            "label": decision.label_BK,
            "abstained": decision.abstained_B[:, None],
            "top": decision.top_BM,
            "unavailable": missing_BC,
        }
        if "top_class" in wanted:
            top_BM = decision.top_BM
            column_BM = top_BM if column_C is None else np.where(top_BM < 0, -1, column_C[top_BM])
            outputs["top_class"] = self._class_K[column_BM]
        if "head_version" in wanted:
            outputs["head_version"] = version_BC
        if "bundle_sha256" in wanted:
            outputs["bundle_sha256"] = np.full((num_rows, 1), self._bundle_sha256, dtype=np.object_)
        for name in OUTPUTS.keys() & wanted:
            outputs[name] = OUTPUTS[name](prob_BC).reshape(num_rows, -1)
        if available_BC is not None and asked.fill is not None:
            for name in ("prob", *(OUTPUTS.keys() & wanted)):
                outputs[name] = np.nan_to_num(outputs[name], nan=asked.fill)
        return {name: np.ascontiguousarray(array) for name, array in outputs.items()}

    def _check(self, missing_BC: NDArray[np.bool_], column_C: NDArray[np.int64], scored: Scored) -> None:
        """Raise where what is missing leaves nothing to answer, or what must not be missing is."""
        if not scored.answered_K[column_C].any():
            raise NotAnswered(f"no head answers of those that are asked for: {self._named(column_C)}")
        empty_B = missing_BC.all(axis=1)
        if scored.is_odd_B is not None and (odd_B := empty_B & scored.is_odd_B).any():
            raise InputError(
                f"row {int(np.argmax(odd_B))} gets no probability of any class that is asked for: its values overflow within the "
                "model"
            )
        if empty_B.any():
            raise NotAnswered(
                f"no head that is asked for gives a probability of row {int(np.argmax(empty_B))}: {self._named(column_C)}"
            )
        if (needed_C := missing_BC.any(axis=0) & self._must_K[column_C]).any():
            some = self._named(column_C[needed_C])
            raise NotAnswered(f"unavailable, and must not be missing: {some}")

    def _named(self, column_C: NDArray[np.int64]) -> str:
        more = f" and {len(column_C) - SHOWN} more" if len(column_C) > SHOWN else ""
        return ", ".join(repr(self._ids[column]) for column in column_C[:SHOWN].tolist()) + more
