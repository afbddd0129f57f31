"""What a request to the router asks for beside its rows: the `parameters` of the v2 protocol. Knows nothing of Triton's objects.

K = heads, C = classes asked for
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.artifact import DecisionPolicy, ModelCard
from ovr.errors import InputError
from ovr.runtime.cohort_rows import check_takes_cohorts

KNOWN = ("top_k", "classes", "threshold", "cohort", "fill")
# Triton takes these out of a request itself; where another server leaves them in, they are still none of ours.
TRITON_S_OWN = ("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output")
MAX_KEPT_CHARS = 4096
MAX_KEPT = 256
MAX_SHOWN_CHARS = 60
MAX_SHOWN_IDS = 3
MAX_COMPARED = 10_000


@dataclass(frozen=True, slots=True)
class Asked:
    """One request's own decision: the columns of its answer, in their order, and how they are decided on."""

    column_C: NDArray[np.int64] | None  # None: every class
    threshold_C: NDArray[np.float32]
    policy: DecisionPolicy
    cohort: str | None  # of all rows of the request
    fill: float | None  # what is answered in place of NaN


def parameters_of(card: ModelCard) -> Callable[[str], Asked]:
    """Return `parse` for one card, which keeps what it made of the parameters that came last."""
    kept: dict[str, Asked] = {}

    def parse_or_recall(text: str) -> Asked:
        asked = kept.get(text)
        if asked is None:
            asked = parse(text, card)
            if len(text) <= MAX_KEPT_CHARS:
                if len(kept) >= MAX_KEPT:
                    kept.clear()
                kept[text] = asked
        return asked

    return parse_or_recall


def parse(text: str, card: ModelCard) -> Asked:
    """Return what the parameters ask for.

    Args:
        text: a JSON object, or nothing, as Triton's Python backend gives it; values are texts, numbers or booleans.

    Raises:
        InputError: a parameter that there is not, or a value that cannot be used, with what would be right; all of them at once.
    """
    try:
        given: dict[str, Any] = json.loads(text) if text else {}
    except ValueError as error:  # Triton writes them, and not every number can be written
        raise InputError(f"the request's parameters cannot be read: {error}") from None
    problems = []
    if unknown := [name for name in given if name not in KNOWN and name not in TRITON_S_OWN]:
        names = ", ".join(repr(name[:MAX_SHOWN_CHARS]) for name in unknown[:MAX_SHOWN_IDS])
        problems.append(f"unknown parameter {names}; there are {', '.join(KNOWN)}")
    column_C: NDArray[np.int64] | None = None
    threshold_K = np.array(card.thresholds, dtype=np.float32)
    policy, fill = card.policy, None
    for name, value in given.items():
        try:
            if name == "top_k":
                policy = replace(policy, top_k=_top_k(value))
            elif name == "classes":
                column_C = _columns(value, card)
            elif name == "threshold":
                threshold_K = _thresholds(value, card, threshold_K)
            elif name == "cohort":
                _check_cohort(value, card)
            elif name == "fill":
                fill = _fill(value)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("; ".join(problems))
    threshold_C = threshold_K if column_C is None else threshold_K[column_C]
    return Asked(column_C, threshold_C, policy, given.get("cohort"), fill)


def _top_k(value: Any) -> int:
    number = _from_text(value)
    if type(number) is not int or number < 1:
        raise InputError(f"parameter top_k is {_shown(value)}; expected a whole number of at least 1")
    return number


def _columns(value: Any, card: ModelCard) -> NDArray[np.int64]:
    expected = 'expected class ids as a JSON list, such as ["a", "b"], or with commas between them'
    if not isinstance(value, str):
        raise InputError(f"parameter classes is {_shown(value)}; {expected}")
    ids = _from_text(value) if value.lstrip().startswith("[") else [part.strip() for part in value.split(",")]
    if not isinstance(ids, list) or not ids or not all(isinstance(class_id, str) and class_id for class_id in ids):
        raise InputError(f"parameter classes is {_shown(value)}; {expected}")
    _check_ids(ids, "classes", card)
    if len(set(ids)) < len(ids):
        twice = next(class_id for class_id, count in Counter(ids).items() if count > 1)
        raise InputError(f"parameter classes names {twice!r} more than once")
    return np.array([card.taxonomy.column(class_id) for class_id in ids], dtype=np.int64)


def _thresholds(value: Any, card: ModelCard, threshold_K: NDArray[np.float32]) -> NDArray[np.float32]:
    expected = 'expected a number from 0 to 1 for all classes, or a JSON object such as {"a": 0.5}'
    if card.policy.mode == "argmax":
        raise InputError("parameter threshold is given, but this model decides for the most probable class, whatever its threshold")
    number = _from_text(value)
    given = number if isinstance(number, dict) else dict.fromkeys(card.taxonomy.ids, number)
    if not given or not all(_is_share(item) for item in given.values()):
        wrong = next((f"{item!r} for {key!r}" for key, item in given.items() if not _is_share(item)), "empty")
        shown = wrong[:100] if isinstance(number, dict) else _shown(value)
        raise InputError(f"parameter threshold is {shown}; {expected}")
    _check_ids(list(given), "threshold", card)
    threshold_K = threshold_K.copy()
    for class_id, item in given.items():
        threshold_K[card.taxonomy.column(class_id)] = item
    return threshold_K


def _check_cohort(value: Any, card: ModelCard) -> None:
    check_takes_cohorts(card, value)
    if not isinstance(value, str):
        raise InputError(f"parameter cohort is {_shown(value)}; expected a text")


def _fill(value: Any) -> float:
    number = _from_text(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or not -1e9 <= number < 0:
        raise InputError(f"parameter fill is {_shown(value)}; expected a number below 0, which no probability can be, such as -1")
    return float(number)


def _check_ids(ids: list[str], parameter: str, card: ModelCard) -> None:
    known = set(card.taxonomy.ids)
    if unknown := [class_id[:MAX_SHOWN_CHARS] for class_id in ids if class_id not in known]:
        more = f" and {len(unknown) - MAX_SHOWN_IDS} more" if len(unknown) > MAX_SHOWN_IDS else ""
        # What resembles a name is searched for by comparing it with every class.
        near = card.taxonomy.unknown if len(known) <= MAX_COMPARED else lambda names: ", ".join(map(repr, names))
        raise InputError(f"parameter {parameter} names what is no class of this model: {near(unknown[:MAX_SHOWN_IDS])}{more}")


def _from_text(value: Any) -> Any:
    """Return what a JSON text holds, None where it is none; another value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[: MAX_SHOWN_CHARS - 3]}..."
