"""Pieces of HTML: escaped text, numbers as people read them, plain tables, small reliability plots. Knows nothing of models.

G = bins of a head
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.metric.curves import Reliability

F64 = NDArray[np.float64]

NONE = "–"  # for a figure that is not defined
SHOWN_ROWS = 50  # of a table that is no part of this page's own
SHORT = 6  # plain values that stand on a line
MAX_CHARS = 60  # of a name in a table; all of it stands in its title
FOUR_PLACES = ("ece", "nll", "brier", "loss", "gap", "false_positive_rate")
COUNTS = ("rows", "positives", "num_", "abstained", "count")
WORDS = {
    "ap": "AP", "auc": "AUC", "aurc": "AURC", "brier": "Brier", "ece": "ECE", "f1": "F1", "fnr": "FNR", "fpr": "FPR", "id": "ID",
    "nll": "NLL", "num": "number of", "psp": "PSP", "roc": "ROC",
}  # fmt: skip


def esc(value: Any) -> str:
    """Return any value as text that HTML shows as it is, in elements and in quoted attributes."""
    return html.escape(str(value), quote=True)


def isolated(value: Any, *, most: int = MAX_CHARS) -> str:
    """Return a user's text, shortened, that cannot turn the direction of the text around it; whole in its title."""
    text = str(value)
    if len(text) <= most:
        return f"<bdi>{esc(text)}</bdi>"
    return f'<bdi title="{esc(text)}">{esc(text[: most - 1])}…</bdi>'


def words(name: str) -> str:
    """Return the name of a figure as words: "macro_f1" -> "macro F1"."""
    return " ".join(WORDS.get(part, part) for part in name.replace("-", "_").split("_") if part)


def shown(value: Any, name: str = "") -> str:
    """Return a figure as text; `name` decides the number of places."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return str(value)
    if not isinstance(value, float):
        return str(value)
    if "temperature" in name or abs(value) >= 1000:
        return f"{value:.4g}"
    return f"{value:.4f}" if any(part in name for part in FOUR_PLACES) else f"{value:.3f}"


def with_interval(figures: Mapping[str, Any], name: str) -> str:
    """Return a figure and, where `<name>_low` and `<name>_high` are there, its interval in small."""
    low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
    text = esc(shown(figures.get(name), name))
    if low is None or high is None or text == NONE:
        return text
    return f"{text} <small>{esc(shown(low, name))}–{esc(shown(high, name))}</small>"


def is_bound(name: str, figures: Mapping[str, Any]) -> bool:
    """Return whether a figure is the end of another's interval."""
    stem = name.removesuffix("_low").removesuffix("_high")
    return stem != name and stem in figures


def definitions(values: Mapping[str, Any]) -> str:
    """Return names and values, nested ones in place, as a list of definitions."""
    items = []
    for name, value in values.items():
        if is_bound(str(name), values):
            continue
        if isinstance(value, Mapping):
            content = _nested(value)
        elif isinstance(value, list | tuple) and value and all(isinstance(row, Mapping) for row in value):
            content = records(value)
        elif isinstance(value, list | tuple):
            content = esc(", ".join(shown(entry) for entry in value[:SHOWN_ROWS]) or NONE) + (
                " …" if len(value) > SHOWN_ROWS else ""
            )
        else:
            content = with_interval(values, str(name))
        items.append(f"<dt>{esc(words(str(name)))}</dt><dd>{content}</dd>")
    return f"<dl>{''.join(items)}</dl>"


def _nested(value: Mapping[str, Any]) -> str:
    """Return a dictionary within another: few plain values on a line, equal ones as a table, any other as definitions."""
    entries = list(value.values())
    if not entries:
        return NONE
    if all(isinstance(entry, Mapping) for entry in entries) and len({tuple(entry) for entry in entries}) == 1:
        return records([{"": words(str(name)), **entry} for name, entry in value.items()])
    if len(entries) <= SHORT and not any(isinstance(entry, Mapping | list | tuple) for entry in entries):
        return " · ".join(
            f"{esc(words(str(name)))} <b>{with_interval(value, name)}</b>" for name in value if not is_bound(name, value)
        )
    return definitions(value)


def records(rows: Sequence[Mapping[str, Any]], *, most: int = SHOWN_ROWS) -> str:
    """Return dictionaries as a table, a column for each of their names; of more than `most` rows the first."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if not is_bound(name, rows[0])]
    body = []
    for row in rows[:most]:
        cells = []
        for name in names:
            value = row.get(name)
            if isinstance(value, Mapping):
                cells.append(definitions(value))
            elif isinstance(value, list | tuple):
                cells.append(esc(", ".join(map(str, value))))
            elif isinstance(value, str):
                cells.append(isolated(value))
            else:
                cells.append(with_interval(row, name))
        body.append(cells)
    more = f"<p class=note>and {len(rows) - most} more rows</p>" if len(rows) > most else ""
    return table([words(name) for name in names], body) + more


def table(headers: Iterable[str], rows: Iterable[Iterable[str]], *, label: str = "") -> str:
    """Return a table whose headers are plain text and whose cells are HTML, in a box of its own that scrolls sideways."""
    head = "".join(f"<th scope=col>{esc(header)}</th>" for header in headers)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return scrolling(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>", label=label or "table")


def scrolling(content: str, *, label: str, kind: str = "scroll") -> str:
    """Return content in a box that scrolls and that the keyboard reaches."""
    return f'<div class={kind} role=region tabindex=0 aria-label="{esc(label)}">{content}</div>'


def bins_of(of: Reliability, column: int) -> tuple[F64, F64, F64, F64]:
    """Return mean probability, share of positives and its interval (G,) of a head's bins that hold rows."""
    known_G = of.count_KG[column] > 0
    mean_G, share_G, low_G, high_G = (
        array_KG[column][known_G] for array_KG in (of.mean_prob_KG, of.share_KG, of.low_KG, of.high_KG)
    )
    return mean_G, share_G, low_G, high_G


def sparkline(of: Reliability, column: int) -> str:
    """Return a reliability plot (share of positives over mean probability) of the size of a word, without text.

    Both axes go from 0 to the same limit, the largest mean probability or share; the straight line is perfect calibration.
    """
    mean_G, share_G, low_G, high_G = bins_of(of, column)
    if not len(mean_G):
        return ""
    limit = max(float(max(mean_G.max(), share_G.max())), 1e-6)

    def points(y_G: F64, order: int = 1) -> list[str]:
        x, y = np.rint(100 * mean_G / limit).astype(int), np.rint(100 - 100 * np.clip(y_G / limit, 0, 1)).astype(int)
        return [f"{a} {b}" for a, b in zip(x[::order].tolist(), y[::order].tolist(), strict=True)]

    band = "L".join(points(low_G) + points(high_G, -1))
    return (
        '<svg class=sp viewBox="0 0 100 100" aria-hidden=true><path class=g d="M0 100L100 0"/>'
        f'<path class=b d="M{band}Z"/><path class=l d="M{"L".join(points(share_G))}"/></svg>'
    )
