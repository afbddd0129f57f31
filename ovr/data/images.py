"""Images: a folder a class, a table of paths with labels, or an npz of arrays. Knows files and labels; `ImageEncoder` knows pixels.

N = rows, H = height, W = width, C = channels, K = heads
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.taxonomy import ClassSpec, Taxonomy
from ovr.data.delimited import Dialect, delimiter_of, read_header, read_rows
from ovr.data.entries import Entries
from ovr.data.labels import Labels
from ovr.data.lazy import Inputs, RowNumbers
from ovr.data.splits import SPLIT_NAMES, Splits, make_splits, stratified_split
from ovr.errors import DataError, InputError
from ovr.input.image import ImageEncoder, header_problem
from ovr.runtime.images import image_files, shown

log = logging.getLogger(__name__)

NUM_THREADS = 4  # pillow decodes and resizes outside Python's lock


@dataclass(frozen=True, slots=True)
class _Found:
    """Files, or pixels (N, H, W[, C]) uint8; each row's class ids; each row's cell of the split's column, if any."""

    images: Sequence[Path] | NDArray[np.uint8]
    ids_N: Sequence[Sequence[str]]
    cell_N: Sequence[str] | None
    where: Callable[[int], str]  # how messages call a row


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
            return self.encoder.encode(pixels) if len(pixels) else np.empty((0, *self.encoder.tensor.shape), np.float32)
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
    separator: str | None,
    classes: Sequence[str],
    size: Sequence[int] | None,
    mode: str,
    fit: str,
    resample: str,
    background: int,
    split: Mapping[str, Any],
    memory_mib: int,
) -> Splits:
    """Return images (C, H, W) of values 0 to 255, with the encoder that made them.

    Args:
        path: a folder, in which each file's folder is its class (`root/class/file`; `root/a/b/file` is of class "a/b", a child of
            "a"), or with split.by=file `root/{train,val,calib,test}/class/file`; a .csv or .tsv with a header, whose paths are
            relative to its own folder and may lead anywhere; or an .npz of arrays x (N, H, W), (N, H, W, 3) or (N, H, W, 4) uint8
            and y, which is (N,) of class ids or (N, K) of bool.
        path_column, target: columns of a table that hold the path and the label.
        separator: what stands between several labels in one cell; None: a cell is one label.
        classes: the taxonomy in column order; when empty, the sorted class ids (the column numbers, where y is bool).
        size: [height, width] that every image is resized to; None, of npz alone, keeps the arrays' own.
        mode, fit, resample, background: as in `ImageEncoder`.
        split: by "stratified", "file" (of folders) or "column" (of a table; of npz an array), with the names train, val, calib and
            test; splits that are not there come off train, in the proportions of `fractions`.
        memory_mib: up to this size the decoded images are held, as float32 or else as bytes; above, files are decoded in every
            epoch anew.

    Raises:
        DataError: nothing to read; images that are missing or damaged, all of them named in one error; labels missing or outside
            the taxonomy; a split that cannot be made; and what `make_splits` refuses.
    """
    source = Path(path).expanduser()
    if isinstance(classes, str):
        raise DataError(f"data.source.classes is {classes!r}; expected a list, such as [{classes}]")
    if split["by"] not in ("stratified", "file", "column"):
        raise DataError(f"data.split.by is {split['by']!r}; expected stratified, file or column")
    if source.is_dir():
        found = _from_folder(source, by_file=split["by"] == "file", column=split["column"])
    elif source.suffix.lower() == ".npz":
        found = _from_npz(source, split, classes)
    else:
        found = _from_table(source, split, path_column=path_column, target=target, separator=separator)
    taxonomy, labels = _labels(found, classes)
    rows = _split_rows(split, labels, found)
    height, width = _size(size, found.images)
    encoder = ImageEncoder(height, width, mode=mode, fit=fit, resample=resample, background=background)
    images = _held(found, encoder, memory_mib)
    parts: dict[str, tuple[Any, Labels]] = {}
    for name, row_B in rows.items():
        if isinstance(images, np.ndarray) and images.dtype == np.float32:
            x: Inputs = images[row_B]
        else:
            x = EncodedRows(encoder, images[row_B] if isinstance(images, np.ndarray) else [images[row] for row in row_B.tolist()])
        parts[name] = (x, labels.take(row_B))
    return make_splits(taxonomy, encoder.tensor, parts, encoder=encoder)


def _from_folder(root: Path, *, by_file: bool, column: str | None) -> _Found:
    if column is not None:
        raise DataError(f"data.split.column is {column!r}, but {root} is a folder; its splits are folders with data.split.by=file")
    try:
        files = image_files(root)
    except InputError as error:
        raise DataError(str(error)) from None
    folders = [file.relative_to(root).parts[:-1] for file in files]
    names = {parts[0] for parts in folders if parts}
    layout = f"{root}/{{{','.join(SPLIT_NAMES)}}}/class/file" if by_file else f"{root}/class/file"
    if not by_file and names and names <= set(SPLIT_NAMES):
        raise DataError(f"{root} holds folders {', '.join(sorted(names))}: add data.split.by=file, or other names for the classes")
    if by_file and (unknown := sorted(names - set(SPLIT_NAMES))):
        raise DataError(f"{root} holds folders {', '.join(unknown[:10])}; with data.split.by=file expected {layout}")
    if lost := [str(file) for file, parts in zip(files, folders, strict=True) if len(parts) <= by_file]:
        raise DataError(f"images in no folder of a class (expected {layout}): {shown(lost)}")
    if not files:
        raise DataError(f"{root} holds no image; expected {layout}")
    ids = [("/".join(parts[by_file:]),) for parts in folders]
    return _Found(files, ids, [parts[0] for parts in folders] if by_file else None, lambda n: str(files[n]))


def _from_table(path: Path, split: Mapping[str, Any], *, path_column: str, target: str, separator: str | None) -> _Found:
    if split["by"] == "file":
        raise DataError(f"data.split.by=file is for folders; {path} is a table: use column or stratified")
    dialect = Dialect(delimiter=delimiter_of(path))
    header = read_header(path, dialect)
    column = _split_column(split)
    wanted = [path_column, target, *([column] if column else [])]
    if missing := [name for name in wanted if name not in header]:
        raise DataError(
            f"{path} has columns {list(header)}; missing {', '.join(missing)} (data.path_column, .target, .split.column)"
        )
    at = [header.index(name) for name in wanted]
    files, ids, cells, lines, problems = [], [], [], [], []
    for line, row in read_rows(path, dialect):
        file, label, *cell = (row[index] for index in at)
        found = sorted({part.strip() for part in label.split(separator)} - {""}) if separator else [label][: bool(label)]
        if not file or (not found and not separator):
            problems.append(f"line {line} has no {'path' if not file else 'label'}")
        files.append(path.parent / Path(file).expanduser())
        ids.append(found)
        cells += cell
        lines.append(line)
    if problems:
        raise DataError(f"{path}: {shown(problems)}")
    if not files:
        raise DataError(f"{path} has a header but no rows")
    return _Found(files, ids, cells if column else None, lambda n: f"{path}, line {lines[n]}")


def _from_npz(path: Path, split: Mapping[str, Any], classes: Sequence[str]) -> _Found:
    if split["by"] == "file":
        raise DataError(f"data.split.by=file is for folders; {path} is one file: use column or stratified")
    column = _split_column(split)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            wanted = ["x", "y", *([column] if column else [])]
            if missing := [name for name in wanted if name not in arrays]:
                raise DataError(f"{path} holds arrays {sorted(arrays)}; missing {', '.join(missing)}")
            x, y, *cell = (arrays[name] for name in wanted)
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
    for name, array in (("y", y), *((column or "", values) for values in cell)):
        if len(array) != len(x) or not len(x):
            raise DataError(f"{path}: x has {len(x)} rows, {name} {len(array)}; expected as many, and at least one")
    ids: list[list[str]]
    if y.ndim == 2:
        names = [str(name) for name in classes] or [str(k) for k in range(y.shape[1])]
        if len(names) != y.shape[1]:
            raise DataError(f"{path}: y has {y.shape[1]} columns; data.source.classes names {len(names)}")
        ids = [[names[k] for k in np.flatnonzero(row)] for row in y]
    else:
        ids = [[str(value)] for value in y.tolist()]
    return _Found(x, ids, [str(value) for value in cell[0].tolist()] if cell else None, lambda n: f"{path}, row {n}")


def _split_column(split: Mapping[str, Any]) -> str | None:
    column: str | None = split["column"]
    if (column is not None) != (split["by"] == "column"):
        raise DataError(f"data.split has by={split['by']} and column={column}; expected a column with by=column only")
    return column


def _labels(found: _Found, classes: Sequence[str]) -> tuple[Taxonomy, Labels]:
    ids = [str(name) for name in classes] or sorted({class_id for row in found.ids_N for class_id in row})
    taxonomy = Taxonomy(ClassSpec(class_id, parent=class_id.rpartition("/")[0]) for class_id in ids)
    column = {class_id: k for k, class_id in enumerate(ids)}
    outside = [n for n, row in enumerate(found.ids_N) if any(class_id not in column for class_id in row)]
    if outside:
        strange = sorted({class_id for n in outside for class_id in found.ids_N[n]} - set(ids))
        named = shown([repr(name) for name in strange])
        raise DataError(f"{found.where(outside[0])}: labels outside the taxonomy of {len(ids)} classes: {named}")
    columns = [sorted(column[class_id] for class_id in row) for row in found.ids_N]
    start_N1 = np.concatenate([[0], np.cumsum([len(row) for row in columns])]).astype(np.int64)
    positives = Entries(start_N1, np.array([k for row in columns for k in row], dtype=np.int32))
    return taxonomy, Labels(positives, Entries.none(len(columns)), len(taxonomy))


def _split_rows(split: Mapping[str, Any], labels: Labels, found: _Found) -> dict[str, NDArray[np.int64]]:
    """Return the row numbers of every split: those that are named, and off train those that are not."""
    if found.cell_N is None:
        given: dict[str, NDArray[np.int64]] = {"train": np.arange(len(labels))}
    else:
        cells = np.array(found.cell_N)
        if strange := sorted(set(found.cell_N) - set(SPLIT_NAMES)):
            n = found.cell_N.index(strange[0])
            raise DataError(f"{found.where(n)}: the split is {strange[0]!r}; expected one of {', '.join(SPLIT_NAMES)}")
        given = {name: np.flatnonzero(cells == name) for name in SPLIT_NAMES if name in found.cell_N}
        if "train" not in given:
            raise DataError(f"no row is of split train; there are rows of {', '.join(given)}")
    absent = [name for name in SPLIT_NAMES if name not in given]
    if absent:
        if missing := [name for name in ("train", *absent) if name not in split["fractions"]]:
            raise DataError(f"data.split.fractions must name {', '.join(('train', *absent))}; {', '.join(missing)} not given")
        shares = {name: split["fractions"][name] for name in ("train", *absent)}
        if not all(isinstance(share, int | float) and share > 0 for share in shares.values()):
            raise DataError(f"split fractions must be positive numbers, got {shares}")
        total = sum(shares.values())
        train = given["train"]
        parts = stratified_split(
            _first_label(labels.take(train)), {name: share / total for name, share in shares.items()}, seed=split["seed"]
        )
        given |= {name: train[row_B] for name, row_B in parts.items()}
    return {name: given[name] for name in SPLIT_NAMES}


def _first_label(labels: Labels) -> NDArray[np.int64]:
    column_N = np.full(len(labels), -1)
    row_P, column_P = labels.positives.row_P[::-1], labels.positives.column_P[::-1]
    column_N[row_P] = column_P
    return column_N


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
    return encoder.encode(pixels) if 4 * num_bytes <= held else pixels


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
