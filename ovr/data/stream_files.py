"""What a stream of shards keeps on the disk, so that all rows are gone through once and not in every run and process.

Knows what is counted and copied, not how it is used. A file's name is a digest of all that it is made of; any may be deleted.

N = rows
"""

import fcntl
import json
import logging
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.files import canonical_json, sha256_bytes, staged_file
from ovr.core.packed import check_arrays
from ovr.data.entries import Entries
from ovr.data.labels import Labels
from ovr.data.lazy import I64, LazyArray
from ovr.data.moments import Moments
from ovr.data.named_labels import LabelReader, NamedLabels
from ovr.data.origin import SourceFile, source_folder
from ovr.data.parquet import ParquetRows
from ovr.data.shards import RowGroups
from ovr.errors import DataError

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class StreamFiles:
    """A folder of what is kept."""

    folder: Path

    def index(
        self, files: list[Path], *, columns: list[str], target: str, others: list[str]
    ) -> tuple[str, RowGroups, NamedLabels, SourceFile]:
        """Return (key, row groups, labels, digest) of the files; their labels are gone through once, their rows are not.

        The key is of each file's path, size and time of change; the digest, for the data card, of what they hold.

        Raises:
            DataError: files that cannot be read, differ in their columns, or hold no labels.
        """
        stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        key = sha256_bytes(canonical_json([SCHEMA_VERSION, stats, columns, target, others]))

        def make(path: Path) -> None:
            groups = RowGroups.of(files, columns, [target, *others])
            reader = LabelReader(_shown(files))
            for file in files:
                here = ParquetRows(file, ())
                here.add_labels(reader, target)
                here.close()
            named = reader.result()
            about = {"columns": groups.columns, "in_list": groups.in_list, "width": groups.width}
            about |= {"ids": named.ids, "numbers": named.numbers, "source": asdict(_source(files))}
            with staged_file(path) as out:
                np.savez(
                    out,
                    about=np.frombuffer(canonical_json(about), np.uint8),
                    file_G=groups.file_G,
                    group_G=groups.group_G,
                    start_G1=groups.start_G1,
                    start_N1=named.labels.positives.start_N1,
                    column_P=named.labels.positives.column_P,
                )
            log.info("counted the labels of %d rows in %d files; kept in %s", len(named), len(files), path)

        arrays = self._kept(f"{key}.index.npz", make)
        about = json.loads(arrays["about"].tobytes())
        groups = RowGroups(
            tuple(files),
            tuple(about["columns"]),
            about["in_list"],
            about["width"],
            arrays["file_G"],
            arrays["group_G"],
            arrays["start_G1"],
        )
        ids = tuple(about["ids"])
        labels = Labels(Entries(arrays["start_N1"], arrays["column_P"]), Entries.none(len(groups)), len(ids))
        return key, groups, NamedLabels(labels, ids, _shown(files), about["numbers"]), SourceFile(**about["source"])

    def rows(self, key: str, make: Callable[[], dict[str, I64]]) -> dict[str, I64]:
        """Return the rows of each split that `key` stands for, drawn once."""

        def write(path: Path) -> None:
            rows = make()
            with staged_file(path) as out:
                np.savez(out, **rows)  # type: ignore[arg-type]  # of splits, none of which is called allow_pickle

        return self._kept(f"{key}.rows.npz", write)

    def moments(self, key: str, make: Callable[[], Moments]) -> Moments:
        """Return the moments that `key` stands for, made once."""

        def write(path: Path) -> None:
            moments = make()
            with staged_file(path) as out:
                np.savez(out, num_rows=moments.num_rows, mean=moments.mean, squares=moments.squares)

        arrays = self._kept(f"{key}.moments.npz", write)
        return Moments(int(arrays["num_rows"]), arrays["mean"], arrays["squares"])

    def copies(self, key: str, x: LazyArray, rows: Mapping[str, I64], block_rows: int) -> dict[str, NDArray[np.float32]]:
        """Return copies of some rows of `x` (ascending), each mapped to a file of its own; `x` is gone through once for all."""
        paths = {name: self.folder / f"{key}.{name}.npy" for name in rows}
        with self._locked(key):
            if not all(path.is_file() for path in paths.values()):
                with ExitStack() as stack:
                    files = {name: stack.enter_context(staged_file(path)) for name, path in paths.items()}
                    for name, out in files.items():
                        header = {"descr": "<f4", "fortran_order": False, "shape": (len(rows[name]), *x.shape[1:])}
                        np.lib.format.write_array_header_1_0(out, header)
                    for start in range(0, len(x), block_rows):
                        for name, out in files.items():
                            here = slice(*np.searchsorted(rows[name], (start, start + block_rows)))
                            if here.start < here.stop:
                                out.write(np.ascontiguousarray(x[rows[name][here]], dtype="<f4").data)
                log.info("copied the rows of %s, which have no files, to %s", ", ".join(rows), self.folder)
        return {name: np.load(path, mmap_mode="r") for name, path in paths.items()}

    def _kept(self, name: str, make: Callable[[Path], None]) -> dict[str, NDArray[Any]]:
        """Return the arrays of a file, which `make` writes if it is not there."""
        path = self.folder / name
        if not path.is_file():
            with self._locked(name):
                if not path.is_file():
                    make(path)
        try:
            check_arrays(path)
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}, which is kept from an earlier run, is damaged ({error}); delete it") from None

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Let one process of those that share the folder go on, and the others wait for it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / f"{name}.lock").open("wb")
        except OSError as error:
            raise DataError(f"data.source.cache_dir {self.folder} cannot be written: {error.strerror}") from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _source(files: list[Path]) -> SourceFile:
    whole = [file.resolve() for file in files]
    return source_folder(Path(os.path.commonpath([file.parent for file in whole])), whole)


def _shown(files: list[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} to {files[-1].name}"
