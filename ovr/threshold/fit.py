"""Thresholds of some heads by a rule that may ask which classes there are. Knows no rule in particular.

N = rows, K = heads, C = heads of one block
"""

import logging
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ovr.core.taxonomy import Taxonomy
from ovr.core.thresholds import Thresholds

log = logging.getLogger(__name__)


class ThresholdRule(Protocol):
    """Chooses one threshold a head on probabilities (N, K), of all heads or of some of them."""

    def fit(self, prob_NK: NDArray[Any], target_NK: NDArray[Any], mask_NK: NDArray[Any]) -> Thresholds | NDArray[np.float64]: ...


@runtime_checkable
class KnowsClasses(Protocol):
    """A rule that also asks which classes there are: it prices some by id, or its promise is over all of them."""

    def of_classes(self, taxonomy: Taxonomy, columns: slice) -> Any:
        """Return the rule for the heads `columns` of these classes; errors name a class that is not there."""
        ...


def rule_for(rule: ThresholdRule, taxonomy: Taxonomy, columns: slice = slice(None)) -> ThresholdRule:
    """Return the rule to `fit` on the probabilities of the heads `columns` among all classes.

    Raises:
        ConfigError: the rule names a class that is not there.
    """
    return rule.of_classes(taxonomy, columns) if isinstance(rule, KnowsClasses) else rule


def fit_thresholds(
    rule: ThresholdRule, prob_NC: Any, target_NC: Any, mask_NC: Any, *, taxonomy: Taxonomy, columns: slice
) -> Thresholds:
    """Return the thresholds of the heads `columns` among all classes, from their probabilities (N, C) on calibration rows.

    Raises:
        ConfigError: as `rule_for`.
        DataError: what the rule refuses.
    """
    return Thresholds.of(rule_for(rule, taxonomy, columns).fit(prob_NC, target_NC, mask_NC))


def warn_of_fallbacks(thresholds: Thresholds, class_ids: Sequence[str]) -> None:
    """Log which heads have a threshold without the promise that was asked for: a fallback, or one chosen on the wrong rows."""
    if without := thresholds.columns_without_promise():
        shown = "; ".join(f"{class_ids[k]!r} {thresholds.status_K[k]}" for k in without[:3])
        log.warning("%d of %d thresholds are without the promise asked for: %s", len(without), len(thresholds), shown)
