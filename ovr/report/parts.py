"""Parts of a report beyond its summary and classes: confused pairs, cohorts, and whatever else it holds. Knows dictionaries alone.

What they mean is told by docs/metrics.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ovr.report.markup import definitions, esc, isolated, records, words

CONFUSED_PAIRS, COHORTS = "confused_pairs", "cohorts"
MOST_GAPS = 12  # classes of a cohort column whose figures are shown, those of the largest gap
GAP = "_difference"


def is_table(value: Any) -> bool:
    """Return whether a part is dictionaries, one a row."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(row, Mapping) for row in value)


def part_html(name: str, value: Any) -> str:
    """Return a part as HTML; nothing of one that is empty."""
    if not value:
        return ""
    if name == COHORTS and isinstance(value, Mapping):
        return "".join(_cohort_column(column, part) for column, part in value.items())
    if isinstance(value, Mapping):
        return definitions(value)
    return records(value) if is_table(value) else definitions({"value": value})


def _cohort_column(column: str, part: Mapping[str, Any]) -> str:
    largest = sorted(part["gaps"], key=_largest_gap, reverse=True)[:MOST_GAPS]
    ids = [row["class_id"] for row in largest]
    cohorts = [
        {"class_id": class_id, "cohort": cohort["cohort"], **{name: value for name, value in row.items() if name != "class_id"}}
        for class_id in ids
        for cohort in part["cohorts"]
        for row in cohort["classes"]
        if row["class_id"] == class_id
    ]
    some = f" The {len(ids)} classes with the largest gap." if len(part["gaps"]) > len(ids) else ""
    left_out = f" {part['num_left_out']} cohorts are left out." if part.get("num_left_out") else ""
    about = f"<p class=note>{esc(f'Gaps between the cohorts of a column, class by class.{some}{left_out}')}</p>"
    body = records([_plain_names(row) for row in largest]) + records([_plain_names(row) for row in cohorts], most=len(cohorts))
    return f"<h3>{isolated(column)}</h3>{about}{body}"


def _plain_names(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"class" if name == "class_id" else name: value for name, value in row.items()}


def _largest_gap(row: Mapping[str, Any]) -> float:
    return max((value for name, value in row.items() if name.endswith(GAP) and value is not None), default=-1.0)


def pairs_of(value: Any) -> Sequence[Mapping[str, Any]] | None:
    """Return the pairs of a class and one that was decided on in its place, if the part `confused_pairs` tells of them."""
    if not isinstance(value, Mapping) or not isinstance(value.get("instead"), list):
        return None
    pairs: list[Mapping[str, Any]] = value["instead"]
    return pairs


def title(name: str) -> str:
    """Return the heading of a part."""
    text = words(name)
    return text[:1].upper() + text[1:]
