"""A bundle as a static page that runs the model in the browser: an edge export, the page, and onnxruntime-web. Needs no torch.

    index.html, page.css, *.js, core/, inputs/    the page; it loads nothing from elsewhere
    ort/                                          onnxruntime-web, one thread
    model.onnx, card.json                         as `ovr export target=edge` writes them: `EdgePredictor` opens the directory too
    model_card.json                               the card in the model's metadata, which the browser's runtime does not show
    page.json                                     what the page lets a visitor enter, and examples

N = rows, C = channels, H = height, W = width
"""

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ovr.core.bundle import BUNDLE_SIGNATURE, ModelBundle
from ovr.core.files import canonical_json, place, staged_directory
from ovr.core.schema import InputSchema
from ovr.errors import ConfigError
from ovr.lifecycle.edge_export import EdgeOptions, check_options, edge_files
from ovr.lifecycle.edge_gate import GateRows
from ovr.runtime.predictor import CARD_KEY
from ovr.runtime.reference import load_reference
from ovr.web.support import unsupported

SCHEMA_VERSION = 1
MAX_EXAMPLES = 50
MAX_EXAMPLE_VALUES = 1 << 16  # of all examples together: a page.json of some 300 KB
TEXTS = ("text", "tokens", "joined")
MAX_REASONS = 3  # that one message names
PIXEL = re.compile(r"pixel_(\d+)_(\d+)")  # the columns of pictures that are flat rows, such as `data=digits`


def check_page(bundle: ModelBundle, out: Path, options: EdgeOptions, num_examples: int) -> list[int]:
    """Return the columns of the chosen heads once options and bundle are what a page can show.

    Raises:
        ConfigError, TaxonomyError, ArtifactError: what `check_options` refuses.
        ConfigError: the format is not ONNX, a number of examples that cannot be, rows that a page has no form for, or an encoder
            that its predictor in JavaScript does not have.
    """
    if bundle.input.raw_kind == "sparse":
        raise ConfigError("the model takes rows of values by feature number, which a page has no form for; use target=edge")
    if found := unsupported(bundle.input.encoder):
        more = [f"and {len(found) - MAX_REASONS} more"] if len(found) > MAX_REASONS else []
        raise ConfigError(f"a page cannot run this model: {'; '.join([*found[:MAX_REASONS], *more])}; use target=edge")
    if type(num_examples) is not int or not 0 <= num_examples <= MAX_EXAMPLES:
        raise ConfigError(f"examples is {num_examples!r}; expected a whole number from 0 to {MAX_EXAMPLES}")
    if options.format != "onnx":
        raise ConfigError(f"format={options.format} is of target=edge; a page has an ONNX file")
    return check_options(bundle, out, options)


def export_web(
    bundle: ModelBundle,
    out: Path,
    options: EdgeOptions,
    runtime: Mapping[str, bytes],
    rows: GateRows | None = None,
    *,
    num_examples: int = 10,
) -> dict[str, Any]:
    """Write the page of an opened bundle to `out` by one atomic rename, and return what its card.json holds.

    Args:
        runtime: the files of onnxruntime-web, as `runtime_files` returns them.
        rows: as for `export_edge`.
        num_examples: of the bundle's reference rows, as visitors can try them: where its rows are numbers or pictures. Others are
            kept encoded alone, and there are none.

    Raises:
        ConfigError, TaxonomyError, ArtifactError: what `check_page` and `export_edge` refuse.
    """
    columns = check_page(bundle, out, options, num_examples)
    parts, card = edge_files(bundle, out, options, rows)
    parts.pop(BUNDLE_SIGNATURE, None)  # it names every file of the bundle, and visitors could read it
    data = parts[card["model"]["file"]]
    assert isinstance(data, bytes)
    props = {entry.key: entry.value for entry in onnx.load_model_from_string(data).metadata_props}
    reference = load_reference(bundle)
    kind = _input_of(bundle.input, reference.x)
    examples = []
    if kind["kind"] in ("picture", "numbers"):
        most = min(num_examples, MAX_EXAMPLE_VALUES // bundle.input.size)
        examples = [_plain(reference.x[row]) for row in _different(reference.prob_NK[:, columns], most)]
    page = {"schema_version": SCHEMA_VERSION, "input": kind, "examples": examples}
    with staged_directory(out) as staging:
        place(staging, _page_files())
        place(staging, {f"ort/{name}": data for name, data in runtime.items()})
        place(staging, parts)
        place(staging, {"model_card.json": props[CARD_KEY].encode(), "page.json": canonical_json(page)})
    return card


def _page_files() -> dict[str, bytes]:
    root = Path(str(files("ovr.web"))) / "page"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.*")) if path.is_file()}


def _input_of(schema: InputSchema, x: NDArray[np.float32]) -> dict[str, Any]:
    """Return what visitors enter, with all that the page must know to make rows of it."""
    if schema.raw_kind == "table":
        return {"kind": "table"}
    if schema.raw_kind in TEXTS:
        return {"kind": "text"}
    shape = _picture_shape(schema)
    if shape is None:
        return {"kind": "numbers"}
    return {"kind": "picture", **ink_of(x.reshape(len(x), *shape), levels=(0.0, 255.0) if schema.raw_kind == "image" else None)}


def _picture_shape(schema: InputSchema) -> tuple[int, int, int] | None:
    """Return (C, H, W) where a row is a picture: by its shape or, of a flat row, by the names pixel_0_0, pixel_0_1, ..."""
    if len(schema.shape) == 3 and schema.shape[0] in (1, 3):
        return schema.shape[0], schema.shape[1], schema.shape[2]
    found = [PIXEL.fullmatch(name) for name in schema.columns]
    places = [(int(each[1]), int(each[2])) for each in found if each is not None]
    if not places or len(places) < len(found):
        return None
    height, width = places[-1][0] + 1, places[-1][1] + 1
    grid = [(row, column) for row in range(height) for column in range(width)]
    return (1, height, width) if len(schema.shape) == 1 and places == grid else None


def ink_of(x_NCHW: NDArray[np.float32], *, levels: tuple[float, float] | None) -> dict[str, Any]:
    """Return size and values of pictures: of the empty background, of ink, how large what is drawn stands in them, and how thick.

    The background is the value of most pixels at the edge, the ink is at the other end of the range.
    """
    _, channels, height, width = x_NCHW.shape
    low, high = levels if levels is not None else (float(x_NCHW.min()), float(x_NCHW.max()))
    edge = np.concatenate([x_NCHW[..., 0, :], x_NCHW[..., -1, :], x_NCHW[..., :, 0], x_NCHW[..., :, -1]], axis=-1)
    background, ink = (low, high) if float(np.median(edge)) - low <= high - float(np.median(edge)) else (high, low)
    inked_NHW = (np.abs(x_NCHW - background) > abs(ink - background) / 8).any(axis=1)
    spans = [[_span(inked) for inked in inked_NHW.any(axis=axis)] for axis in (2, 1)]
    box = [float(np.percentile(span, 90)) or size for span, size in zip(spans, (height, width), strict=True)]
    return {
        "channels": channels,
        "height": height,
        "width": width,
        "low": low,
        "high": high,
        "background": background,
        "ink": ink,
        "box": box,
        "covered": float(np.median(((x_NCHW - background) / ((ink - background) or 1)).mean(axis=1).sum(axis=(1, 2)))),
    }


def _span(inked: NDArray[np.bool_]) -> int:
    places = np.flatnonzero(inked)
    return int(places[-1] - places[0] + 1) if len(places) else 0


def _different(prob_NK: NDArray[np.float64], num: int) -> list[int]:
    """Return `num` rows at most: the surest of each class in turn, the classes in their order."""
    best_N, order_N = prob_NK.argmax(axis=1), np.argsort(-prob_NK.max(axis=1), kind="stable")
    queues = [[int(row) for row in order_N if best_N[row] == k] for k in np.unique(best_N)]
    rounds = [queue[turn] for turn in range(len(prob_NK)) for queue in queues if turn < len(queue)]
    return rounds[:num]


def _plain(row: NDArray[np.float32]) -> list[float]:
    """Return the values with no more digits than a float32 needs."""
    return [float(str(value)) for value in row.ravel()]
