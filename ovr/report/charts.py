"""Charts as inline SVG, by matplotlib, in the colours of the page they are put into. Knows arrays, not models.

matplotlib is imported when the first chart is drawn. Colours are drawn as marks that become the page's CSS variables, so that dark,
light and print are the page's matter; a user's text is drawn as a mark too, since it may hold what no font has.

P = points of a curve, G = bins, H = classes shown
"""

import importlib.util
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.files import sha256_bytes
from ovr.metric.curves import Reliability
from ovr.report.markup import bins_of, esc

F64 = NDArray[np.float64]

INK, MUTED, GRID, FIRST, SECOND, THIRD = (f"#0{n}0{n}0{n}" for n in range(1, 7))
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", FIRST: "first", SECOND: "second", THIRD: "third"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # texts stay text: smaller, and found by the browser's search
    "svg.hashsalt": "ovr",  # the same chart has the same bytes
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.6,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "path.simplify": True,
}
MAX_LABEL = 22  # characters of a class beside the heat map
_ID = re.compile(r' id="([^"]*)"')
_REFERRED = re.compile(r"[mph][0-9a-f]{10}|C\d.*")  # markers, clip paths, hatches, paths: other groups are named for people only
_TAG, _DECIMALS = re.compile(r"<[^>]*>"), re.compile(r"(\d\.\d\d)\d+")
_MARK = re.compile(r"~c(\d+)~")


def is_available() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def reliability(of: Reliability, column: int, *, label: str) -> str:
    """Return a head's shares of positives over mean probabilities with their band; both axes go to the same limit."""
    mean_G, share_G, low_G, high_G = bins_of(of, column)
    limit = min(1.0, 1.05 * max(float(mean_G.max(initial=0)), float(share_G.max(initial=0)), 1e-6))
    with _figure(label, 3.1, 2.7) as (figure, done):
        axes = figure.add_subplot()
        axes.plot([0, limit], [0, limit], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.fill_between(mean_G, low_G, high_G, color=FIRST, alpha=0.2, linewidth=0)
        axes.plot(mean_G, share_G, color=FIRST, marker="o", markersize=3)
        axes.set(xlim=(0, limit), ylim=(0, limit), xlabel="mean probability of a bin", ylabel="share of positives")
    return done()


def precision_recall(precision_P: F64, recall_P: F64, *, share: float, label: str) -> str:
    """Return precision over recall, and the share of positives, which guessing reaches."""
    with _figure(label, 3.1, 2.7) as (figure, done):
        axes = figure.add_subplot()
        axes.axhline(share, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.plot(recall_P, precision_P, color=FIRST, drawstyle="steps-pre")
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    return done()


def thresholds(threshold_P: F64, precision_P: F64, recall_P: F64, *, chosen: float | None, label: str) -> str:
    """Return precision, recall and F1 over the threshold, and the one that was chosen."""
    with np.errstate(invalid="ignore", divide="ignore"):
        f1_P = np.where(precision_P + recall_P > 0, 2 * precision_P * recall_P / (precision_P + recall_P), 0.0)
    with _figure(label, 3.1, 2.7) as (figure, done):
        axes = figure.add_subplot()
        for value_P, name, color, line in (
            (precision_P, "precision", FIRST, "-"), (recall_P, "recall", SECOND, (0, (5, 2))), (f1_P, "F1", THIRD, (0, (1, 1)))
        ):  # fmt: skip
            axes.plot(threshold_P, value_P, color=color, label=name, linestyle=line, drawstyle="steps-post")
        if chosen is not None:
            axes.axvline(chosen, color=INK, linewidth=1)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="threshold")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, borderaxespad=0, handlelength=1.6, columnspacing=1.2)
    return done()


def risk_coverage(coverage_P: F64, risk_P: F64, *, label: str) -> str:
    """Return the share of errors among the rows answered, over their share."""
    with _figure(label, 4.2, 2.9) as (figure, done):
        axes = figure.add_subplot()
        axes.plot(coverage_P, risk_P, color=FIRST)
        axes.fill_between(coverage_P, 0, risk_P, color=FIRST, alpha=0.12, linewidth=0)
        top = max(float(risk_P.max(initial=0)) * 1.1, 0.01)
        axes.set(xlim=(0, 1), ylim=(0, top), xlabel="coverage: rows answered", ylabel="risk: errors")
    return done()


def by_positives(positives_K: F64, value_K: F64, *, name: str, label: str) -> str:
    """Return a figure of every class over its number of positive rows."""
    with _figure(label, 4.2, 2.9) as (figure, done):
        axes = figure.add_subplot()
        size = 18 if len(value_K) <= 200 else 7
        axes.scatter(positives_K, value_K, s=size, color=FIRST, alpha=0.55, linewidths=0)
        axes.set(xscale="log", ylim=(0, 1.02), xlabel="positive rows of the class", ylabel=name)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    return done()


def heat_map(count_HH: NDArray[np.int64], num_given_H: NDArray[np.int64], *, names: Sequence[str], label: str) -> str:
    """Return rows of a given class by what was decided on (H, H + 2), the last two any other class and none, as shares of the
    class's rows (H,)."""
    num = len(names)
    share_HH = np.minimum(count_HH / np.maximum(1, num_given_H)[:, None], 1.0)  # several others may be wrong on one row
    # Inches: of the cells, and of the names before and above them.
    cells, names_side = 0.27 * np.array([num + 2, num]), 0.35 + 0.068 * min(MAX_LABEL, max([5, *map(len, names)]))
    width, height = cells + names_side + 0.1
    with _figure(label, width, height) as (figure, done):
        axes = figure.add_axes((names_side / width, 0.1 / height, cells[0] / width, cells[1] / height))
        from matplotlib.patches import Rectangle

        for given, taken in zip(*(at.tolist() for at in np.nonzero(count_HH)), strict=True):
            color = THIRD if given == taken else SECOND
            share = float(share_HH[given, taken])
            axes.add_patch(Rectangle((taken, given), 1, 1, facecolor=color, alpha=float(np.sqrt(share)) * 0.75 + 0.08, linewidth=0))
            if num <= 15:
                axes.text(taken + 0.5, given + 0.5, str(count_HH[given, taken]), ha="center", va="center", fontsize=8)
        ticks = [*(f"~c{place}~" for place in range(num)), "other", "none"]
        axes.set(xlim=(0, num + 2), ylim=(num, 0))
        axes.set_xticks(np.arange(num + 2) + 0.5, ticks, rotation=90, rotation_mode="anchor", ha="left", va="center", fontsize=8)
        axes.set_yticks(np.arange(num) + 0.5, ticks[:num], fontsize=8, va="center")
        axes.tick_params(axis="both", colors=INK, pad=4)
        axes.xaxis.tick_top()
        axes.grid(False)
    return done([name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}…" for name in names])


@contextmanager
def _figure(label: str, width: float, height: float) -> Iterator[tuple[Any, Callable[..., str]]]:
    """Yield a figure of a size in inches, and what returns it as SVG once the block has drawn it."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    text = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        figure.subplots_adjust(left=0.62 / width, right=1 - 0.1 / width, bottom=0.48 / height, top=1 - 0.25 / height)
        figure.patch.set_visible(False)
        yield figure, lambda names=(): _inlined(text.getvalue(), label, names)
        for axes in figure.axes:
            axes.patch.set_visible(False)
            for axis in (axes.xaxis, axes.yaxis):
                if axis.get_scale() == "linear" and isinstance(axis.get_major_formatter(), ScalarFormatter):
                    axis.set_major_formatter("{x:g}")
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(text, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})


def _inlined(svg: str, label: str, names: Sequence[str]) -> str:
    """Return the SVG as part of a page: with variables for colours, names of its own and nothing that is only for files."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]*)"', svg)
    assert box is not None
    width = float(box[1].split()[2])
    body = svg[svg.index(">") + 1 :].replace("xlink:href", "href")
    prefix = f"s{sha256_bytes(svg.encode())[:8]}-"
    body = _ID.sub(lambda found: f' id="{prefix}{found[1]}"' if _REFERRED.fullmatch(found[1]) else "", body)
    body = body.replace('href="#', f'href="#{prefix}').replace("url(#", f"url(#{prefix}")
    for mark, variable in VARIABLES.items():
        body = body.replace(mark, f"var(--{variable})")
    body = re.sub(r" font-family: [^;\"]*;?", "", body)
    body = body.replace('<style type="text/css">*{stroke-linejoin: round; stroke-linecap: butt}</style>', "")
    body = re.sub(r" transform=\"rotate\(-0 [^\"]*\"", "", body)
    body = _TAG.sub(lambda tag: _DECIMALS.sub(r"\1", tag[0]), body)  # in tags alone: a tick of 0.005 keeps its digits
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = re.sub(r">\s+<", "><", body)
    body = re.sub(r"\s*\n\s*", " ", body)
    body = _MARK.sub(lambda found: esc(names[int(found[1])]), body)
    return f'<svg viewBox="{box[1]}" style="max-width:{width * 4 / 3:.0f}px" role=img aria-label="{esc(label)}">{body}'
