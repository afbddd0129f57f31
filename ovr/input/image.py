"""Images as a user has them: files, their bytes, or arrays of pixels. Pillow decodes and resizes, imported when it is needed.

The same function makes the rows of training and of every runtime. Values stay the pixels' own 0 to 255: the network normalises.

N = rows, B = batch, C = channels (1 grey, 3 red, green and blue), H = height, W = width
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from ovr.core.schema import InputSchema, check_rows
from ovr.errors import ArtifactError, ConfigError, InputError

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {"grey": 1, "rgb": 3}
FITS = ("stretch", "crop", "pad")
RESAMPLES = ("nearest", "bilinear", "bicubic", "lanczos")
# What pillow may open: no format that is run as a program (EPS) or that few people have tried to break.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAX_PIXELS = 100_000_000  # of one file: what it declares is made before it is looked at
MAX_SIDE = 65_536

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ImageEncoder:
    """Rows are images: each a `pathlib.Path`, the `bytes` of a file, a uint8 array (H', W'), (H', W', 3) or (H', W', 4), or what
    `encode` returns for it.

    A text is no image: were it a path, who sends rows to a server would choose which of its files are opened.

    EXIF orientation is applied, transparent pixels are laid over `background`, 16-bit grey keeps its upper 8 bits, and of an
    animation the first picture counts. `fit` says how another aspect ratio is met: "stretch" ignores it, "crop" cuts the middle
    out, "pad" adds `background`.
    """

    kind: ClassVar[str] = "image"

    height: int
    width: int
    mode: str = "rgb"
    fit: str = "stretch"
    resample: str = "bilinear"
    background: int = 255

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIDE:
                raise ConfigError(f"the {name} of images is {value!r}; expected a whole number of pixels from 1 to {MAX_SIDE}")
        for name, known in (("mode", tuple(MODES)), ("fit", FITS), ("resample", RESAMPLES)):
            if getattr(self, name) not in known:
                raise ConfigError(f"the {name} of images is {getattr(self, name)!r}; expected one of {', '.join(known)}")
        if not isinstance(self.background, int) or isinstance(self.background, bool) or not 0 <= self.background <= 255:
            raise ConfigError(f"the background of images is {self.background!r}; expected a grey level from 0 to 255")

    @property
    def tensor(self) -> InputSchema:
        """Rows (C, H, W), 0 to 255."""
        return InputSchema((MODES[self.mode], self.height, self.width))

    def encode(self, rows: Any) -> NDArray[np.float32]:
        """Return the images as (B, C, H, W), 0 to 255.

        Raises:
            InputError: `rows` is no list of images, or one of them is missing, damaged, too large or of another shape (naming it).
        """
        if isinstance(rows, np.ndarray) and rows.dtype != np.uint8:
            return check_rows(rows, self.tensor)
        listed = _listed(rows)
        x = np.empty((len(listed), *self.tensor.shape), np.float32)
        for n, row in enumerate(listed):
            x[n] = _named(n, self._tensor, row)
        return x

    def check_runs_here(self) -> None:
        """Import pillow.

        Raises:
            ConfigError: it is missing.
        """
        _pillow()

    def pixels(self, row: Any) -> NDArray[np.uint8]:
        """Return one image, not yet encoded, as (H, W) or (H, W, 3), which `encode` takes without decoding or resizing.

        Raises:
            InputError: what is wrong with it.
        """
        if isinstance(row, np.ndarray):
            _check_array(row)
            if row.shape == self._pixel_shape:
                return row
            image = _pillow().fromarray(row)
        else:
            image = _opened(_content(row))
        try:
            return np.asarray(self._fitted(_of_mode(image, self.mode, self.background)))
        except InputError:
            raise
        except Exception as error:  # pillow raises whatever its formats raise
            raise InputError(f"is damaged: {error}") from None
        finally:
            image.close()

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ImageEncoder":
        """Return what `to_json` wrote.

        Raises:
            ArtifactError: it cannot be read.
        """
        try:
            return cls(**{name: setting for name, setting in value.items() if name != "kind"})
        except (TypeError, ConfigError) as error:
            raise ArtifactError(f"the image encoder cannot be read: {error}") from None

    @property
    def _pixel_shape(self) -> tuple[int, ...]:
        return (self.height, self.width) if self.mode == "grey" else (self.height, self.width, 3)

    def _tensor(self, row: Any) -> NDArray[Any]:
        """Return one row (C, H, W)."""
        if isinstance(row, list) or (isinstance(row, np.ndarray) and row.dtype != np.uint8):
            x: NDArray[np.float32] = check_rows([row], self.tensor)[0]
            return x
        return np.atleast_3d(self.pixels(row)).transpose(2, 0, 1)

    def _fitted(self, image: "Image") -> "Image":
        from PIL import ImageOps

        size, method = (self.width, self.height), getattr(_pillow().Resampling, self.resample.upper())
        if self.fit == "crop":
            return ImageOps.fit(image, size, method)
        if self.fit == "pad":
            return ImageOps.pad(image, size, method, color=self.background if self.mode == "grey" else (self.background,) * 3)
        return image if image.size == size else image.resize(size, method)


def file_contents(rows: Any) -> list[bytes]:
    """Return each image as the bytes of its file, or of a lossless one where it is an array, which encode alike.

    Raises:
        InputError: `rows` is no list of images, a file cannot be read, or an array is encoded already (naming the row).
    """
    return [_named(n, _file_content, row) for n, row in enumerate(_listed(rows))]


def header_problem(path: Path) -> str | None:
    """Return what is wrong with an image file, as far as is seen without decoding it, or None."""
    try:
        image = _opened(_content(path))
    except InputError as error:
        return str(error)
    try:
        with image:
            image.verify()
    except Exception as error:  # pillow raises whatever its formats raise
        return f"is damaged: {error}"
    return None


def _named(n: int, function: Callable[[Any], T], row: Any) -> T:
    try:
        return function(row)
    except InputError as error:
        which = f" ({Path(row)})" if isinstance(row, PathLike) else ""
        raise InputError(f"row {n}{which} {error}") from None


def _listed(rows: Any) -> Sequence[Any]:
    if isinstance(rows, np.ndarray) and rows.ndim == 3 and rows.dtype == np.uint8 and rows.shape[2] in (3, 4):
        raise InputError(
            f"rows are one uint8 array of shape {rows.shape}, which is one colour image or {len(rows)} grey ones of width "
            f"{rows.shape[2]}: give img[None] for one image, or list(img) for grey ones"
        )
    if isinstance(rows, np.ndarray) and rows.ndim:
        listed: Sequence[Any] = list(rows)
    elif isinstance(rows, list | tuple):
        listed = rows
    else:
        raise InputError(f"rows are {type(rows).__name__}; expected a list of images, or an array with an image a row")
    if not listed:
        raise InputError("got no rows; expected at least one")
    return listed


def _file_content(row: Any) -> bytes:
    if not isinstance(row, np.ndarray):
        return _content(row)
    _check_array(row)
    buffer = io.BytesIO()
    _pillow().fromarray(row).save(buffer, "PNG")
    return buffer.getvalue()


def _content(row: Any) -> bytes:
    """Return the bytes of an image file."""
    if isinstance(row, bytes | bytearray):
        return bytes(row)
    if isinstance(row, PathLike):
        try:
            return Path(row).read_bytes()
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror or error}") from None
    is_text = "; a file is given as pathlib.Path" if isinstance(row, str) else ""
    raise InputError(
        f"is {type(row).__name__} {str(row)[:40]!r}; expected a pathlib.Path, the bytes of a file or an array{is_text}"
    )


def _check_array(row: NDArray[Any]) -> None:
    if row.dtype != np.uint8 or not (row.ndim == 2 or (row.ndim == 3 and row.shape[2] in (3, 4))) or not row.size:
        raise InputError(
            f"is a {row.dtype} array of shape {row.shape}; an image is a uint8 array (height, width), (height, width, 3) or "
            "(height, width, 4), channels last"
        )


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigError(f"images are decoded and resized by pillow: pip install 'ovr[images]' ({error})") from None
    return Image


def _opened(content: bytes) -> "Image":
    """Return the image, not yet decoded.

    Raises:
        InputError: no image that may be opened, or one too large.
    """
    pillow = _pillow()
    try:
        image: Image = pillow.open(io.BytesIO(content), formats=FORMATS)
    except pillow.UnidentifiedImageError:
        begins = content[:8].hex(" ") or "nothing: it is empty"
        raise InputError(f"is no image of {', '.join(FORMATS)}, or its header is damaged (it begins with {begins})") from None
    except Exception as error:  # pillow raises whatever its formats raise
        raise InputError(f"is damaged: {error}") from None
    if image.width * image.height > MAX_PIXELS:
        raise InputError(f"declares {image.width}x{image.height} pixels; expected at most {MAX_PIXELS:,}")
    return image


def _of_mode(image: "Image", mode: str, background: int) -> "Image":
    """Return the image upright, opaque, and in pillow's mode L or RGB."""
    from PIL import Image, ImageOps

    wanted = "L" if mode == "grey" else "RGB"
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # pillow's own conversion cuts off above 255 instead of scaling
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert(wanted)
    if image.mode in ("I", "F"):
        raise InputError(f"has pixels of 32 bits (pillow's mode {image.mode}), whose range is not known; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (background,) * 3 + (255,)), image)
    return image.convert(wanted)
