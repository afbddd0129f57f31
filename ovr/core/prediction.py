"""What the edge predictor and the Triton client both return. Knows nothing of where the probabilities came from.

B = batch, K = heads, M = top-k
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core import outcomes
from ovr.core.artifact import ModelCard


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of a decision policy on a batch."""

    label_BK: NDArray[np.bool_]  # the classes decided on; an abstained row has none
    abstained_B: NDArray[np.bool_]
    top_BM: NDArray[np.int64]  # columns by falling probability; ties by rising column; -1: no more that are available


@dataclass(frozen=True, slots=True)
class Prediction:
    """Calibrated probabilities (B, K) float32 in [0, 1], each for its own class (rows need not sum to 1), and the decision.

    Where `unavailable_BK` is True a probability is none of the row: NaN, or a prior where the server was told so.
    """

    card: ModelCard
    prob_BK: NDArray[np.float32]
    decision: Decision
    request_id: str = ""
    unavailable_BK: NDArray[np.bool_] | None = None  # classes that no head scored, where a server says so; None: there are none

    def __len__(self) -> int:
        return len(self.prob_BK)

    def labels(self) -> list[tuple[str, ...]]:
        """Return for each row the ids of the classes decided on, in column order; empty where it abstained."""
        ids = self.card.taxonomy.ids
        return [tuple(ids[k] for k in np.flatnonzero(row)) for row in self.decision.label_BK]

    def prediction_set(self) -> list[tuple[str, ...]]:
        """Return for each row the ids of the classes at or above their own thresholds, in column order, whatever the policy.

        With thresholds of `threshold=conformal` it is a class-conditional conformal set.
        """
        ids, threshold_K = self.card.taxonomy.ids, np.array(self.card.thresholds, dtype=np.float32)
        member_BK = self.prob_BK >= threshold_K
        if self.unavailable_BK is not None:
            member_BK &= ~self.unavailable_BK
        return [tuple(ids[k] for k in np.flatnonzero(row)) for row in member_BK]

    def prob_none(self) -> NDArray[np.float64]:
        """Return each row's probability (B,) of none of the classes, if classes are independent: see `ovr.core.outcomes`."""
        return outcomes.prob_none(self.prob_BK)

    def prob_none_exclusive(self) -> NDArray[np.float64]:
        """Return each row's probability (B,) of none of the classes, if a row has one at most: see `ovr.core.outcomes`."""
        return outcomes.prob_none_exclusive(self.prob_BK)

    def prob_normalized(self) -> NDArray[np.float64]:
        """Return probabilities (B, K) that sum to 1 a row, of exactly one class: see `ovr.core.outcomes`. `prob_BK` is not so."""
        return outcomes.prob_normalized(self.prob_BK)

    def out_of_scope_score(self) -> NDArray[np.float64]:
        """Return how much each row (B,) looks like one of none of the classes, no probability: see `ovr.core.outcomes`."""
        return outcomes.out_of_scope_score(self.prob_BK)

    def records(self, outputs: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Return for each row a plain dictionary: labels, abstained, top (class, prob), and prob of every class.

        Where a class is unavailable in some row, each has a list of those that are in it, and None for what is not known.

        `outputs` adds values by their names in `ovr.core.outcomes.OUTPUTS`, those of each class by class id.
        """
        ids = self.card.taxonomy.ids
        records = [
            {
                "labels": list(labels),
                "abstained": bool(abstained),
                "top": [{"class": ids[k], "prob": float(prob_K[k])} for k in top_M if k >= 0],
                "prob": {class_id: _number(p) for class_id, p in zip(ids, prob_K, strict=True)},
            }
            for labels, abstained, top_M, prob_K in zip(
                self.labels(), self.decision.abstained_B, self.decision.top_BM, self.prob_BK, strict=True
            )
        ]
        for name in outputs:
            for record, value in zip(records, outcomes.OUTPUTS[name](self.prob_BK), strict=True):
                if name in outcomes.PER_CLASS:
                    record[name] = {class_id: _number(item) for class_id, item in zip(ids, value, strict=True)}
                else:
                    record[name] = _number(value)
        if self.unavailable_BK is not None and self.unavailable_BK.any():
            for record, missing_K in zip(records, self.unavailable_BK, strict=True):
                record["unavailable"] = [ids[k] for k in np.flatnonzero(missing_K)]
        return records


def _number(value: Any) -> float | None:
    """Return a number that JSON can hold: None for what is not known."""
    number = float(value)
    return None if math.isnan(number) else number
