"""Thresholds of least expected cost, false positives and false negatives priced a class. Knows nothing of the test split.

N = rows, K = heads, C = heads of one block
"""

from collections.abc import Mapping
from copy import copy
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ovr.core.ranking import Ranked, ranked_blocks
from ovr.core.targets import check_probs
from ovr.core.taxonomy import ClassSpec, Taxonomy
from ovr.core.thresholds import NO_POSITIVE, OK, Thresholds
from ovr.errors import ConfigError
from ovr.threshold.cuts import cut_thresholds

F64 = NDArray[np.float64]
PRICES = ("false_positive", "false_negative")


def bayes_thresholds(false_positive_K: F64, false_negative_K: F64) -> F64:
    """Return false_positive / (false_positive + false_negative) for each head (K,), as float32 numbers.

    Deciding on a class costs (1 - prob) false_positive, leaving it out prob false_negative: they are equal at this probability
    (Elkan 2001, "The Foundations of Cost-Sensitive Learning"). It is the best threshold where probabilities are calibrated, and
    needs no row.
    """
    threshold_K: F64 = (false_positive_K / (false_positive_K + false_negative_K)).astype(np.float32).astype(np.float64)
    return threshold_K


def least_cost_thresholds(
    prob_NK: Any, target_NK: Any, mask_NK: Any, *, false_positive_K: F64, false_negative_K: F64
) -> Thresholds:
    """Return for each head the threshold of least cost on its known rows: false positives and negatives there times their prices.

    It lies in the middle between two scores; of cuts of equal cost the highest is chosen; where it is cheapest to take no row, in
    the middle between the highest score and 1. Heads without a known positive get `bayes_thresholds`, and `NO_POSITIVE`.

    Raises:
        DataError: probabilities that are NaN or outside [0, 1], shapes that differ, targets or mask other than 0 and 1.
    """
    prob_NK, target_NK, mask_NK = check_probs(prob_NK, target_NK, mask_NK)
    threshold_K = bayes_thresholds(false_positive_K, false_negative_K)
    found_K = (target_NK & mask_NK).any(axis=0)
    for ranked in ranked_blocks(prob_NK.astype(np.float32), target_NK, mask_NK):
        here, found_C = ranked.columns, found_K[ranked.columns]
        if found_C.any():
            threshold_K[here][found_C] = _cheapest(ranked, false_positive_K[here], false_negative_K[here])[found_C]
    return Thresholds(threshold_K, tuple(OK if found else NO_POSITIVE for found in found_K))


def _cheapest(ranked: Ranked, false_positive_C: F64, false_negative_C: F64) -> F64:
    hits_CN = np.cumsum(ranked.target_CN, axis=1)
    wrong_CN = np.arange(1, hits_CN.shape[1] + 1) - hits_CN
    missed_CN = ranked.num_positives_C[:, None] - hits_CN
    cost_CN = wrong_CN * false_positive_C[:, None] + missed_CN * false_negative_C[:, None]
    cost_CN = np.where(ranked.tie_end_CN, cost_CN, np.inf)
    last_C = np.argmin(cost_CN, axis=1)
    highest_C = ranked.score_CN[:, 0].astype(np.float64)
    none_C = (ranked.num_positives_C * false_negative_C <= cost_CN.min(axis=1)) & (highest_C < 1.0)
    above_C = np.nextafter(highest_C.astype(np.float32), np.float32(2))
    return np.where(none_C, np.maximum((0.5 * (highest_C + 1.0)).astype(np.float32), above_C), cut_thresholds(ranked, last_C))


class Cost:
    """Plug-in: `bayes_thresholds` or `least_cost_thresholds`. A price is that of `costs`, else that of the class in the taxonomy,
    else that of all classes."""

    def __init__(
        self,
        *,
        false_positive: float = 1.0,
        false_negative: float = 1.0,
        costs: Mapping[str, Mapping[str, float]] | None = None,
        method: str = "bayes",
    ) -> None:
        """Take the prices of all classes, those of some by id, and where the threshold comes from.

        Args:
            costs: class id -> {false_positive: ..., false_negative: ...}, either or both.
            method: "bayes": from the prices alone, right for calibrated probabilities; "empirical": least cost on the rows given.

        Raises:
            ConfigError: prices that are negative, not finite, or both 0 for all classes; keys other than those two; another method.
        """
        if method not in ("bayes", "empirical"):
            raise ConfigError(f"method is {method!r}; expected 'bayes' (from the prices) or 'empirical' (least cost on the rows)")
        self.method = method
        self.default = _prices("every class", {"false_positive": false_positive, "false_negative": false_negative})
        _check_not_free("every class", self.default)
        self.costs = {str(name): _prices(f"class {name!r}", prices) for name, prices in (costs or {}).items()}
        self._prices_K: tuple[F64, F64] | None = None

    def of_classes(self, taxonomy: Taxonomy, columns: slice) -> Self:
        """Return the rule with the prices of these heads.

        Raises:
            ConfigError: `costs` names classes that are not there, with those that are near; or both prices of a class are 0.
        """
        if unknown := taxonomy.unknown(self.costs):
            raise ConfigError(f"costs name classes that the model of {len(taxonomy)} classes does not have: {unknown}")
        rule = copy(self)
        prices = [self._prices_of(spec) for spec in taxonomy[columns]]
        rule._prices_K = tuple(np.array([price[kind] for price in prices], dtype=np.float64) for kind in PRICES)  # type: ignore[assignment]
        return rule

    def _prices_of(self, spec: ClassSpec) -> dict[str, float]:
        own = {"false_positive": spec.false_positive, "false_negative": spec.false_negative}
        prices = self.default | {kind: price for kind, price in own.items() if price is not None} | self.costs.get(spec.id, {})
        _check_not_free(f"class {spec.id!r}", prices)
        return prices

    def fit(self, prob_NK: Any, target_NK: Any, mask_NK: Any) -> Thresholds:
        """Return thresholds (K,); arguments are those of `least_cost_thresholds`.

        Raises:
            ConfigError: there are prices a class, and the classes are not known: call `of_classes` first.
            DataError: as `least_cost_thresholds`.
        """
        if self._prices_K is None:
            if self.costs:
                raise ConfigError("costs are priced by class id: call of_classes(class ids, columns) before fit")
            num_heads = np.shape(prob_NK)[1]
            self._prices_K = tuple(np.full(num_heads, self.default[kind]) for kind in PRICES)  # type: ignore[assignment]
        false_positive_K, false_negative_K = self._prices_K  # type: ignore[misc]
        if self.method == "empirical":
            return least_cost_thresholds(
                prob_NK, target_NK, mask_NK, false_positive_K=false_positive_K, false_negative_K=false_negative_K
            )
        check_probs(prob_NK, target_NK, mask_NK)
        return Thresholds.of(bayes_thresholds(false_positive_K, false_negative_K))


def _prices(what: str, given: Any) -> dict[str, float]:
    if not isinstance(given, Mapping) or set(given) - set(PRICES):
        raise ConfigError(f"the costs of {what} are {given!r}; expected {{false_positive: ..., false_negative: ...}}")
    for kind, price in given.items():
        if not isinstance(price, int | float) or isinstance(price, bool) or not 0.0 <= price < np.inf:
            raise ConfigError(f"the cost of a {kind} of {what} is {price!r}; expected a number of at least 0")
    return {kind: float(price) for kind, price in given.items()}


def _check_not_free(what: str, prices: Mapping[str, float]) -> None:
    if not any(prices.values()):
        raise ConfigError(f"both costs of {what} are 0; expected one above 0, or every threshold is as good as another")
