"""Some heads of a bundle in fewer bits, and what labelled rows show of them. Knows nothing of the backbone.

N = rows, D = features, K = heads
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ovr.core.artifact import Calibration, ModelCard
from ovr.core.bundle import ModelBundle
from ovr.core.prediction import Decision
from ovr.decision.decide import decide
from ovr.errors import ConfigError
from ovr.export.fused import heads_graph
from ovr.export.head import head_metadata, head_model
from ovr.export.heads_graph import HeadsGraph
from ovr.export.reduced import heads_model, reduced_heads
from ovr.export.stored import stored_weights
from ovr.lifecycle.edge_refit import better_calibrations
from ovr.lifecycle.logits import answers, open_session
from ovr.metric.calibration_bound import ece_upper_bound
from ovr.metric.classification import average_precision

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

MIN_KNOWN = 5  # rows of a class, and of others, below which a head is not judged: as few as the gate of bundles takes
IDENTITY = Calibration(kind="identity")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a head must keep to.

    Args:
        margin: by which a head's upper bound of the calibration error may rise, and its average precision fall.
        min_positives, min_negatives: known rows of the class, and of others, below which it is not judged.
    """

    margin: float = 0.01
    min_positives: int = MIN_KNOWN
    min_negatives: int = MIN_KNOWN

    def check(self) -> None:
        """Raise ConfigError unless these are values that they can have."""
        if isinstance(self.margin, bool) or not isinstance(self.margin, int | float) or not 0 <= self.margin <= 1:
            raise ConfigError(f"margin is {self.margin!r}; expected a number from 0 to 1")
        for name in ("min_positives", "min_negatives"):
            if type(value := getattr(self, name)) is not int or value < 1:
                raise ConfigError(f"{name} is {value!r}; expected a whole number of at least 1")


@dataclass(frozen=True, slots=True)
class Judged:
    """What rows show of each head (K,), the upper bound of its calibration error and its average precision; and their decisions."""

    ece_upper_K: F64
    ap_K: F64
    decision: Decision

    def changed_from(self, other: "Judged") -> tuple[NDArray[np.int64], int]:
        """Return on how many rows each class (K,) is decided otherwise than in `other`, and how many rows are, with abstention."""
        changed_NK = self.decision.label_BK != other.decision.label_BK
        changed_N = changed_NK.any(axis=1) | (self.decision.abstained_B != other.decision.abstained_B)
        return changed_NK.sum(axis=0), int(changed_N.sum())

    def worse_than(self, other: "Judged", margin: float) -> Bool:
        """Return which heads (K,) are worse than those of `other` by more than the margin."""
        return ~((self.ece_upper_K - other.ece_upper_K <= margin) & (other.ap_K - self.ap_K <= margin))


@dataclass(frozen=True, slots=True)
class Attempt:
    """Heads as a graph, and what they are worth."""

    graph: HeadsGraph
    without_refit: Judged
    refit_ece_upper_K: F64
    final: Judged
    calibrations: list[Calibration]


class GatedHeads:
    """Some heads of a bundle, and the rows that they are judged on."""

    def __init__(
        self,
        bundle: ModelBundle,
        card: ModelCard,
        columns: Sequence[int],
        target_NK: Bool,
        mask_NK: Bool,
        limits: Limits,
        refit: bool,
    ) -> None:
        self.card, self.limits, self.refit = card, limits, refit
        self.target_NK, self.mask_NK = target_NK, mask_NK
        self.heads = [bundle.heads[column] for column in columns]
        self.calibrations = [head.calibration for head in self.heads]
        self.weights = [(kind, weights) for _, kind, weights in stored_weights(bundle, columns)]
        known = [(is_class & mask_NK).sum(axis=0) for is_class in (target_NK, ~target_NK)]
        self.num_known_K2 = np.stack(known, axis=1).astype(np.int64)
        self.is_judged_K: Bool = np.asarray((self.num_known_K2 >= (limits.min_positives, limits.min_negatives)).all(axis=1))

    def graph(self, calibrations: Sequence[Calibration] | None, apart: frozenset[int] = frozenset()) -> HeadsGraph:
        """Return the heads with these calibrations; None: with none, so that the logits are the plain ones."""
        models = [
            head_model(kind, weights, new, head_metadata(replace(head, calibration=new)))
            for head, (kind, weights), new in zip(
                self.heads, self.weights, calibrations or [IDENTITY] * len(self.heads), strict=True
            )
        ]
        kind, weights = self.weights[0]
        num_features = weights["weight" if kind == "linear" else "hidden_weight"].shape[-1]
        return heads_graph(models, self.card, num_features=num_features, apart=apart)

    def reduced(self, z_ND: F32, precision: str, apart: frozenset[int]) -> Callable[[Sequence[Calibration] | None], HeadsGraph]:
        """Return a function that gives what `graph` gives in a precision, but for the heads apart."""
        return lambda calibrations: reduced_heads(self.graph(calibrations, apart), precision, z_ND)

    def attempt(
        self, make: Callable[[Sequence[Calibration] | None], HeadsGraph], z_ND: F32, full: Judged, *, keep: Collection[int] = ()
    ) -> Attempt:
        """Return the heads that `make` gives of calibrations: those of the bundle, and fitted again where that is better.

        Better is what `better_calibrations` says, and what the heads with it then show: the bound falls, and no head becomes worse
        than `full` by more than the margin that was not so before.
        """
        graph, unfitted_K = make(self.calibrations), np.full(len(self.calibrations), np.nan)
        without = self.judged(self.prob(graph, z_ND))
        first = Attempt(graph, without, unfitted_K, without, self.calibrations)
        if not self.refit:
            return first
        margin = self.limits.margin
        logit_NK = self.logit(make(None), z_ND)
        chosen, worth_K = better_calibrations(logit_NK, self.target_NK, self.mask_NK, self.calibrations, keep=keep)
        is_allowed_K = ~without.worse_than(full, margin)
        while chosen != self.calibrations:
            graph = make(chosen)
            final = self.judged(self.prob(graph, z_ND))
            is_no_better_K = ~(final.ece_upper_K < without.ece_upper_K) | (is_allowed_K & final.worse_than(full, margin))
            back = [k for k in np.flatnonzero(is_no_better_K).tolist() if chosen[k] != self.calibrations[k]]
            if not back:
                return Attempt(graph, without, worth_K, final, chosen)
            chosen = [self.calibrations[k] if k in back else new for k, new in enumerate(chosen)]
        return replace(first, refit_ece_upper_K=worth_K)

    def listed(self, which_K: Bool) -> dict[str, Any]:
        """Return how many heads these are, and the first of them."""
        ids = [self.card.taxonomy.ids[k] for k in np.flatnonzero(which_K)]
        return {"num_heads": len(ids), "heads": ids[:20]}

    def why_none(self) -> str:
        """Return why each head stays as it is."""
        if self.is_judged_K.all():
            return "every head is worse, or has too few weights"
        few = np.flatnonzero(~self.is_judged_K)
        shown = ", ".join("{!r}: {} and {}".format(self.card.taxonomy.ids[k], *self.num_known_K2[k]) for k in few[:5])
        rest = "" if len(few) == len(self.heads) else ", the others are worse or have too few weights"
        return (
            f"a head is judged on {self.limits.min_positives} known rows of its class and {self.limits.min_negatives} of others at "
            f"least, which {len(few)} of {len(self.heads)} heads do not have ({shown}){rest}"
        )

    def logit(self, graph: HeadsGraph, z_ND: F32) -> F32:
        """Return the heads' logits (N, K)."""
        model = heads_model(graph, z_ND.shape[1], output=graph.logit)
        return _run(model, z_ND)[:, graph.slot_K]

    def prob(self, graph: HeadsGraph, z_ND: F32) -> F32:
        """Return the heads' probabilities (N, K)."""
        return _run(heads_model(graph, z_ND.shape[1]), z_ND)

    def judged(self, prob_NK: NDArray[np.floating[Any]]) -> Judged:
        """Return what the rows show of probabilities."""
        upper_K = ece_upper_bound(prob_NK, self.target_NK, self.mask_NK)[1]
        decision = decide(prob_NK, threshold_K=self.card.thresholds, policy=self.card.policy)
        return Judged(upper_K, average_precision(prob_NK, self.target_NK, self.mask_NK), decision)


def _run(model: onnx.ModelProto, rows: F32) -> F32:
    return answers(open_session(model.SerializeToString(), num_threads=1, what="the heads"), rows)
