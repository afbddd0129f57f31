"""Images: a folder a class, a table of paths with labels, or an npz of arrays. Knows files and labels; `ImageEncoder` knows pixels.

N = rows, H = height, W = width, C = channels, K = heads
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.packed import check_arrays
from ovr.data.delimited import Dialect, delimiter_of, read_header, read_rows
from ovr.data.fitted import Fitted
from ovr.data.label_cells import Ids, LabelRule, class_ids, labels_of
from ovr.data.labels import Labels
from ovr.data.lazy import Inputs, RowNumbers
from ovr.data.origin import Origin, SourceFile, source_files, source_folder
from ovr.data.splits import SPLIT_NAMES, Splits, make_splits
from ovr.data.splitting import SplitRule, split_name, split_rows
from ovr.errors import DataError, InputError
from ovr.input.image import ImageEncoder, header_problem
from ovr.runtime.images import image_files, shown

log = logging.getLogger(__name__)

IDX_NAME = re.compile(r".*idx[1-4]-ubyte(\.gz)?")
NUM_THREADS = 4  # pillow decodes and resizes outside Python's lock


@dataclass(frozen=True, slots=True)
class _Found:
    """Files, or pixels (N, H, W[, C]) uint8; each row's class ids; each row's value that it is split by, if any."""

    images: Sequence[Path] | NDArray[np.uint8]
    ids_N: Sequence[Ids]
    value_N: Sequence[Any] | None
    where: Callable[[int], str]  # how messages call a row

    def take(self, kept_B: NDArray[np.int64]) -> "_Found":
        """Return the given rows."""
        rows = kept_B.tolist()
        return _Found(
            _taken(self.images, kept_B),
            [self.ids_N[row] for row in rows],
            None if self.value_N is None else [self.value_N[row] for row in rows],
            lambda n: self.where(rows[n]),
        )


class EncodedRows:
    """Images (N, C, H, W) float32 that are decoded when they are asked for: a `LazyArray`."""

    def __init__(self, encoder: ImageEncoder, images: Sequence[Path] | NDArray[np.uint8]) -> None:
        """Take files, or pixels (N, H, W[, 3]) uint8, a quarter of what they are as float32."""
        self.encoder, self.images = encoder, images

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return (len(self.images), *self.encoder.tensor.shape)

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """float32."""
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: RowNumbers, /) -> NDArray[np.float32]:
        if isinstance(self.images, np.ndarray):
            pixels = self.images[rows]
            return self.encoder.encode(list(pixels)) if len(pixels) else np.empty((0, *self.encoder.tensor.shape), np.float32)
        picked = range(len(self.images))[rows] if isinstance(rows, slice) else rows.tolist()
        x = np.empty((len(picked), *self.encoder.tensor.shape), np.float32)

        def put(at: int, row: int) -> None:
            try:
                x[at] = self.encoder.encode([self.images[row]])[0]
            except InputError as error:
                raise DataError(f"an image was changed or cannot be decoded: {error}") from None

        with ThreadPoolExecutor(NUM_THREADS) as pool:
            list(pool.map(put, range(len(picked)), picked))
        return x


def load_images(
    *,
    path: str,
    path_column: str,
    target: str,
    rule: LabelRule,
    classes: Sequence[str],
    size: Sequence[int] | None,
    mode: str,
    fit: str,
    resample: str,
    background: int,
    split: Mapping[str, Any],
    memory_mib: int,
    dialect: Mapping[str, Any] | None = None,
    fitted: Fitted | None = None,
) -> Splits:
    """Return images (C, H, W) of values 0 to 255, with the encoder that made them.

    Args:
        path: a folder, in which each file's folder is its class (`root/class/file`; `root/a/b/file` is of class "a/b"), or with
            split.by=file `root/{train,val,calib,test}/class/file`; a table with a header (.csv, .tsv), whose paths are relative
            to its own folder and may lead anywhere: it is trusted as the command line is; or an .npz of arrays x (N, H, W),
            (N, H, W, 3) or (N, H, W, 4) uint8 and y, which is (N,) of labels or (N, K) of bool.
        dialect: of `Dialect`, for a table; a `delimiter` of None goes by the file's name.
        path_column, target: columns of a table that hold the path and the label.
        rule: how labels of a table or of y (N,) are read, and which classes have parents.
        classes: the taxonomy in column order; when empty, the rule's names, or else the sorted class ids of all rows (the column
            numbers, where y is bool).
        size: [height, width] that every image is resized to; None, of npz alone, keeps the arrays' own.
        mode, fit, resample, background: as in `ImageEncoder`.
        split: the settings of a `SplitRule`: "file" is for folders, `column` for tables and for the arrays of an npz.
        memory_mib: up to this size the decoded images are held, as float32 or else as bytes; above, files are decoded in every
            epoch anew.
        fitted: the model that the images are read for: its classes count, and its encoder in place of size, mode, fit, resample and
            background.

    Raises:
        DataError: nothing to read; images that are missing or damaged, the first of them named in one error; what the rules of
            labels and splits refuse; and what `make_splits` refuses.
    """
    source = Path(path).expanduser()
    if isinstance(classes, str):
        raise DataError(f"data.source.classes is {classes!r}; expected a list, such as [{classes}]")
    division = SplitRule.of(split)
    if not source.exists():
        raise DataError(f"{source} cannot be read: there is no such file or folder (data.path)")
    if source.is_dir():
        found = _from_folder(source, division)
    elif division.by == "file":
        raise DataError(f"data.split.by=file is for folders; {source} is a file: use stratified, column, time or group")
    elif source.suffix.lower() == ".npz":
        found = _from_npz(source, division.column, rule, classes if fitted is None else fitted.taxonomy.ids)
    else:
        found = _from_table(source, division.column, rule, path_column=path_column, target=target, settings=dialect or {})
    taxonomy = rule.taxonomy(list(map(str, classes)) or rule.names or class_ids(found.ids_N)) if fitted is None else fitted.taxonomy
    labelled = labels_of(found.ids_N, taxonomy, rule, found.where)
    if len(labelled.kept) < len(found.ids_N):
        log.warning("%d of %d images are left out for their labels", len(found.ids_N) - len(labelled.kept), len(found.ids_N))
        found = found.take(labelled.kept)
    whole = fitted is not None and fitted.whole
    rows = {"test": np.arange(len(found.ids_N))}
    if not whole:
        rows = split_rows(division, labelled.labels, found.value_N, where=found.where)
    if fitted is None:
        encoder = ImageEncoder(*_size(size, found.images), mode=mode, fit=fit, resample=resample, background=background)
    else:
        encoder = fitted.encoder(ImageEncoder, source="data=images")
    images = _held(found, encoder, memory_mib)
    parts: dict[str, tuple[Any, Labels]] = {}
    for name, row_B in rows.items():
        own = _taken(images, row_B)
        in_memory = isinstance(own, np.ndarray) and own.dtype == np.float32
        x: Inputs = own if in_memory else EncodedRows(encoder, own)  # type: ignore[assignment]
        parts[name] = (x, labelled.labels.take(row_B))
    # A row of a folder has no number of its own.
    numbers = {} if source.is_dir() else {name: labelled.kept[row_B] for name, row_B in rows.items()}
    where = {name: partial(_where, found, row_B) for name, row_B in rows.items()}
    origin = Origin(_files(source, found), None if whole else division, numbers, where)
    return make_splits(taxonomy, encoder.tensor, parts, encoder=encoder, origin=origin, fitted=fitted)


def _where(found: _Found, row_B: NDArray[np.int64], row: int) -> str:
    place = found.where(int(row_B[row]))
    if isinstance(found.images, np.ndarray):
        return place
    file = str(found.images[int(row_B[row])])
    return place if place == file else f"{place}: {file}"


def _files(source: Path, found: _Found) -> tuple[SourceFile, ...]:
    """Return the digests of a table or an npz, and one of all images that lie in files."""
    own = () if source.is_dir() else source_files([source])
    if isinstance(found.images, np.ndarray):
        return own
    return (*own, source_folder(source if source.is_dir() else source.parent, found.images))


def _from_folder(root: Path, division: SplitRule) -> _Found:
    by_file = division.by == "file"
    if any(IDX_NAME.fullmatch(file.name) for file in root.iterdir()):
        raise DataError(f"{root} holds IDX files, such as those of MNIST; they are read by data=idx data.root={root}")
    if division.column is not None:
        raise DataError(f"data.split.by={division.by} needs a table, and {root} is a folder; use stratified, or file")
    try:
        files = image_files(root)
    except InputError as error:
        raise DataError(str(error)) from None
    folders = [file.relative_to(root).parts[:-1] for file in files]
    names = {parts[0] for parts in folders if parts}
    layout = f"{root}/{{{','.join(SPLIT_NAMES)}}}/class/file" if by_file else f"{root}/class/file"
    if not by_file and names and all(map(split_name, names)):
        raise DataError(f"{root} holds folders {', '.join(sorted(names))}: add data.split.by=file, or other names for the classes")
    if by_file and (unknown := sorted(name for name in names if split_name(name) is None)):
        raise DataError(f"{root} holds folders {', '.join(unknown[:10])}; with data.split.by=file expected {layout}")
    if lost := [str(file) for file, parts in zip(files, folders, strict=True) if len(parts) <= by_file]:
        raise DataError(f"images in no folder of a class (expected {layout}): {shown(lost)}")
    if not files:
        raise DataError(f"{root} holds no image; expected {layout}")
    ids = [("/".join(parts[by_file:]),) for parts in folders]
    return _Found(files, ids, [parts[0] for parts in folders] if by_file else None, lambda n: str(files[n]))


def _from_table(
    path: Path, column: str | None, rule: LabelRule, *, path_column: str, target: str, settings: Mapping[str, Any]
) -> _Found:
    given = settings.get("delimiter")
    dialect = Dialect(**{**settings, "delimiter": delimiter_of(path) if given is None else given})
    header = read_header(path, dialect)
    wanted = [path_column, target, *([column] if column else [])]
    if missing := [name for name in wanted if name not in header]:
        raise DataError(f"{path} has columns {list(header)}; missing {', '.join(missing)}")
    at = [header.index(name) for name in wanted]
    files, ids, values, lines = [], [], [], []
    for line, row in read_rows(path, dialect):
        file, label, *value = (row[index] for index in at)
        if not file:
            raise DataError(f"{path}, line {line} has no path")
        files.append(path.parent / Path(file).expanduser())
        ids.append(rule.ids(label, f"{path}, line {line}"))
        values += value
        lines.append(line)
    if not files:
        raise DataError(f"{path} has a header but no rows")
    return _Found(files, ids, values if column else None, lambda n: f"{path}, line {lines[n]}")


def _from_npz(path: Path, column: str | None, rule: LabelRule, classes: Sequence[str]) -> _Found:
    try:
        check_arrays(path, compressed=True)
        with np.load(path, allow_pickle=False) as arrays:
            wanted = ["x", "y", *([column] if column else [])]
            if missing := [name for name in wanted if name not in arrays]:
                raise DataError(f"{path} holds arrays {sorted(arrays)}; missing {', '.join(missing)}")
            x, y, *value = (arrays[name] for name in wanted)
    except DataError:
        raise
    except Exception as error:  # a zip file of npy files: either may be broken in many ways
        raise DataError(f"{path} cannot be read as npz: {error}") from None
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (3, 4)):
        raise DataError(
            f"{path}: x is {x.dtype} {x.shape}; expected uint8 (N, H, W), (N, H, W, 3) or (N, H, W, 4), channels last; "
            "arrays of other numbers are for data=features"
        )
    if y.ndim not in (1, 2) or (y.ndim == 2) != (y.dtype == bool) or (y.ndim == 1 and y.dtype.kind not in "iuU"):
        raise DataError(f"{path}: y is {y.dtype} {y.shape}; expected (N,) of integers or text, or (N, K) of bool")
    for name, array in (("y", y), *((column or "", array) for array in value)):
        if len(array) != len(x) or not len(x):
            raise DataError(f"{path}: x has {len(x)} rows, {name} {len(array)}; expected as many, and at least one")
    ids: list[Ids]
    if y.ndim == 2:
        names = [str(name) for name in classes] or rule.names or [str(k) for k in range(y.shape[1])]
        if len(names) != y.shape[1]:
            raise DataError(f"{path}: y has {y.shape[1]} columns, and {len(names)} classes are named")
        ids = [tuple(names[k] for k in np.flatnonzero(row)) for row in y]
    else:
        ids = [rule.ids(label, f"{path}, row {n}") for n, label in enumerate(y.tolist())]
    return _Found(x, ids, value[0].tolist() if value else None, lambda n: f"{path}, row {n}")


def _taken(images: Sequence[Path] | NDArray[Any], row_B: NDArray[np.int64]) -> Sequence[Path] | NDArray[Any]:
    return images[row_B] if isinstance(images, np.ndarray) else [images[row] for row in row_B.tolist()]


def _size(size: Sequence[int] | None, images: Sequence[Path] | NDArray[np.uint8]) -> tuple[int, int]:
    if size is None:
        if not isinstance(images, np.ndarray):
            raise DataError("files may have any size: add data.size=[HEIGHT,WIDTH], to which all of them are resized")
        return int(images.shape[1]), int(images.shape[2])
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise DataError(f"data.size is {size!r}; expected [HEIGHT,WIDTH]")
    return size[0], size[1]


def _held(found: _Found, encoder: ImageEncoder, memory_mib: int) -> NDArray[Any] | Sequence[Path]:
    """Return the images as float32 (N, C, H, W) or uint8 (N, H, W[, 3]), as the memory allows, or the files, checked."""
    if not isinstance(memory_mib, int) or isinstance(memory_mib, bool) or memory_mib < 0:
        raise DataError(f"data.source.memory_mib is {memory_mib!r}; expected a whole number of at least 0")
    num_bytes, held = len(found.images) * encoder.tensor.size, memory_mib * 2**20
    if not isinstance(found.images, np.ndarray) and num_bytes > held:
        _raise_all(header_problem, found)
        log.info("%d images, %d MiB as bytes, are decoded in every epoch: more than memory_mib", len(found.images), num_bytes >> 20)
        return found.images
    pixels = np.empty((len(found.images), *encoder.pixels(np.zeros((1, 1), np.uint8)).shape), np.uint8)

    def decode(n: int) -> str | None:
        try:
            pixels[n] = encoder.pixels(found.images[n])
        except InputError as error:
            return str(error)
        return None

    _raise_all(decode, found, by_number=True)
    return encoder.encode(list(pixels)) if 4 * num_bytes <= held else pixels


def _raise_all(problem_of: Callable[[Any], str | None], found: _Found, *, by_number: bool = False) -> None:
    """Raise DataError that names every image of which `problem_of` its file or number has something to say."""
    num_images = len(found.images)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        results = pool.map(problem_of, range(num_images) if by_number else found.images)
        problems = []
        for n, problem in enumerate(results):
            if problem is not None:
                file = found.images[n] if not isinstance(found.images, np.ndarray) else None
                place = found.where(n) if file is None or str(file) == found.where(n) else f"{found.where(n)}: {file}"
                problems.append(f"{place} {problem}")
    if problems:
        raise DataError(f"{len(problems)} of {num_images} images cannot be used: {shown(problems)}")
