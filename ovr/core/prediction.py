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
from ovr.errors import InputError


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of a decision policy on a batch."""

    label_BK: NDArray[np.bool_]  # the classes decided on; an abstained row has none
    abstained_B: NDArray[np.bool_]
    top_BM: NDArray[np.int64]  # columns by falling probability; ties by rising column; -1: no more that are available


@dataclass(frozen=True, slots=True)
class Prediction:
    """Calibrated probabilities (B, K) float32 in [0, 1], each for its own class (rows need not sum to 1), and the decision.

    Column k belongs to `card.taxonomy[k]`: where some classes only were asked for, the card is of these (`ModelCard.of_classes`).
    Where `unavailable_BK` is True a probability is none of the row: NaN, or a prior where the server was told so.
    """

    card: ModelCard
    prob_BK: NDArray[np.float32]
    decision: Decision
    request_id: str = ""
    unavailable_BK: NDArray[np.bool_] | None = None  # classes that no head scored, where a server says so; None: there are none
    index: Any = None  # of the pandas rows that were given, which the frame of `to_pandas` has
    answered_BK: NDArray[np.int64] | None = None  # versions of the heads that answered, where a server tells; None: the card's

    def __len__(self) -> int:
        return len(self.prob_BK)

    def labels(self) -> list[tuple[str, ...]]:
        """Return for each row the ids of the classes decided on, in column order; empty where it abstained."""
        ids = self.card.taxonomy.ids
        return [tuple(ids[k] for k in np.flatnonzero(row)) for row in self.decision.label_BK]

    def head_versions(self) -> NDArray[np.int64]:
        """Return the version (B, K) of the head that each probability is of, 0 where a class was unavailable.

        They are those of `card.head_versions`, but where a server answered with an earlier one in a head's place.
        """
        if self.answered_BK is not None:
            return self.answered_BK
        version_BK = np.broadcast_to(np.array(self.card.head_versions, dtype=np.int64), self.prob_BK.shape)
        return version_BK if self.unavailable_BK is None else np.where(self.unavailable_BK, 0, version_BK)

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

    def to_pandas(self, outputs: Sequence[str] = ()) -> Any:
        """Return a DataFrame with the rows' own index where they were pandas, and the columns of `ovr predict`.

        label (of argmax: an id, missing where it abstained) or labels (of multilabel: a tuple of ids), abstained, confidence (the
        highest probability), unavailable (a tuple of ids, where any row has some), and `prob:<class id>` for each class, float32.
        `outputs` as in `records`.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise InputError("to_pandas() needs pandas: pip install 'ovr[pandas]'") from None
        labels_B = np.empty(len(self), np.object_)
        single = self.card.policy.mode == "argmax"
        labels_B[:] = [(labels[0] if labels else None) if single else labels for labels in self.labels()]
        columns: dict[str, Any] = {
            "label" if single else "labels": labels_B,
            "abstained": self.decision.abstained_B,
            "confidence": np.fmax.reduce(self.prob_BK, axis=1),
        }
        if self.unavailable_BK is not None and self.unavailable_BK.any():
            ids, missing_B = self.card.taxonomy.ids, np.empty(len(self), np.object_)
            missing_B[:] = [tuple(ids[k] for k in np.flatnonzero(missing_K)) for missing_K in self.unavailable_BK]
            columns["unavailable"] = missing_B
        values: dict[str, Any] = {name: outcomes.OUTPUTS[name](self.prob_BK) for name in outputs}
        columns |= {name: value for name, value in values.items() if name not in outcomes.PER_CLASS}
        per_class: dict[str, Any] = {name: value for name, value in values.items() if name in outcomes.PER_CLASS}
        for name, value_BK in {"prob": self.prob_BK, **per_class}.items():
            columns |= {f"{name}:{class_id}": value_BK[:, k] for k, class_id in enumerate(self.card.taxonomy.ids)}
        return pandas.DataFrame(columns, index=self.index)

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
