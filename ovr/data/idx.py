"""Images and labels in IDX files (MNIST, Fashion-MNIST and their kin), gzipped or not."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ovr.core.packed import open_gzip
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import ClassSpec, Taxonomy
from ovr.data.fitted import Fitted
from ovr.data.labels import Labels
from ovr.data.origin import Origin, places_in, source_files
from ovr.data.splits import Splits, make_splits, stratified_split
from ovr.data.splitting import SplitRule
from ovr.errors import DataError

KINDS = ("images-idx3", "labels-idx1")


def load_idx(
    *, root: str, class_names: Sequence[str], fractions: Mapping[str, float], seed: int, fitted: Fitted | None = None
) -> Splits:
    """Return images (1, H, W) from the four files in `root`; `fractions` of the training files become train, val and calib.

    The t10k files are the test split. Class ids are the label numbers "0", "1", ...; `class_names`, if any, are their display
    names in that order. With `fitted` the rows are for a model that is there: all of both files, or a split of them.

    Raises:
        DataError: a file is missing, empty, or not IDX; images and labels differ in number; labels outside the class names.
    """
    if set(fractions) != {"train", "val", "calib"}:
        raise DataError(
            f"fractions of the training files must name train, val and calib, got {', '.join(fractions)}; t10k is the test split"
        )
    folder = Path(root).expanduser()
    train_x, train_column_N = _pair(folder, "train")
    test_x, test_column_N = _pair(folder, "t10k")
    num_heads = len(class_names) or int(train_column_N.max()) + 1
    if fitted is not None:
        fitted.check_numbers((), source="data=idx")
        num_heads = len(fitted.taxonomy)
        if fitted.taxonomy.ids != tuple(map(str, range(num_heads))):
            raise DataError(
                f"the model has the classes {', '.join(map(repr, fitted.taxonomy.ids[:5]))}, ...; data=idx has '0', '1', ..."
            )
    for name, column_N in (("train", train_column_N), ("t10k", test_column_N)):
        outside = np.flatnonzero(column_N >= num_heads)
        if outside.size:
            raise DataError(
                f"{folder}: {name} label {column_N[outside[0]]} at row {outside[0]} is outside the taxonomy of {num_heads} classes"
            )
    taxonomy = Taxonomy(ClassSpec(str(k), name=class_names[k] if class_names else "") for k in range(num_heads))
    if fitted is not None:
        taxonomy = fitted.taxonomy
    files = source_files(_file(folder / f"{part}-{kind}-ubyte") for part in ("train", "t10k") for kind in KINDS)
    if fitted is not None and fitted.whole:
        x, column_N = np.concatenate([train_x, test_x]), np.concatenate([train_column_N, test_column_N])
        every = {"test": (x, Labels.from_columns(column_N, num_heads=num_heads))}
        return make_splits(taxonomy, fitted.input, every, origin=Origin(files, None, {"test": np.arange(len(x))}), fitted=fitted)
    rows = stratified_split(train_column_N, fractions, seed=seed)
    parts = {name: (train_x[r], Labels.from_columns(train_column_N[r], num_heads=num_heads)) for name, r in rows.items()}
    parts["test"] = (test_x, Labels.from_columns(test_column_N, num_heads=num_heads))
    numbers = {**rows, "test": np.arange(len(test_x))}
    images = {name: _file(folder / f"{'t10k' if name == 'test' else 'train'}-{KINDS[0]}-ubyte") for name in numbers}
    where = {name: places_in(images[name], number_B) for name, number_B in numbers.items()}
    origin = Origin(files, SplitRule("stratified", None, fractions, seed), numbers, where)
    return make_splits(taxonomy, InputSchema((1, *train_x.shape[2:])), parts, origin=origin, fitted=fitted)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array in an IDX file of unsigned bytes; `path` may lack its .gz.

    Raises:
        DataError: missing, empty, damaged, or not of unsigned bytes.
    """
    file = _file(path)
    if not file.is_file():
        raise DataError(f"{path} does not exist, nor does {file.name}")
    try:
        with open_gzip(file) if file.suffix == ".gz" else file.open("rb") as content:
            data = content.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be unpacked: {error}") from None
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise DataError(f"{file} is not an IDX file of unsigned bytes (it begins with {data[:4].hex() or 'nothing: it is empty'})")
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    values = np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * data[3])
    if values.size != np.prod(shape, dtype=np.int64) or values.size == 0:
        raise DataError(f"{file} holds {values.size} values; its header says {shape}")
    return values.reshape(shape)


def _file(path: Path) -> Path:
    return path if path.is_file() else path.with_name(path.name + ".gz")


def _pair(folder: Path, name: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    images, labels = (read_idx(folder / f"{name}-{kind}-ubyte") for kind in KINDS)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(f"{folder}: {name} images {images.shape} and labels {labels.shape}; expected (N, H, W) and (N,)")
    return images[:, None].astype(np.float32), labels.astype(np.int64)
