"""An explanation as one HTML file and as plain values. Knows no model.

K = heads, H = height, W = width
"""

import base64
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.explain.explain import Explanation
from ovr.report.contents import plain
from ovr.report.example_rows import picture, png_bytes
from ovr.report.markup import esc, isolated, scrolling, shown, table
from ovr.report.page import POLICY

SCHEMA_VERSION = 1
MOST_BARS = 40  # columns that are shown; all are in the JSON file
SIDE = 240  # pixels of an image on the page
FOR, AGAINST = (11, 99, 197), (184, 71, 12)  # colours of what raises and what lowers a logit, over an image
STYLE = """
.bar{display:block;height:.8rem;min-width:12rem;position:relative}
.bar{background:linear-gradient(var(--grid),var(--grid)) 50% 0/1px 100% no-repeat}
.bar i{position:absolute;top:0;bottom:0;background:var(--first)}.bar i.no{background:var(--second)}
.text{margin:0;padding:.4rem .9rem;font-size:1.05rem;line-height:2;white-space:pre-wrap}
.text mark{background:color-mix(in srgb,var(--first) var(--a),transparent);color:inherit;border-radius:3px;padding:.1em 0}
.text mark.no{background:color-mix(in srgb,var(--second) var(--a),transparent)}
.layers{position:relative;display:inline-block}.layers img+img{position:absolute;left:0;top:0}
.layers img:first-child{opacity:.4;filter:grayscale(1)}.scroll+.scroll{margin-top:.8rem}
.layers img,.pair>img{image-rendering:pixelated;display:block}.pair{display:flex;gap:1rem;flex-wrap:wrap}
"""


def to_json(
    explanation: Explanation, class_ids: Sequence[str], *, prob_K: Sequence[float | None], source: dict[str, Any]
) -> dict[str, Any]:
    """Return what docs/explain.md describes. `source` says of which row and bundle it is."""
    value: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        **source,
        "kind": explanation.kind,
        "method": explanation.method,
        "baseline": explanation.baseline,
        "classes": [
            {
                "class_id": class_id,
                "prob": prob_K[k],
                "logit": float(explanation.logit_K[k]),
                "logit_of_baseline": float(explanation.baseline_logit_K[k]),
                "completeness_delta": None if explanation.missed_K is None else float(explanation.missed_K[k]),
                "attribution": [plain(row) for row in explanation.value[k]]
                if explanation.kind == "image"
                else plain(explanation.value[k]),
            }
            for k, class_id in enumerate(class_ids)
        ],
    }
    if explanation.kind == "columns":
        value["parts"] = [{"name": name, "value": cell} for name, cell in zip(explanation.names, explanation.cells, strict=True)]
    if explanation.kind == "words":
        value["text"] = explanation.text
        value["parts"] = [{"text": explanation.text[start:end], "start": start, "end": end} for start, end in explanation.spans]
        if explanation.rest_K is not None:
            for row, rest in zip(value["classes"], explanation.rest_K.tolist(), strict=True):
                row["attribution_of_the_rest"] = rest
    return value


def page(explanation: Explanation, class_ids: Sequence[str], *, prob_K: Sequence[float | None], title: str) -> str:
    """Return the HTML file: a section a class."""
    style = files("ovr.report").joinpath("page.css").read_text(encoding="utf-8") + STYLE
    sections = "".join(_section(explanation, k, class_id, prob_K[k]) for k, class_id in enumerate(class_ids))
    how = {"integrated_gradients": "Integrated gradients", "occlusion": "Occlusion"}[explanation.method]
    about = f"{how}, in comparison with {explanation.baseline}. Blue raises the head's logit, orange lowers it."
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv="Content-Security-Policy" content="{esc(POLICY)}">'
        '<meta name=viewport content="width=device-width, initial-scale=1"><meta name=color-scheme content="light dark">'
        f"<title>{esc(title)}</title><style>{style}</style></head><body>"
        f"<header><h1>{esc(title)}</h1><p>{esc(about)}</p></header><main>{sections}</main></body></html>"
    )


def _section(explanation: Explanation, k: int, class_id: str, prob: float | None) -> str:
    head = f"<h2>{isolated(class_id)}</h2><p class=note>{_line(explanation, k, prob)}</p>"
    return f"<section>{head}{_drawn(explanation, k)}</section>"


def _line(explanation: Explanation, k: int, prob: float | None) -> str:
    parts = [] if prob is None else [f"probability <b>{prob:.4f}</b>"]
    parts.append(f"logit <b>{explanation.logit_K[k]:.3f}</b> (before calibration), {explanation.baseline_logit_K[k]:.3f} without")
    if explanation.missed_K is not None:
        parts.append(f"the parts sum to the difference within {abs(explanation.missed_K[k]):.1e}")
    return " · ".join(parts)


def _drawn(explanation: Explanation, k: int) -> str:
    if explanation.kind == "columns":
        return _bars(explanation, k)
    if explanation.kind == "words":
        return _marked(explanation, k)
    return _heat(explanation, k)


def _bars(explanation: Explanation, k: int) -> str:
    value_G = explanation.value[k]
    largest = max(float(np.abs(value_G).max(initial=0)), 1e-12)
    order = np.argsort(-np.abs(value_G), kind="stable")
    rows = []
    for g in order[:MOST_BARS].tolist():
        share = 50 * abs(value_G[g]) / largest
        side = f"left:50%;width:{share:.1f}%" if value_G[g] >= 0 else f"right:50%;width:{share:.1f}%"
        bar = f'<span class=bar><i{"" if value_G[g] >= 0 else " class=no"} style="{side}"></i></span>'
        rows.append([isolated(explanation.names[g]), isolated(shown(explanation.cells[g])), f"{value_G[g]:+.4f}", bar])
    more = f"<p class=note>and {len(order) - MOST_BARS} more, in the JSON file</p>" if len(order) > MOST_BARS else ""
    return table(["column", "value", "adds to the logit", ""], rows, label="columns") + more


def _marked(explanation: Explanation, k: int) -> str:
    value_F = explanation.value[k]
    largest = max(float(np.abs(value_F).max(initial=0)), 1e-12)
    pieces, at = [], 0
    for (start, end), value in zip(explanation.spans, value_F.tolist(), strict=True):
        start = max(start, at)
        if end <= start:  # tokens of one character's bytes lie on one another
            continue
        strength = f"--a:{round(55 * abs(value) / largest)}%"
        kind = "" if value >= 0 else " class=no"
        pieces.append(esc(explanation.text[at:start]))
        pieces.append(f'<mark{kind} style="{strength}" title="{value:+.4f}">{esc(explanation.text[start:end])}</mark>')
        at = end
    pieces.append(esc(explanation.text[at:]))
    order = np.argsort(-np.abs(value_F), kind="stable")[:10].tolist()
    rows = [[isolated(explanation.text[slice(*explanation.spans[f])]), f"{value_F[f]:+.4f}"] for f in order]
    if explanation.rest_K is not None and abs(explanation.rest_K[k]) > 1e-9:
        rows.append(["what belongs to no word", f"{explanation.rest_K[k]:+.4f}"])
    body = f"<p class=text>{''.join(pieces)}</p>"
    return scrolling(body, label="text") + table(["word", "adds to the logit"], rows, label="words")


def _heat(explanation: Explanation, k: int) -> str:
    assert explanation.pixels is not None
    size = _size(explanation.pixels.shape[-2], explanation.pixels.shape[-1])
    base = picture(explanation.pixels, name="the row", most=SIDE, size=size)
    overlay = base64.b64encode(png_bytes(overlay_of(explanation.value[k]))).decode()
    heat = f'<img width={size[1]} height={size[0]} alt="what each pixel adds" src="data:image/png;base64,{overlay}">'
    return f"<div class=pair>{base}<span class=layers>{base}{heat}</span></div>"


def overlay_of(value_HW: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return pixels (H, W, 4): the colour says which way, the opacity how much, as a share of the largest."""
    largest = max(float(np.abs(value_HW).max(initial=0)), 1e-12)
    colour = np.where(value_HW[..., None] >= 0, np.array(FOR), np.array(AGAINST))
    opacity = np.rint(230 * np.abs(value_HW) / largest)
    return np.concatenate([colour, opacity[..., None]], axis=2).astype(np.uint8)


def _size(height: int, width: int) -> tuple[int, int]:
    factor = SIDE / max(height, width)
    return round(height * factor), round(width * factor)
