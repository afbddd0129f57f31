"""Chunks of rows scored by a bundle or by a server: read ahead, scored by several threads at once, given back in order.

B = rows of a chunk
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from omegaconf import DictConfig

from ovr.cli.answers import Answers, Rows
from ovr.cli.signatures import required_trust
from ovr.core.artifact import ModelCard
from ovr.core.prediction import Prediction
from ovr.core.schema import check_rows
from ovr.errors import ConfigError, InputError, ServingError
from ovr.input.encoder import encoder_from_json
from ovr.input.row_problems import row_problems
from ovr.runtime.batch.chunks import Chunk
from ovr.runtime.batch.shaping import ShapedRows, Shaping

CHUNK_BYTES = 1 << 23  # of a chunk's rows as numbers and of what is made of its probabilities
CHUNK_ROWS = (16, 1 << 15)


class Scorer(Protocol):
    """What predicts."""

    @property
    def card(self) -> ModelCard:
        """The model's card."""
        ...

    @property
    def num_workers(self) -> int:
        """How many threads may call it at once."""
        ...

    def score(self, shaped: ShapedRows, *, check: bool) -> tuple[ShapedRows, Prediction | None]:
        """Return the rows without those that the model refuses, and the predictions of the others (None where none is left).

        Args:
            check: whether a server's rows are checked before they are sent; where they are not, it refuses a whole request.
        """
        ...


@dataclass(frozen=True, slots=True)
class Scored:
    """A chunk's answers as they are written, and its rows that were refused: by number, where they are and what is wrong."""

    first: int
    num_rows: int
    written: Any  # bytes, or an Arrow table
    refused: list[tuple[int, str, str]] = field(default_factory=list)
    counts: Mapping[str, int] = field(default_factory=dict)  # of cohorts


@dataclass(frozen=True, slots=True)
class FromBundle:
    """Scores with ONNX Runtime in this process."""

    predictor: Any
    batch_size: int
    num_workers: int

    @property
    def card(self) -> ModelCard:
        """The model's card."""
        card: ModelCard = self.predictor.card
        return card

    def score(self, shaped: ShapedRows, *, check: bool) -> tuple[ShapedRows, Prediction | None]:
        """See `Scorer`; all rows are checked."""
        try:
            x = self.predictor.encode(shaped.rows)
        except InputError:
            problems = self.predictor.check(shaped.rows)
            if not problems:
                raise
            shaped = shaped.without(problems)
            if not len(shaped.kept_B):
                return shaped, None
            x = self.predictor.encode(shaped.rows)
        return shaped, self.predictor.predict(x, cohort=shaped.cohort, encoded=True, batch_size=self.batch_size)


@dataclass(frozen=True, slots=True)
class FromServer:
    """Scores by asking a server."""

    client: Any
    card: ModelCard
    batch_size: int
    num_workers: int = 1

    def score(self, shaped: ShapedRows, *, check: bool) -> tuple[ShapedRows, Prediction | None]:
        """See `Scorer`.

        Raises:
            ServingError: the server refuses the rows, is not there, or serves another model by now.
        """
        if self.card.input.raw_kind is None or check:
            shaped = shaped.without(self._problems(shaped.rows))
            if not len(shaped.kept_B):
                return shaped, None
        prediction = self.client.predict(shaped.rows, cohort=shaped.cohort, batch_size=self.batch_size)
        return shaped, prediction

    def _problems(self, rows: Any) -> dict[int, str]:
        encoder = encoder_from_json(self.card.input.encoder)
        try:
            _ = check_rows(rows, self.card.input) if encoder is None else encoder.encode(rows)
        except InputError:
            size = len(next(iter(rows.values()))) if isinstance(rows, dict) else len(rows)

            def encode(some: slice) -> Any:
                part = {name: cells[some] for name, cells in rows.items()} if isinstance(rows, dict) else rows[some]
                return check_rows(part, self.card.input) if encoder is None else encoder.encode(part)

            return row_problems(size, encode)
        return {}


def scorer_of(cfg: DictConfig, stack: ExitStack) -> FromBundle | FromServer:
    """Return what predicts, of bundle= or server=; `stack` closes what is opened.

    Raises:
        ConfigError: neither or both of bundle and server, or signatures are required of what carries none.
        ArtifactError: a bundle that is damaged, or not signed as required.
        ServingError: the server is not there.
    """
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
        return FromServer(client, client.card(), cfg.batch_size)
    from ovr.runtime.predictor import EdgePredictor

    return FromBundle(EdgePredictor(Path(cfg.bundle)), cfg.batch_size, cfg.workers or default_workers())


def default_workers() -> int:
    """Return how many processors this process may use, a share of them where torchrun started several on this machine."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def chunk_rows(card: ModelCard) -> int:
    """Return how many rows a chunk has: a power of two that keeps it within some MiB."""
    row_bytes = 4 * card.input.size + 24 * len(card.taxonomy)
    least, most = CHUNK_ROWS
    fit = max(1, CHUNK_BYTES // row_bytes)
    return min(most, max(least, 1 << (fit.bit_length() - 1)))


def score_chunk(chunk: Chunk, shaping: Shaping, scorer: Scorer, answers: Answers, *, on_error: str) -> Scored:
    """Return the answers to a chunk, ready to be written; refused rows are left out or, with on_error "empty", empty."""
    shaped = shaping.rows(chunk)
    prediction = None
    if len(shaped.kept_B):
        try:
            shaped, prediction = scorer.score(shaped, check=on_error != "fail")
        except ServingError as error:
            raise ServingError(f"{error} (the rows sent begin at {shaping.where(chunk, int(shaped.kept_B[0]))})") from None
    if prediction is not None:
        check_same_model(prediction.card, scorer.card, num_done=chunk.first)
    refused = [(chunk.first + row, shaping.where(chunk, row), problem) for row, problem in shaped.problems.items()]
    if refused and on_error == "fail":
        return Scored(chunk.first, chunk.num_rows, None, refused)
    kept_B = np.ones(len(shaped.kept_B), bool)
    number_B = chunk.first + shaped.kept_B
    if on_error == "empty":
        number_B = np.arange(chunk.first, chunk.first + chunk.num_rows)
        kept_B = np.isin(number_B, chunk.first + shaped.kept_B)
    files = None
    if answers.with_files and chunk.values is not None:
        files = [_name(chunk.values[row], shaping.file.path) for row in shaped.kept_B.tolist()]
    written = answers.write(Rows(number_B, kept_B, prediction, files))
    counts: Mapping[str, int] = {}
    if scorer.card.cohorts is not None:
        cohort = shaped.cohort if isinstance(shaped.cohort, list) else [shaped.cohort] * len(shaped.kept_B)
        counts = scorer.card.cohorts.count(cohort)
    return Scored(chunk.first, chunk.num_rows, written, refused, counts)


def in_order(chunks: Iterator[Chunk], score: Callable[[Chunk], Scored], *, num_workers: int) -> Iterator[Scored]:
    """Yield what `score` makes of each chunk, in order, while the next ones are scored and one more is read.

    At most `num_workers` + 3 chunks are held. An error of reading comes after the chunks that were read before it.
    """
    pending: deque[Future[Scored]] = deque()
    failed: Exception | None = None
    reading, scoring = ThreadPoolExecutor(1, "ovr-read"), ThreadPoolExecutor(num_workers, "ovr-score")
    try:
        following: Future[Chunk | None] | None = reading.submit(next, chunks, None)
        while following is not None or pending:
            if following is not None and len(pending) <= num_workers:
                try:
                    chunk = following.result()
                except Exception as error:
                    failed, chunk = error, None
                following = None if chunk is None else reading.submit(next, chunks, None)
                if chunk is not None:
                    pending.append(scoring.submit(score, chunk))
                continue
            yield pending.popleft().result()
        if failed is not None:
            raise failed
    finally:
        for pool in (reading, scoring):
            pool.shutdown(cancel_futures=True)


def check_same_model(answered: ModelCard, asked: ModelCard, *, num_done: int) -> None:
    """Raise ServingError unless both cards are of one bundle: a file must not mix the answers of two."""
    if answered.bundle_sha256 != asked.bundle_sha256:
        raise ServingError(
            f"the server's model was replaced after {num_done} rows: bundle {answered.bundle_sha256[:12]} answers, "
            f"{asked.bundle_sha256[:12]} was asked; nothing is written, repeat the call"
        )


def _name(file: Any, source: Path) -> str:
    """Return the name of an image file as seen from the folder of the input."""
    return os.path.relpath(file, source if source.is_dir() else source.parent)
