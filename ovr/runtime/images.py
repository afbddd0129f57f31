"""Which images a prediction is asked for: a folder, a CSV with a column of paths, a file, an array. Knows names, not pixels."""

import csv
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ovr.errors import InputError
from ovr.input.image import SUFFIXES, header_problem
from ovr.runtime.rows import read_npy

MAX_SHOWN = 5
LEFT_BY_SYSTEMS = ("thumbs.db", "desktop.ini")  # what file managers leave in folders of images


def read_images(path: Path, *, column: str = "path") -> list[Path] | NDArray[Any]:
    """Return the images that `path` stands for, rows of a model with an image encoder; files are opened as far as their headers.

    A folder stands for every image below it, sorted by path; a .csv with a header for the files in its column `column`, in its
    order, relative to its own folder (a path may lead anywhere: the file is trusted as the command line is); an .npy for the rows
    of its array, read when they are asked for; any other file for itself.

    Raises:
        InputError: no file, an empty folder, a file in it that is no image, a CSV without that column, or files that are missing or
            damaged: all of them are named.
    """
    if path.suffix.lower() == ".npy":
        return read_npy(path)
    if path.is_dir():
        files = image_files(path)
        if not files:
            raise InputError(f"{path} holds no image file (*{', *'.join(SUFFIXES)})")
    elif path.suffix.lower() == ".csv":
        files = _from_csv(path, column)
    else:
        files = [path]
    problems = [f"{file} {problem}" for file in files if (problem := header_problem(file)) is not None]
    if problems:
        raise InputError(f"{len(problems)} of {len(files)} images cannot be used: {shown(problems)}")
    return files


def image_files(folder: Path) -> list[Path]:
    """Return every image file below `folder`, sorted by path; hidden files and what file managers leave behind are passed over.

    Raises:
        InputError: other files, the first of them named.
    """
    found = sorted(
        file
        for file in folder.rglob("*")
        if not file.is_dir()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.name.lower() not in LEFT_BY_SYSTEMS
    )
    if others := [str(file) for file in found if file.suffix.lower() not in SUFFIXES]:
        raise InputError(f"{folder} holds files that are no images (*{', *'.join(SUFFIXES)}): {shown(others)}")
    return found


def shown(problems: list[str]) -> str:
    """Return what a message says of many problems."""
    return "; ".join(problems[:MAX_SHOWN]) + (f"; and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else "")


def _from_csv(path: Path, column: str) -> list[Path]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if header.count(column) != 1:
                raise InputError(f"{path} has columns {header}; expected one {column!r} with the paths of images")
            at, files = header.index(column), []
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header) or not cells[at]:
                    what = f"{len(cells)} cells; the header has {len(header)}" if len(cells) != len(header) else "an empty path"
                    raise InputError(f"{path}, line {reader.line_num} has {what}")
                files.append(path.parent / Path(cells[at]).expanduser())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV: {getattr(error, 'strerror', None) or error}") from None
    if not files:
        raise InputError(f"{path} has a header but no rows")
    return files
