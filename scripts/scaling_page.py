"""docs/scaling.md and its picture, from the stored rows of the scripts that `make bench` runs.

Run it as `python -m scripts.scaling_page` in the repository; `make bench` does.
"""

import json
import math
from pathlib import Path
from typing import Any

from benchmarks.bars import BARS, unit_text

ROOT = Path(__file__).parents[1]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
# Colour, dash pattern and shape of the points: each tells the sides apart without the others, also in grey.
STYLES = {"ours": ("#0b3c8c", "", "circle"), "dense": ("#d9730d", "9 5", "square"), "module loop": ("#4f9d69", "2 5", "triangle")}
LABELS = {"ours": "ovr", "dense": "nn.Linear + BCEWithLogitsLoss", "module loop": "loop over K modules"}
WIDTH, HEIGHT, LEFT, TOP, SIDE_X, SIDE_Y = 1000, 460, 75, 60, 375, 300
Series = dict[str, list[tuple[int, float]]]


def series(rows: list[dict[str, Any]], what: str, factor: float) -> Series:
    """Return the points (K, value) of each side, by its name."""
    points: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["what"] == what:
            points.setdefault("ours", {})[row["k"]] = row["ours"] * factor
            points.setdefault(row["against"], {})[row["k"]] = row["peer"] * factor
    return {name: sorted(values.items()) for name, values in points.items()}


def point(shape: str, x: float, y: float, colour: str) -> str:
    """Return a mark at a place."""
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>'
    if shape == "square":
        return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" fill="{colour}"/>'
    return f'<path d="M{x:.1f} {y - 6:.1f} l6 11 h-12 z" fill="{colour}"/>'


def panel(title: str, unit: str, lines: Series, left: float) -> list[str]:
    """Return a diagram with both axes logarithmic."""
    xs = [math.log10(k) for values in lines.values() for k, _ in values]
    ys = [math.log10(value) for values in lines.values() for _, value in values]
    x0, x1, y0, y1 = math.floor(min(xs)), math.ceil(max(xs)), math.floor(min(ys)), math.ceil(max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (x - x0) / (x1 - x0) * SIDE_X, TOP + SIDE_Y - (y - y0) / (y1 - y0) * SIDE_Y

    parts = [f'<text x="{left}" y="{TOP - 18}" font-size="17" font-weight="bold">{title} ({unit})</text>']
    for x in range(x0, x1 + 1):
        at, bottom = place(x, y0)
        parts.append(f'<path d="M{at:.1f} {TOP} V{bottom:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 22:.1f}" text-anchor="middle">{10**x:,}</text>')
    for y in range(y0, y1 + 1):
        start, at = place(x0, y)
        parts.append(f'<path d="M{start:.1f} {at:.1f} h{SIDE_X}" stroke="#ddd"/>')
        parts.append(f'<text x="{start - 8:.1f}" y="{at + 5:.1f}" text-anchor="end">{10.0**y:,g}</text>')
    parts.append(f'<text x="{left + SIDE_X / 2}" y="{TOP + SIDE_Y + 48}" text-anchor="middle">heads K</text>')
    for name, values in reversed(lines.items()):
        colour, dashes, shape = STYLES[name]
        places = [place(math.log10(k), math.log10(value)) for k, value in values]
        path = " L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dashes}"/>')
        parts += [point(shape, x, y, colour) for x, y in places]
    return parts


def picture(time: Series, memory: Series) -> str:
    """Return the SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="14">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *panel("Time of a training step", "ms", time, LEFT),
        *panel("Memory of a step, above weights", "MB", memory, LEFT + WIDTH / 2),
    ]
    for i, (name, (colour, dashes, shape)) in enumerate(STYLES.items()):
        x, y = LEFT + (0, 170, 560)[i], HEIGHT - 18
        parts.append(f'<path d="M{x} {y} h44" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dashes}"/>')
        parts += [point(shape, x + 22, y, colour), f'<text x="{x + 54}" y="{y + 5}">{LABELS[name]}</text>']
    return "\n".join([*parts, "</svg>"]) + "\n"


def number(value: float) -> str:
    """Return three digits, without an exponent."""
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"


def step_table(time: Series, memory: Series) -> list[str]:
    """Return a line for each K."""
    lines = ["| K | ovr, ms | dense, ms | module loop, ms | ovr, MB | dense, MB |", "| ---: | ---: | ---: | ---: | ---: | ---: |"]
    columns = [time["ours"], time["dense"], time["module loop"], memory["ours"], memory["dense"]]
    for k, _ in time["ours"]:
        cells = [number(dict(column)[k]) if k in dict(column) else "-" for column in columns]
        lines.append(f"| {k:,} | {' | '.join(cells)} |")
    return lines


def peer_table(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each row."""
    lines = ["| what | against | K | ovr | peer | ratio | |", "| --- | --- | ---: | ---: | ---: | ---: | --- |"]
    for row in rows:
        factor, unit = (1e3, "ms") if row["unit"] == "s" else (1, row["unit"])
        sides = " | ".join(f"{number(row[side] * factor)} {unit}" for side in ("ours", "peer"))
        lines.append(f"| {row['what']} | {row['against']} | {row['k']:,} | {sides} | {row['ratio']:.2f} | {row['note']} |")
    return lines


def bar_table(reports: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line for each row that is held against a bar, and one for a bar that no row is held against."""
    lines = ["| what | against | K | sizes | bar | measured | | on |", "| --- | --- | ---: | --- | --- | ---: | --- | --- |"]
    num_met = num_rows = 0
    for bar in BARS:
        report = reports[bar.script]
        rows = [row for row in report["rows"] if bar.applies(row)]
        for row in rows:
            met = bar.met(row)
            num_met, num_rows = num_met + met, num_rows + 1
            value = f"{row['ratio']:.2f}x" if bar.most is None else f"{row['ours']:.2g}{unit_text(row['unit'])}"
            k, sizes = "" if row["k"] is None else f"{row['k']:,}", row["note"].split("bar ")[0].split(",")[0].rstrip("; ")
            verdict = "met" if met else "**missed**"
            cells = (bar.what, bar.against, k, sizes, bar.text(row["unit"]), value, verdict, report["date"][:10])
            lines.append(f"| {' | '.join(cells)} |")
        if not rows:
            k = f"from {bar.k_from:,}" if bar.k is None else f"{bar.k:,}"
            lines.append(f"| {bar.what} | {bar.against} | {k} | | {bar.text('')} | | not measured | |")
    return [*lines, "", f"{num_met} of {num_rows} rows meet their bar."]


def where(report: dict[str, Any]) -> str:
    """Return when and on what it was measured."""
    machine = report["machine"]
    return (
        f"{report['date'][:10]}, {machine['cpu']}, {machine['cores']} cores of which {machine['threads']} thread is used, "
        f"{machine['system']}, Python {machine['python']}, torch {machine['versions']['torch']}"
    )


def main() -> None:
    reports = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in ("scaling", *(bar.script for bar in BARS))}
    scaling, peers = reports["scaling"], reports["head_step"]
    time, memory = series(scaling["rows"], "training step", 1e3), series(scaling["rows"], "memory of a step", 1)
    (DOCS / "scaling.svg").write_text(picture(time, memory))
    text = (DOCS / "scaling.md").read_text()
    for name, lines in (
        ("scaling", [f"Measured {where(scaling)}.", "", *step_table(time, memory)]),
        ("bars", bar_table(reports)),
        ("head_step", [f"Measured {where(peers)}.", "", *peer_table(peers["rows"])]),
    ):
        begin, end = f"<!-- {name}: written by scripts/scaling_page.py -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        after = rest.split(end, 1)[1]
        text = before + begin + "\n".join([*lines, ""]) + end + after
    (DOCS / "scaling.md").write_text(text)


if __name__ == "__main__":
    main()
