"""`ovr predict`: rows in, predictions out, from a bundle or from a server. Needs no torch."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig

from ovr.cli.answers import FORMATS, writer
from ovr.cli.signatures import required_trust
from ovr.core.artifact import ModelCard
from ovr.core.nearest import nearest
from ovr.core.outcomes import OUTPUTS
from ovr.core.prediction import Prediction
from ovr.errors import ConfigError, InputError, ServingError

if TYPE_CHECKING:
    from ovr.runtime.predictor import EdgePredictor

MAX_SHOWN = 5  # rows that an error tells of


def run(cfg: DictConfig) -> None:
    """Read and check all rows, predict them in batches, and write the answers as one file that appears when it is complete.

    Raises:
        ConfigError: neither or both of bundle and server, or a setting that cannot be used.
        InputError: rows that the model cannot take, or an output file that exists.
        ServingError: the server is not there, or its model was replaced on the way.
    """
    from tqdm import tqdm

    from ovr.core.files import staged_file
    from ovr.runtime.images import read_images
    from ovr.runtime.record_files import TextColumns, read_placed_records
    from ovr.runtime.rows import read_rows

    output = Path(cfg.output)
    if not isinstance(cfg.batch_size, int) or cfg.batch_size < 1:
        raise ConfigError(f"batch_size is {cfg.batch_size!r}; expected a whole number of at least 1")
    if output.suffix.lower() not in FORMATS:
        raise ConfigError(f"output={output} must end in one of {', '.join(FORMATS)}")
    outputs = _outputs(cfg.outputs)
    if output.exists() and not cfg.overwrite:
        raise InputError(f"{output} exists already; choose another place or say overwrite=true")
    if not output.absolute().parent.is_dir():
        raise InputError(f"the folder {output.absolute().parent} of output= does not exist")
    if cfg.bundle is not None and output.resolve().is_relative_to(Path(cfg.bundle).resolve()):
        raise InputError(f"{output} is inside the bundle {cfg.bundle}, which must not change; write it somewhere else")
    with ExitStack() as stack:
        card, prepare, predict = _model(cfg, stack)
        source = Path(cfg.input)
        how = {"format": cfg.format, "header": cfg.header, "delimiter": cfg.delimiter, "drop": [str(name) for name in cfg.drop]}
        kind = card.input.raw_kind
        cohort = _cohorts(cfg, card, source)
        if isinstance(cohort, list) and card.cohorts is not None:
            column = card.cohorts.column
            # A table's encoder knows by itself whether it takes the column.
            how["drop"] += [] if kind == "table" or column in card.input.columns else [column]
        rows: Any
        files = None
        where: Callable[[int], str] = "row {}".format
        if kind is None:
            rows = read_rows(source, card.input, **how)
        elif kind == "image":
            rows = read_images(source, column=cfg.path_column)
            files = _names(rows, source)
        else:
            rows, where = read_placed_records(source, kind, text=TextColumns.of(card.input.encoder), **how)
        rows = prepare(rows, where)
        file = stack.enter_context(staged_file(output))
        bar = stack.enter_context(tqdm(total=len(rows), desc="predict", unit="row"))
        write = writer(output.suffix.lower(), file, card, probabilities=cfg.probabilities, outputs=outputs, files=files)
        for start in range(0, len(rows), cfg.batch_size):
            here = slice(start, start + cfg.batch_size)
            of_rows = cohort[here] if isinstance(cohort, list) else cohort
            prediction = predict(rows[here], cohort=of_rows, batch_size=cfg.batch_size)
            if prediction.card != card:
                raise ServingError(
                    f"the model at {cfg.server} was replaced after {start} rows; nothing is written, repeat the call"
                )
            write(prediction)
            bar.update(len(prediction))
    print(f"{len(rows)} predictions in {output}: {len(rows)} rows passed the model's checks, 0 were refused")
    if card.cohorts is not None:
        counts = card.cohorts.count(cohort if isinstance(cohort, list) else [cohort] * len(rows))
        print(
            f"cohorts of column {card.cohorts.column}: {counts['known']} rows known; with the pooled calibration "
            f"{counts['unknown']} of unknown cohorts, {counts['missing']} without one"
        )


def _outputs(value: Any) -> list[str]:
    """Return the names of what is to be written beside the probabilities.

    Raises:
        ConfigError: no list of such names.
    """
    names = list(value) if isinstance(value, ListConfig) else [value]
    if wrong := [name for name in names if name not in OUTPUTS]:
        near = nearest(str(wrong[0]), OUTPUTS)
        raise ConfigError(f"outputs has {wrong[0]!r}; expected a list of some of {', '.join(OUTPUTS)}" + (near and f"; {near}"))
    return list(dict.fromkeys(names))


def _cohorts(cfg: DictConfig, card: ModelCard, source: Path) -> list[str | None] | str | None:
    """Return the cohort of the rows of a model that has any: `cohort=` for all, else the file's column; None where it has none.

    Raises:
        ConfigError: `cohort=` for a model without cohorts.
        InputError: a cell that is neither text nor number.
    """
    from ovr.runtime.cohort_rows import cohort_names
    from ovr.runtime.record_files import read_column

    if card.cohorts is None:
        if cfg.cohort is not None:
            raise ConfigError(f"cohort={cfg.cohort} is given, but the model has one calibration for all rows; leave it out")
        return None
    if cfg.cohort is not None:
        return str(cfg.cohort)
    cells = read_column(source, card.cohorts.column, format=cfg.format, header=cfg.header, delimiter=cfg.delimiter)
    return None if cells is None else cohort_names(cells, len(cells))


def check_same_model(answered: ModelCard, asked: ModelCard, *, num_done: int) -> None:
    """Raise ServingError unless both cards are of one bundle: a file must not mix the answers of two."""
    if answered.bundle_sha256 != asked.bundle_sha256:
        raise ServingError(
            f"the server's model was replaced after {num_done} rows: bundle {answered.bundle_sha256[:12]} answers, "
            f"{asked.bundle_sha256[:12]} was asked; nothing is written, repeat the call"
        )


def _names(rows: Any, source: Path) -> list[str] | None:
    """Return the name of each image file as seen from the folder of the input, None of an array."""
    if not isinstance(rows, list):
        return None
    root = source if source.is_dir() else source.parent
    return [os.path.relpath(file, root) for file in rows]


def _prepared(predictor: "EdgePredictor", rows: Any, where: Callable[[int], str]) -> Any:
    """Return rows as the network takes them.

    Raises:
        InputError: some are refused; how many, and where the first of them are.
    """
    try:
        return predictor.encode(rows)
    except InputError:
        problems = predictor.check(rows)
        if not problems:
            raise
        shown = "; ".join(f"{where(row)}: {problem}" for row, problem in list(problems.items())[:MAX_SHOWN])
        more = f"; and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
        raise InputError(
            f"{len(rows) - len(problems)} of {len(rows)} rows passed the model's checks, {len(problems)} were refused: "
            f"{shown}{more}"
        ) from None


def _model(cfg: DictConfig, stack: ExitStack) -> tuple[ModelCard, Callable[..., Any], Callable[..., Prediction]]:
    """Return the model card, what checks all rows, and the function from those to predictions; `stack` closes what is opened."""
    if (cfg.bundle is None) == (cfg.server is None):
        got = "neither" if cfg.bundle is None else "both"
        raise ConfigError(f"give bundle=PATH (a bundle or a fused ONNX file) or server=URL; got {got}")
    trust = required_trust(cfg)
    if trust is not None:
        from ovr.core.bundle import open_bundle
        from ovr.serving.signing import check_signatures

        if cfg.bundle is None or not Path(cfg.bundle).is_dir():
            raise ConfigError("require_signature=true needs bundle=DIR: neither a server nor a fused ONNX file carries signatures")
        check_signatures(open_bundle(Path(cfg.bundle)), trust)
    if cfg.server is not None:
        from ovr.runtime.client import Client

        client = stack.enter_context(Client(cfg.server))
        return client.card(), lambda rows, _: rows, client.predict
    from ovr.runtime.predictor import EdgePredictor

    predictor = EdgePredictor(Path(cfg.bundle))
    if predictor.card.input.raw_kind == "image":  # decoded batch by batch: all of them might not fit the memory
        return predictor.card, lambda rows, _: rows, predictor.predict
    return predictor.card, partial(_prepared, predictor), partial(predictor.predict, encoded=True)
