"""`python -m ovr.edge MODEL ROWS`: a file of rows in, predictions out, with numpy and onnxruntime alone.

`python -m ovr.edge apply PATCH DIR`: an edge export made another by a patch of `ovr edge diff`, with numpy alone.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from ovr.errors import InputError, OvrError

CHUNK_ROWS = 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (by default the process's own) and return the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    args = _apply_parser().parse_args(arguments[1:]) if arguments[:1] == ["apply"] else _parser().parse_args(arguments)
    try:
        if "patch" in args:
            _apply(args)
        elif args.output is None:
            _predict(args, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        else:
            _predict_to(args, Path(args.output))
    except OvrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # who reads has read enough
        sys.stderr.close()
        return 1
    except OSError as error:
        where = error.filename or getattr(args, "output", None) or "standard output"
        print(f"error: {where} cannot be written or read: {error.strerror or error}", file=sys.stderr)
        if getattr(args, "output", "") is None:  # what is left of them would fail again at the end of the process
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ovr.edge",
        description="Predict the rows of a file. `python -m ovr.edge apply PATCH DIR` applies a patch instead; see its --help.",
    )
    parser.add_argument("model", metavar="MODEL", help="what `ovr export target=edge` wrote, a bundle, or a fused ONNX file")
    parser.add_argument("rows", metavar="ROWS", help=".csv, .tsv, .jsonl, .npy; of texts and columns also .json and .txt")
    parser.add_argument("--output", metavar="FILE", help="a new file instead of standard output")
    parser.add_argument("--format", choices=("csv", "jsonl"), default="csv", help="of the predictions (default: csv)")
    parser.add_argument(
        "--header", choices=("true", "false"), default="true", help="whether a CSV begins with names (default: true)"
    )
    parser.add_argument("--cohort", help="of all rows, for models with a calibration a cohort")
    parser.add_argument("--drop", metavar="COLUMN", action="append", default=[], help="a column that the model does not take")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime; 0: as many as there are cores (default: 1)")
    _add_keys(parser, "the model, an edge export")
    return parser


def _apply_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ovr.edge apply", description="Make an edge export another, at once and byte for byte, by a patch of it."
    )
    parser.add_argument("patch", metavar="PATCH", help="a file that `ovr edge diff` wrote")
    parser.add_argument("directory", metavar="DIR", help="what `ovr export target=edge` wrote")
    parser.add_argument("--out", metavar="NEW", help="a new directory for what comes of it; by default it takes the place of DIR")
    _add_keys(parser, "the patch")
    return parser


def _add_keys(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--require-signature",
        metavar="KEY.pub",
        type=Path,
        action="append",
        default=[],
        help=f"a public key, or one of several, that must have signed {what}",
    )


def _apply(args: argparse.Namespace) -> None:
    try:
        from ovr.edge.apply import apply_patch
    except ModuleNotFoundError as error:
        if error.name != "fcntl":
            raise
        raise InputError("patches need Linux, or with --out another POSIX system; copy the new export whole") from None
    out = None if args.out is None else Path(args.out)
    try:
        applied = apply_patch(Path(args.patch), Path(args.directory), out=out, trusted_keys=args.require_signature)
    except OSError as error:
        raise InputError(f"{error.filename or args.directory} cannot be written or read: {error.strerror}") from None
    print(applied.told())


def _predict_to(args: argparse.Namespace, output: Path) -> None:
    try:
        out = output.open("xb")
    except FileExistsError:
        raise InputError(f"{output} exists already; choose another file") from None
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror}") from None
    try:
        with out:  # on a full disk what fails may be to close it
            _predict(args, out)
    except BaseException:
        output.unlink(missing_ok=True)
        raise


def _predict(args: argparse.Namespace, out: BinaryIO) -> None:
    from ovr.input.records import IMAGE
    from ovr.runtime.batch.answers import Answers, Rows
    from ovr.runtime.batch.inputs import open_input
    from ovr.runtime.batch.shaping import Shaping
    from ovr.runtime.predictor import EdgePredictor

    predictor = EdgePredictor(args.model, num_threads=args.threads, trusted_keys=args.require_signature)
    kind = predictor.card.input.raw_kind
    header = args.header == "true"
    if Path(args.rows).is_dir() and kind != IMAGE:
        raise InputError(f"{args.rows} is a directory; expected a file of rows, such as {Path(args.rows) / 'rows.csv'}")
    file, images = open_input(Path(args.rows), kind, format=None, header=header, delimiter=None, path_column="path")
    shaping = Shaping(file, predictor.card, header=header, drop=tuple(args.drop), cohort=args.cohort)
    answers = Answers(f".{args.format}", predictor.card, with_files=images is not None)
    out.write(answers.head)
    num_rows = 0
    for chunk in file.read(0, CHUNK_ROWS):
        shaped = shaping.rows(chunk)
        if not shaped.problems:
            shaped.problems = predictor.check(shaped.rows)
        if shaped.problems:
            row, problem = next(iter(shaped.problems.items()))
            raise InputError(f"{shaping.where(chunk, row)}: {problem}")
        prediction = predictor.predict(shaped.rows, cohort=shaped.cohort)
        number_B = chunk.first + shaped.kept_B
        files = None if images is None else [str(images[row]) for row in number_B.tolist()]
        out.write(answers.write(Rows(number_B, shaped.kept_B >= 0, prediction, files)))
        num_rows += chunk.num_rows
    if not num_rows:
        raise InputError(f"{args.rows} holds no rows; expected at least one")


if __name__ == "__main__":
    sys.exit(main())
