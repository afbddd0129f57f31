"""What a user has for a row - a text, an image, cells, numbers - as a small piece of HTML. Knows kinds of rows, no model.

C = channels, H = height, W = width
"""

import base64
import io
import math
import struct
import zlib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.errors import ConfigError, InputError
from ovr.report.markup import esc, isolated, shown

MAX_TEXT = 400  # characters of a text
MAX_CELLS = 24
MAX_NUMBERS = 12
THUMBNAIL = 96  # pixels of its longer side
COLOUR_TYPE = {1: 0, 3: 2, 4: 6}  # of PNG, by channels
SMALLEST = 48  # a picture of fewer pixels is enlarged, each pixel a square


def row_html(row: Any) -> str:
    """Return a row as HTML: str a text, a mapping cells, bytes or a path an image file, an array (C, H, W) or (H, W) an image, any
    other array numbers. An image that cannot be shown is named instead."""
    if isinstance(row, str):
        return f"<p class=quote>{isolated(row, most=MAX_TEXT)}</p>"
    if isinstance(row, Mapping):
        cells = list(row.items())
        listed = [f"<span>{isolated(name)}</span> {isolated(_cell(value))}" for name, value in cells[:MAX_CELLS]]
        listed += [f"<span>and {len(cells) - MAX_CELLS} more</span>"] if len(cells) > MAX_CELLS else []
        return f"<p class=cells>{' · '.join(listed)}</p>"
    if isinstance(row, bytes | bytearray | PathLike):
        name = str(Path(row).name) if isinstance(row, PathLike) else "image"
        try:
            return picture(_decoded(row), name=name)
        except (InputError, ConfigError, OSError, ImportError) as error:
            return f"{isolated(name)} <small>{esc(str(error)[:120])}</small>"
    array = np.asarray(row)
    if array.ndim == 2 or (array.ndim == 3 and array.shape[0] in (1, 3)):
        return picture(array, name="image")
    values = array.ravel()[:MAX_NUMBERS].tolist()
    more = f" … ({array.size} numbers)" if array.size > MAX_NUMBERS else ""
    return f"<code>{esc(', '.join(f'{value:.4g}' for value in values))}{esc(more)}</code>"


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) and not math.isnan(value) else shown(value)


def picture(pixels: NDArray[Any], *, name: str, most: int = THUMBNAIL, size: tuple[int, int] | None = None) -> str:
    """Return an image (H, W), (H, W, 3), (1, H, W) or (3, H, W) as an `img` element that holds its own PNG.

    uint8 is taken as it is; of other numbers the least becomes black and the largest white.
    """
    data, (height, width) = png(pixels, most=most)
    factor = max(1.0, SMALLEST / max(height, width))
    high, wide = size or (round(height * factor), round(width * factor))
    encoded = base64.b64encode(data).decode()
    return f'<img class=thumb width={wide} height={high} alt="{esc(name)}" src="data:image/png;base64,{encoded}">'


def png(pixels: NDArray[Any], *, most: int = THUMBNAIL) -> tuple[bytes, tuple[int, int]]:
    """Return an image as a PNG file of at most `most` pixels a side, and its height and width.

    Written here and not by pillow, which a report of digits or arrays does not need.
    """
    array = np.asarray(pixels)
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype != np.uint8:
        low, high = float(array.min()), float(array.max())
        array = np.rint((array - low) * (255 / (high - low) if high > low else 0.0)).astype(np.uint8)
    step = -(-max(array.shape[:2]) // most)
    array = array[::step, ::step]
    return png_bytes(array), (array.shape[0], array.shape[1])


def png_bytes(array: NDArray[np.uint8]) -> bytes:
    """Return grey, coloured, or coloured and transparent pixels, (H, W, 1), (H, W, 3) or (H, W, 4), as PNG (ISO/IEC 15948)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = array.shape
    lines = b"".join(b"\0" + line.tobytes() for line in np.ascontiguousarray(array))
    header = struct.pack(">IIBBBBB", width, height, 8, COLOUR_TYPE[channels], 0, 0, 0)
    out = io.BytesIO()
    out.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b""))
    return out.getvalue()


def _decoded(row: Any) -> NDArray[np.uint8]:
    """Return an image file as (H, W, 3), no larger than a thumbnail."""
    from PIL import Image, ImageOps

    from ovr.input.image import FORMATS, MAX_PIXELS

    content = Path(row).read_bytes() if isinstance(row, PathLike) else bytes(row)
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise InputError(f"declares {image.width}x{image.height} pixels; expected at most {MAX_PIXELS}")
        upright = ImageOps.exif_transpose(image).convert("RGB")
        upright.thumbnail((THUMBNAIL, THUMBNAIL))
        return np.asarray(upright)
