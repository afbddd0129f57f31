"""`ovr predict`: rows in, predictions out, from a bundle or from a server. Needs no torch.

Rows go through in chunks, so that files may be larger than the memory: see `ovr.cli.scoring`, and `ovr.cli.part_files` for what
stays of a run that was killed.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from ovr.cli.launch import Ranks, ranks
from ovr.cli.part_files import counts_of, refused_list, write_parts
from ovr.cli.scoring import ChunkScoring, FromBundle, FromServer, chunk_rows, in_order, scorer_of
from ovr.core.artifact import ModelCard
from ovr.core.files import canonical_json, read_json, sha256_bytes, write_file
from ovr.core.nearest import nearest
from ovr.core.outcomes import OUTPUTS
from ovr.errors import ConfigError, InputError
from ovr.runtime.batch.answers import FORMATS, Answers
from ovr.runtime.batch.inputs import Inputs, inputs_of, open_input, shares
from ovr.runtime.batch.parts import identity, journal_of, partial_folder
from ovr.runtime.batch.shaping import Shaping

ON_ERROR = ("fail", "skip", "empty")
SUCCESS = "_SUCCESS"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one file."""

    num_rows: int
    num_refused: int
    counts: Mapping[str, int]


def run(cfg: DictConfig) -> None:
    """Score every file, and let its answers appear when they are complete.

    Raises:
        ConfigError: neither or both of bundle and server, or a setting that cannot be used.
        InputError: rows that the model cannot take, an output that exists, or parts of another run.
        ServingError: the server is not there, or its model was replaced on the way.
    """
    output = Path(cfg.output)
    _check_settings(cfg, output)
    outputs = _outputs(cfg.outputs)
    rank = ranks(os.environ)
    with ExitStack() as stack:
        top_k = None if output.suffix.lower() in (".jsonl", ".ndjson") else 1  # the others have no top classes
        scorer = scorer_of(cfg, stack, top_k=top_k)
        given = [str(path) for path in cfg.input] if isinstance(cfg.input, ListConfig) else str(cfg.input)
        inputs = inputs_of(given, scorer.card.input.raw_kind)
        if inputs.base is None:
            if rank is not None:
                raise ConfigError(
                    f"{rank.started_by} started {rank.num_ranks} processes, which share an input by its files; input={given} is one"
                    " file: give a folder, a pattern or a list, or start one process"
                )
            if output.exists() and not cfg.overwrite and not (cfg.resume and partial_folder(output).is_dir()):
                raise InputError(f"{output} exists already; choose another place or say overwrite=true")
            result = _score_file(cfg, scorer, inputs.files[0], output, outputs)
            _tell(result, output, scorer.card)
        else:
            _score_files(cfg, scorer, inputs, output, outputs, rank)


def _check_settings(cfg: DictConfig, output: Path) -> None:
    for key, least in (("batch_size", 1), ("part_rows", 1), ("workers", 0)):
        if key == "workers" and cfg.workers is None:
            continue
        if not isinstance(cfg[key], int) or isinstance(cfg[key], bool) or cfg[key] < max(1, least):
            raise ConfigError(f"{key} is {cfg[key]!r}; expected a whole number of at least 1")
    if cfg.on_error not in ON_ERROR:
        raise ConfigError(f"on_error is {cfg.on_error!r}; expected one of {', '.join(ON_ERROR)}")
    if output.suffix.lower() not in FORMATS:
        raise ConfigError(f"output={output} must end in one of {', '.join(FORMATS)}")
    if output.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise ConfigError(f"output={output}: writing Parquet needs pyarrow: pip install 'ovr[data]'") from None
    if not output.absolute().parent.is_dir():
        raise InputError(f"the folder {output.absolute().parent} of output= does not exist")
    if cfg.bundle is not None and output.resolve().is_relative_to(Path(cfg.bundle).resolve()):
        raise InputError(f"{output} is inside the bundle {cfg.bundle}, which must not change; write it somewhere else")


def _outputs(value: Any) -> tuple[str, ...]:
    """Return the names of what is to be written beside the probabilities.

    Raises:
        ConfigError: no list of such names.
    """
    names = list(value) if isinstance(value, ListConfig) else [value]
    if wrong := [name for name in names if name not in OUTPUTS]:
        near = nearest(str(wrong[0]), OUTPUTS)
        raise ConfigError(f"outputs has {wrong[0]!r}; expected a list of some of {', '.join(OUTPUTS)}" + (near and f"; {near}"))
    return tuple(dict.fromkeys(names))


def _score_files(
    cfg: DictConfig, scorer: FromBundle | FromServer, inputs: Inputs, output: Path, outputs: tuple[str, ...], rank: Ranks | None
) -> None:
    """Score this process's share of the files; who comes last says that all are there."""
    if output.is_file():
        raise InputError(f"{output} is a file; the answers to several files need a folder")
    if cfg.overwrite:
        raise ConfigError(f"overwrite=true is of one output file; remove the folder {output} to begin it anew")
    success = output / SUCCESS
    if success.exists() and not cfg.resume:
        raise InputError(f"{output} is complete already; choose another place or remove it")
    places = inputs.outputs(output)
    output.mkdir(exist_ok=True)
    mine = inputs.files if rank is None else shares(inputs.files, rank.num_ranks)[rank.rank]
    for file in mine:
        place = places[file]
        place.parent.mkdir(parents=True, exist_ok=True)
        about = _about(cfg, scorer, file, outputs, None)
        record = _record(place)
        if record.exists():
            if not cfg.resume:
                raise InputError(f"{place} exists already; resume=true goes on with what is not there yet")
            if read_json(record)["about"] != json.loads(canonical_json(about)):
                raise InputError(
                    f"{place} was made of another input, bundle or option; remove the folder {output} to begin it anew"
                )
            continue
        if place.exists() and not (cfg.resume and partial_folder(place).is_dir()):
            raise InputError(f"{place} exists already; choose another place or remove it")
        result = _score_file(cfg, scorer, file, place, outputs, record=record)
        _tell(result, place, scorer.card)
    if all(_record(place).exists() for place in places.values()):
        files = {str(place.relative_to(output)): read_json(_record(place)) for place in places.values()}
        totals = {key: sum(file[key] for file in files.values()) for key in ("num_rows", "num_refused")}
        about_files = {name: {key: file[key] for key in totals} for name, file in files.items()}
        write_file(success, canonical_json({**totals, "bundle_sha256": scorer.card.bundle_sha256, "files": about_files}) + b"\n")
        print(f"{output} is complete: {len(files)} files, {totals['num_rows']} rows, {totals['num_refused']} refused")


def _record(place: Path) -> Path:
    """Return what says that an output in a folder is complete, and of what it is."""
    return place.with_name(f"_{place.name}.done.json")


def _about(
    cfg: DictConfig, scorer: FromBundle | FromServer, source: Path, outputs: tuple[str, ...], images: list[Path] | None
) -> dict[str, Any]:
    """Return what two runs must have in common for the one to go on with what the other has done."""
    names = ("format", "header", "delimiter", "cohort", "path_column", "part_rows", "probabilities")
    options = {name: cfg[name] for name in names} | {"drop": [str(name) for name in cfg.drop], "outputs": list(outputs)}
    card = sha256_bytes(canonical_json(scorer.card.to_json()))
    model = {"bundle_sha256": scorer.card.bundle_sha256, "card_sha256": card, "from_server": cfg.server is not None}
    return {"input": identity(source, files=images), "model": model, "options": options}


def _score_file(
    cfg: DictConfig,
    scorer: FromBundle | FromServer,
    source: Path,
    output: Path,
    outputs: tuple[str, ...],
    record: Path | None = None,
) -> Result:
    """Score one file, from where an earlier run stopped, and make its output of the parts."""
    from tqdm import tqdm

    card = scorer.card
    file, images = open_input(
        source,
        card.input.raw_kind,
        format=cfg.format,
        header=cfg.header,
        delimiter=cfg.delimiter,
        path_column=cfg.path_column,
    )
    if card.cohorts is None and cfg.cohort is not None:
        raise ConfigError(f"cohort={cfg.cohort} is given, but the model has one calibration for all rows; leave it out")
    cohort = None if cfg.cohort is None else str(cfg.cohort)
    shaping = Shaping(file, card, header=cfg.header, drop=tuple(str(name) for name in cfg.drop), cohort=cohort)
    with_empty = cfg.on_error == "empty"
    answers = Answers(output.suffix.lower(), card, cfg.probabilities, outputs, images is not None, with_empty)
    about = _about(cfg, scorer, source, outputs, images)
    # Parts end where chunks do: with chunks of another size, rows would come twice.
    parts: dict[str, Any] = {"chunk_rows": chunk_rows(card)}
    if answers.ending == ".parquet":
        from ovr.runtime.batch.parquet_parts import group_rows

        # Rows of one file may be empty or may not be: what is begun without such rows does not go on with them.
        parts |= {"empty_rows": with_empty, "group_rows": group_rows(answers.schema)}
    with journal_of(output, about | parts, on_error=cfg.on_error, resume=cfg.resume, overwrite=cfg.overwrite) as journal:
        if journal.parts:
            print(f"{source}: {journal.num_rows} rows are done already")
        chunks = file.read(journal.num_rows, chunk_rows(card))
        scoring = ChunkScoring(shaping, scorer, answers, cfg.on_error)
        with ExitStack() as stack:
            bars: list[Any] = []

            def unchanged() -> None:
                if not journal.num_rows:
                    raise InputError(f"{source} holds no rows; expected at least one")
                if identity(source, files=images) != about["input"]:
                    raise InputError(f"{source} was changed while it was read; remove {journal.folder} and begin anew")

            def progress(num_rows: int) -> None:
                if not bars:  # not before there is something to show: an error may come first
                    bar = tqdm(total=file.num_rows, initial=journal.num_rows, desc="predict", unit="row")
                    bars.append(stack.enter_context(bar))
                bars[0].update(num_rows)

            if not journal.is_complete:
                scored = in_order(chunks, scoring)
                write_parts(
                    journal, scored, answers, part_rows=cfg.part_rows, on_error=cfg.on_error, progress=progress, check=unchanged
                )
            for bar in bars:  # of files that do not tell how many rows they have
                bar.total = bar.n
                bar.refresh()
        result = Result(journal.num_rows, journal.num_refused, counts_of(journal))
        if record is not None:
            done = {"num_rows": result.num_rows, "num_refused": result.num_refused, "about": about}
            write_file(record, canonical_json(done) + b"\n")
        journal.discard()
    return result


def _tell(result: Result, output: Path, card: ModelCard) -> None:
    passed, listed = result.num_rows - result.num_refused, ""
    if result.num_refused:
        listed = f", listed in {refused_list(output)}"
    print(f"{passed} predictions in {output}: {passed} rows passed the model's checks, {result.num_refused} were refused{listed}")
    if card.cohorts is not None:
        counts = Counter({"known": 0, "unknown": 0, "missing": 0}) + Counter(result.counts)
        print(
            f"cohorts of column {card.cohorts.column}: {counts['known']} rows known; with the pooled calibration "
            f"{counts['unknown']} of unknown cohorts, {counts['missing']} without one"
        )
