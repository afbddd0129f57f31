"""The table of classes, with reliability plots of the size of a word; the page's script sorts and filters it. Knows no files."""

from collections.abc import Mapping, Sequence
from typing import Any

from ovr.report.contents import Contents
from ovr.report.markup import NONE, esc, isolated, scrolling, shown, sparkline, with_interval, words

# Those that are there are shown, in this order; all others are in the CSV file and report.json.
COLUMNS = (
    "positives", "f1", "precision", "recall", "false_positive_rate", "false_negative_rate",
    "average_precision", "roc_auc", "ece_before", "ece_after", "nll_after", "brier_after",
    "threshold", "temperature",
)  # fmt: skip
STATUSES = ("calibration_kind", "calibration_status", "threshold_status")
FIRST_SORTED = "average_precision"
PLOT_HEADER = '<th scope=col title="share of positives over mean probability, with its band">reliability</th>'
TITLES = {"false_positive_rate": "FPR", "false_negative_rate": "FNR"}
MAX_ROWS = 2000  # of classes in the page
FIRST_ROWS = 100  # that are printed, and shown before all are asked for
HINTS = {
    "positives": "rows measured that have the class",
    "false_positive_rate": "share of the other rows that the class was decided on",
    "false_negative_rate": "share of the class's rows that it was not decided on",
    "average_precision": "area under the precision-recall curve",
    "ece_before": "expected calibration error (equal mass) without calibration",
    "ece_after": "expected calibration error (equal mass) of the calibrated probabilities",
    "nll_after": "negative log-likelihood of the calibrated probabilities, nats",
    "brier_after": "mean squared error of the calibrated probabilities",
    "temperature": "the head's logits are divided by it",
}


def class_table(contents: Contents) -> str:
    """Return filter box and table; of more than `MAX_ROWS` classes those with the lowest average precision."""
    rows = worst_first(contents.classes)
    if not rows:
        return "<p class=note>The report has no figures of single classes.</p>"
    some = rows[:MAX_ROWS]
    names = [name for name in COLUMNS if any(row.get(name) is not None for row in some)]
    statuses = [name for name in STATUSES if any(row.get(name) for row in some)]
    has_plot = contents.upper is not None
    headers = [_header("class", text=True, pressed=FIRST_SORTED not in names)]
    headers += [PLOT_HEADER] if has_plot else []
    headers += [_header(TITLES.get(name, words(name)), hint=HINTS.get(name, ""), pressed=name == FIRST_SORTED) for name in names]
    headers += [_header(words(name), text=True) for name in statuses]
    body = []
    for number, row in enumerate(some):
        cells = [_class_cell(row)]
        if contents.upper is not None:
            column = contents.taxonomy.column(row["class_id"])
            cells.append(f"<td>{sparkline(contents.upper, column)}")
        cells += [f"<td>{with_interval(row, name)}" for name in names]
        cells += [f"<td class=text>{esc(row.get(name) or NONE)}" for name in statuses]
        body.append(f"<tr{' class=more' if number >= FIRST_ROWS else ''}>{''.join(cells)}")
    table = f"<table class=classes><thead><tr>{''.join(headers)}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return _tools(len(some), contents) + scrolling(table, label="table of classes", kind="tall")


def worst_first(classes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the classes by rising average precision; those without one last, all else as it was."""
    return sorted(classes, key=lambda row: (row.get(FIRST_SORTED) is None, row.get(FIRST_SORTED) or 0.0))


def _tools(num_shown: int, contents: Contents) -> str:
    num_classes, in_file = len(contents.taxonomy), "all are in <code>tables/classes.csv</code>"
    if len(contents.classes) < num_classes:
        in_file = "those of the lowest average precision"
    left_out = f" of {num_classes}; {in_file}" if num_shown < num_classes else ""
    button = f"<button type=button id=all aria-pressed=false>Show all {num_shown}</button>" if num_shown > FIRST_ROWS else ""
    return (
        "<div class=tools><label for=filter>Filter</label>"
        '<input id=filter type=search autocomplete=off placeholder="part of a class id">'
        f"{button}<output id=shown for=filter>{min(num_shown, FIRST_ROWS)} of {num_shown} classes{left_out}</output></div>"
        f'<p class="note paper">{min(num_shown, FIRST_ROWS)} of {num_classes} classes are printed; {in_file}.</p>'
    )


def _header(title: str, *, hint: str = "", pressed: bool = False, text: bool = False) -> str:
    sort = ' aria-sort="ascending"' if pressed else ' aria-sort="none"'
    about = f' title="{esc(hint)}"' if hint else ""
    classes = " class=text" if text else ""
    # Browsers print no button in the head of a table's further pages: there the style shows the label.
    return f'<th scope=col{classes}{sort}{about} data-label="{esc(title)}"><button type=button>{esc(title)}</button></th>'


def _class_cell(row: Mapping[str, Any]) -> str:
    class_id, name = str(row["class_id"]), str(row.get("name") or row["class_id"])
    small = ' <span class=tag title="too few rows for its figures to say much">small</span>' if row.get("small") else ""
    extra = f" <small>{isolated(class_id)}</small>" if name != class_id else ""
    return f"<th scope=row class=text>{isolated(name)}{extra}{small}"


def figures_line(row: Mapping[str, Any]) -> str:
    """Return what is said of a class beside its charts."""
    names = ("positives", "f1", "average_precision", "ece_after", "threshold")
    parts = [f"{esc(words(name))} <b>{esc(shown(row.get(name), name))}</b>" for name in names if row.get(name) is not None]
    return " · ".join(parts)
