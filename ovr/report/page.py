"""The page: every section of a report in one HTML file that asks for nothing else. Knows contents, not where they come from.

A browser is told to load nothing and to run no script but the page's own (Content-Security-Policy), whatever a class is called.
"""

import base64
import hashlib
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import numpy as np

from ovr.metric.pairs import MAX_WRONG
from ovr.report import charts
from ovr.report.class_table import class_table, figures_line
from ovr.report.contents import MAX_CONFUSED, ROWS_A_POSITIVE, Contents
from ovr.report.example_rows import row_html
from ovr.report.markup import definitions, esc, is_bound, isolated, shown, table, with_interval, words
from ovr.report.parts import CONFUSED_PAIRS, part_html, title

TILES = (
    "accuracy", "macro_f1", "macro_average_precision", "precision_at_1", "precision_at_3", "precision_at_5", "ps_precision_at_1",
    "ece_before", "ece_after", "top_label_ece_before", "top_label_ece_after", "nll_before", "nll_after", "brier_before",
    "brier_after", "num_rows", "abstained", "num_small_classes",
)  # fmt: skip
MAX_FILES = 3  # that are named below the title
REMARKS = {
    "cannot_be_promised": " (the promise asked for is not kept up: too few rows, or rows that cannot bear it)",
    "no_positive": " (the rule's fallback stands)",
}
SEVERAL = " A row on which several other classes are wrong counts for each of them."
LEAST_SCATTERED = 12  # classes; of fewer the table tells as much
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
NO_CHARTS = "Charts are drawn by matplotlib, which was not installed: pip install 'ovr[report]'."


def page(contents: Contents, *, title: str) -> str:
    """Return the whole HTML file."""
    source = files("ovr.report")
    style, script = (source.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"{POLICY}; script-src 'sha256-{digest}'"
    sections = [(name, head, body) for name, head, body in _sections(contents) if body]
    links = "".join(f'<a href="#{name}">{esc(head)}</a>' for name, head, _ in sections)
    body = "".join(
        f"<section id={name} aria-labelledby={name}-h><h2 id={name}-h>{esc(head)}</h2>{text}</section>"
        for name, head, text in sections
    )
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv="Content-Security-Policy" content="{esc(policy)}">'
        '<meta name=viewport content="width=device-width, initial-scale=1"><meta name=color-scheme content="light dark">'
        f"<title>{esc(title)}</title><style>{style}</style></head><body>"
        f'<a class=skip href="#main">Skip to the report</a><header><h1>{esc(title)}</h1><p>{_subtitle(contents)}</p>'
        f'<nav aria-label="Sections">{links}</nav></header><main id=main tabindex=-1>{body}</main>'
        f"<script>{script}</script></body></html>"
    )


def _subtitle(contents: Contents) -> str:
    num_rows = contents.num_rows if contents.num_rows is not None else contents.summary.get("num_rows")
    parts = [f"{len(contents.taxonomy)} classes"]
    parts += [f"{num_rows} rows{_which(contents)}"] if num_rows is not None else []
    parts += [f"decides by {contents.policy.mode}"] if contents.policy is not None else []
    parts += [f"measured {esc(contents.measured['at'])}"] if contents.measured.get("at") else []
    parts += [f"bundle made {esc(contents.provenance['created_at'])}"] if contents.provenance.get("created_at") else []
    return " · ".join(parts)


def _which(contents: Contents) -> str:
    """Return which rows were measured: a split, or all, and of which files."""
    which, names = contents.measured.get("rows"), [str(file["name"]) for file in contents.measured.get("files", ())]
    if which is None:
        return ""
    files = ", ".join(map(isolated, names[:MAX_FILES])) + (" …" if len(names) > MAX_FILES else "")
    split = "all" if which == "all" else f"{esc(which)} split"
    return f" ({split} of {files})" if files else f" ({split})"


def _sections(contents: Contents) -> list[tuple[str, str, str]]:
    drawn = charts.is_available()
    return [
        ("summary", "Summary", _summary(contents) + ("" if drawn else f"<p class=note>{esc(NO_CHARTS)}</p>")),
        ("classes", "Classes", class_table(contents)),
        ("overview", "All classes at once", _overview(contents) if drawn else ""),
        ("heads", _heads_title(contents), _heads(contents) if drawn else ""),
        ("confusion", "Confusion", _confusion(contents, drawn=drawn)),
        ("examples", "Worst examples", _examples(contents)),
        *(
            (f"part-{number}", title(name), part_html(name, value))
            for number, (name, value) in enumerate(contents.parts.items())
            if name != CONFUSED_PAIRS
        ),
        ("data", "Data card", definitions(_without_classes(contents.data_card)) if contents.data_card else ""),
        ("provenance", "Provenance", _provenance(contents)),
    ]


def _summary(contents: Contents) -> str:
    figures = {name: value for name, value in contents.summary.items() if value is not None}
    tiles = [f"<div><dt>{esc(words(name))}</dt><dd>{with_interval(figures, name)}</dd></div>" for name in TILES if name in figures]
    others = {
        name: value
        for name, value in figures.items()
        if name not in TILES and not (is_bound(name, figures) and name.rpartition("_")[0] in TILES)
    }
    more = f"<details><summary>More figures</summary>{definitions(others)}</details>" if others else ""
    return f"<dl class=tiles>{''.join(tiles)}</dl>{_remarks(contents)}{more}"


def _remarks(contents: Contents) -> str:
    """Return what should be known before the figures are believed."""
    items = []
    for remark in contents.remarks():
        status = f"<b>{esc(remark['status'] or 'not known')}</b>"
        if remark["about"] == "abstention_status":
            items.append(
                f"Rows whose highest probability is below {esc(shown(remark['abstain_below'], 'abstain_below'))} get no class; "
                f"status of this limit: {status}"
            )
            continue
        ids, num = remark["class_ids"], remark["num_classes"]
        named = ", ".join(map(isolated, ids)) + (" …" if num > len(ids) else "")
        if remark["about"] == "positives":
            text = f"{num} classes have no positive row here, so most of their figures are not defined"
        else:
            text = f"{words(remark['about']).capitalize()} {status} of {num} classes{REMARKS.get(remark['status'], '')}"
        items.append(f"{text}: {named}")
    return f"<ul class=remarks>{''.join(f'<li>{item}</li>' for item in items)}</ul>" if items else ""


def _overview(contents: Contents) -> str:
    figures = []
    if contents.top_label is not None:
        drawn = charts.reliability(contents.top_label, 0, label="reliability of the top class")
        figures.append(_figure(drawn, "Reliability of each row's most probable class, with 95\u00a0% bands"))
    if contents.risk_coverage is not None and len(contents.risk_coverage[0]):
        drawn = charts.risk_coverage(*contents.risk_coverage[:2], label="risk over coverage")
        at = ", ".join(f"{risk:.1%} of the surest {coverage:.0%}" for coverage, risk in contents.risk_at.items())
        told = f"Risk and coverage: errors of the most probable class if the surest rows alone are answered ({at})"
        figures.append(_figure(drawn, told))
    for name in ("average_precision", "f1"):
        pairs = [(row["positives"], row[name]) for row in contents.classes if row.get("positives") and row.get(name) is not None]
        if len(pairs) > LEAST_SCATTERED:
            positives_K, value_K = np.array(pairs, np.float64).T
            drawn = charts.by_positives(positives_K, value_K, name=words(name), label=f"{words(name)} over positives")
            figures.append(_figure(drawn, f"{words(name).capitalize()} of every class, by its number of positive rows"))
            break
    return f"<div class=charts>{''.join(figures)}</div>" if figures else ""


def _heads_title(contents: Contents) -> str:
    num = len(contents.detailed)
    return "Every head" if num == len(contents.taxonomy) else f"The {num} heads to look at first"


def _heads(contents: Contents) -> str:
    if contents.upper is None:
        return ""
    figures = {row["class_id"]: row for row in contents.classes}
    cards = []
    for k in contents.detailed:
        spec, row = contents.taxonomy[k], figures.get(contents.taxonomy[k].id, {})
        charted = "".join(_head_charts(contents, k, row.get("threshold")))
        charted = charted or "<p class=note>No row is known to have or not to have this class.</p>"
        about = f"<h3>{isolated(spec.name)}</h3><p class=note>{figures_line(row)}</p>"
        cards.append(f"<article>{about}<div class=charts>{charted}</div></article>")
    how = ""
    if len(contents.detailed) < len(contents.taxonomy):
        how = "<p class=note>Those with the lowest average precision, then those with the largest calibration error.</p>"
    dashed = (
        "Dashed: perfect calibration, and the precision of guessing. Bands are 95\u00a0% intervals (Wilson) of bins of equal mass "
        f"among the rows that are most probable of the class, {ROWS_A_POSITIVE} for each that has it."
    )
    return f"{how}<p class=note>{dashed}</p>{''.join(cards)}" if cards else ""


def _head_charts(contents: Contents, k: int, chosen: float | None) -> Iterator[str]:
    class_id, curve = contents.taxonomy[k].id, contents.curves.get(k)
    if contents.upper is not None and (contents.upper.count_KG[k] > 0).any():
        yield _figure(charts.reliability(contents.upper, k, label=f"reliability of {class_id}"), "Reliability")
    if curve is not None and contents.share_K is not None and len(curve.recall_P) and np.isfinite(curve.recall_P).all():
        label = f"precision and recall of {class_id}"
        svg = charts.precision_recall(curve.precision_P, curve.recall_P, share=float(contents.share_K[k]), label=label)
        yield _figure(svg, "Precision and recall")
        points = (curve.threshold_P, curve.precision_P, curve.recall_P)
        caption = "By threshold" + ("" if chosen is None else f"; chosen: {chosen:.3f}")
        yield _figure(charts.thresholds(*points, chosen=chosen, label=f"thresholds of {class_id}"), caption)


def _confusion(contents: Contents, *, drawn: bool) -> str:
    if contents.confused is None:
        return ""
    column_H, count_HH = contents.confused.part(MAX_CONFUSED)
    parts = []
    if drawn and len(column_H) > 1:
        names = [contents.taxonomy[k].name for k in column_H.tolist()]
        svg = charts.heat_map(
            count_HH, contents.confused.num_given_K[column_H], names=names, label="rows of each class by what was decided on"
        )
        which = "" if len(column_H) == len(contents.taxonomy) else f" The {len(column_H)} classes that are confused most."
        how = "Rows: the class a row has. Columns: what was decided on. Depth: share of the class's rows, as its square root."
        several = "" if (count_HH.sum(axis=1) <= contents.confused.num_given_K[column_H]).all() else SEVERAL
        parts.append(_figure(svg, how + several + which))
    if pairs := contents.pairs():
        headers = ["class of the row", "decided on instead", "rows", "share of the class"]
        rows = [
            [isolated(pair["given"]), isolated(pair["decided"]), str(pair["rows"]), shown(pair["share_of_given"])] for pair in pairs
        ]
        parts.append(table(headers, rows, label="most confused pairs"))
    else:
        parts.append("<p class=note>No class was decided on in place of another.</p>")
    if contents.confused.num_left_out:
        num = contents.confused.num_left_out
        parts.append(f"<p class=note>{num} rows on which more than {MAX_WRONG} classes are wrong are left out.</p>")
    return f'<div class="charts wide">{"".join(parts)}</div>'


def _examples(contents: Contents) -> str:
    if contents.num_rows is None:
        return ""
    if not contents.examples:
        return "<p class=note>No row has a known label to which the model gave less than one half.</p>"
    has_source, has_rows = contents.row_number_N is not None, contents.rows is not None
    headers = ["row", *(["row of the source"] if has_source else []), *(["what it is"] if has_rows else [])]
    headers += ["has", "decided", "most probable", "probability of what is true"]
    lines = []
    for example in contents.examples:
        value: dict[str, Any] = contents.example(example)
        line = [str(value["row"]), *([str(value["source_row"])] if has_source else [])]
        line += [row_html(contents.rows(example.row))] if contents.rows is not None else []
        top = "<br>".join(f"{isolated(entry['class'])} {entry['prob']:.3f}" for entry in value["top"])
        line += [_named(value["given"]), _named(value["decided"]), top]
        lines.append([*line, f"{isolated(value['worst_class'])} {value['prob_of_truth']:.2g}"])
    about = "<p class=note>Rows with the least probability of something that is known of them; rows are counted from 0.</p>"
    return about + table(headers, lines, label="worst examples")


def _named(ids: list[str]) -> str:
    return ", ".join(isolated(class_id) for class_id in ids[:5]) + (" …" if len(ids) > 5 else "") if ids else "none"


def _without_classes(card: Any) -> dict[str, Any]:
    return {name: value for name, value in card.items() if name not in ("classes", "schema_version")}


def _provenance(contents: Contents) -> str:
    if not contents.provenance:
        return ""
    folded = []
    plain = {}
    for name, value in contents.provenance.items():
        if isinstance(value, dict) and value:
            folded.append(f"<details><summary>{esc(words(name).capitalize())}</summary>{definitions(value)}</details>")
        else:
            plain[name] = value
    return definitions(plain) + "".join(folded)


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{esc(caption)}</figcaption></figure>"
