"""The names that a misspelt one may have meant. Knows nothing of what they name."""

from collections.abc import Iterable
from difflib import get_close_matches

MAX_SHOWN = 3


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return "nearest: a, b" for what resembles `name`, best first, or "" when nothing does.

    A dotted name is also compared by its last part, so that `max_epochs` finds `trainer.max_epochs`.
    """
    names = list(dict.fromkeys(candidates))
    leaf = name.rpartition(".")[2]
    by_leaf: dict[str, list[str]] = {}
    for candidate in names:
        by_leaf.setdefault(candidate.rpartition(".")[2], []).append(candidate)
    found = get_close_matches(name, names, MAX_SHOWN, cutoff=0.75) + by_leaf.get(leaf, [])
    for close_leaf in get_close_matches(leaf, list(by_leaf), MAX_SHOWN, cutoff=0.75):
        found += by_leaf[close_leaf]
    found += get_close_matches(name, names, MAX_SHOWN, cutoff=0.5)
    shown = list(dict.fromkeys(found))[:MAX_SHOWN]
    return f"nearest: {', '.join(shown)}" if shown else ""
