"""Which files `input=` stands for, of what format, and where the answers to each go. Knows names, not what is in them."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ovr.errors import InputError
from ovr.input.records import IMAGE, TEXTS
from ovr.runtime.batch.chunks import RowFile, listed_file, open_rows
from ovr.runtime.images import read_images
from ovr.runtime.record_files import FORMATS, SPARSE

NUMBERS = ("csv", "tsv", "jsonl", "npy", "parquet")  # formats of rows that are given as the network takes them
ENDINGS = (*FORMATS, ".npy")


@dataclass(frozen=True, slots=True)
class Inputs:
    """Files, and the folder that their names are told from; one file that was named alone has `base` None."""

    files: tuple[Path, ...]
    base: Path | None = None

    def outputs(self, output: Path) -> dict[Path, Path]:
        """Return where the answers to each file go: to `output`, or below it, under the file's name with its ending replaced.

        Raises:
            InputError: two files would go to one place, or there are files below `output` that no input stands for.
        """
        if self.base is None:
            return {self.files[0]: output}
        places = {file: output / _bare(Path(os.path.relpath(file, self.base))).with_suffix(output.suffix) for file in self.files}
        if twice := [place for place, count in Counter(places.values()).items() if count > 1]:
            both = ", ".join(str(file) for file, place in places.items() if place == twice[0])
            raise InputError(f"the answers to {both} would all be {twice[0]}; rename one of them, or score them apart")
        if output.is_dir():
            found = (file for file in output.rglob(f"*{output.suffix}") if not _hidden(file, output))
            if others := sorted(set(found) - set(places.values())):
                raise InputError(f"{output} holds {others[0].relative_to(output)}, no answer to these files; choose another output")
        return places


def inputs_of(given: str | Sequence[str], kind: str | None) -> Inputs:
    """Return the files that `given` names: one path, several, a pattern with * ? [ or **, or a folder for all files of rows in it.

    A folder of images is one input. Files come in the order of their names, those of a list in its order; hidden ones, and those
    that begin with _, are passed over in folders.

    Raises:
        InputError: nothing is found.
    """
    if not isinstance(given, str):
        files = [Path(file) for file in given]
        if len(set(files)) < len(files) or not files:
            raise InputError(f"input is a list of {len(files)} files, {len(set(files))} different ones; expected each once")
        return Inputs(tuple(files), _base(files))
    path = Path(given)
    if path.is_dir() and kind != IMAGE:
        files = sorted(f for f in path.rglob("*") if f.is_file() and not _hidden(f, path) and _ending(f) in ENDINGS)
        if not files:
            raise InputError(f"{path} holds no file of rows (*{', *'.join(ENDINGS)})")
        return Inputs(tuple(files), path)
    if not path.exists() and any(character in given for character in "*?["):
        files = [Path(file) for file in sorted(glob.glob(given, recursive=True)) if Path(file).is_file()]
        if not files:
            raise InputError(f"input={given} matches no file")
        return Inputs(tuple(files), _base(files))
    return Inputs((path,))


def open_input(
    path: Path, kind: str | None, *, format: str | None, header: bool, delimiter: str | None, path_column: str
) -> tuple[RowFile, list[Path] | None]:
    """Return the rows of one input, and the files that they are, where each is one.

    Raises:
        InputError: of no known format, or what `open_rows` and `read_images` refuse.
    """
    if kind == IMAGE and path.suffix.lower() != ".npy":
        images = read_images(path, column=path_column)
        assert isinstance(images, list)
        return listed_file(path, images), images
    known = format or {**FORMATS, ".npy": "npy"}.get(_ending(path))
    formats = NUMBERS if kind is None else ("npy",) if kind == IMAGE else tuple(dict.fromkeys(FORMATS.values()))
    packed = path.suffix.lower() == ".gz" and known in ("npy", "parquet")
    if known not in formats or packed or (known == "txt" and kind not in (*TEXTS, SPARSE)):
        raise InputError(
            f"{path} is of no known format ({', '.join(sorted(formats))}), got {known or path.suffix!r}; say which with format="
        )
    return open_rows(path, known, kind=kind, header=header, delimiter=delimiter), None


def shares(files: Sequence[Path], num_ranks: int) -> list[list[Path]]:
    """Return which files each of several processes scores: each, the largest first, goes to who has the least so far."""
    sizes = {file: file.stat().st_size for file in files}
    shared: list[list[Path]] = [[] for _ in range(num_ranks)]
    for file in sorted(files, key=lambda file: (-sizes[file], str(file))):
        least = min(range(num_ranks), key=lambda rank: (sum(sizes[other] for other in shared[rank]), rank))
        shared[least].append(file)
    return [sorted(share, key=list(files).index) for share in shared]


def _base(files: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([file.absolute().parent for file in files]))


def _bare(file: Path) -> Path:
    """Return the name without .gz."""
    return file.with_suffix("") if file.suffix.lower() == ".gz" else file


def _ending(file: Path) -> str:
    return _bare(file).suffix.lower()


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)
