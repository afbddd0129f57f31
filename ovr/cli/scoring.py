"""Chunks of rows scored by a bundle or by a server: read ahead, scored by several threads at once, given back in order.

B = rows of a chunk
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from omegaconf import DictConfig

from ovr.cli.asked_server import card_at, client_settings
from ovr.cli.signatures import required_trust
from ovr.core.artifact import ModelCard
from ovr.core.prediction import Prediction
from ovr.decision.decide import decide
from ovr.errors import ConfigError, InputError, ServingError
from ovr.runtime.batch.answers import Answers, Rows
from ovr.runtime.batch.buffers import Buffers
from ovr.runtime.batch.cells import plain_cells
from ovr.runtime.batch.chunks import Chunk
from ovr.runtime.batch.shaping import ShapedRows, Shaping

if TYPE_CHECKING:
    from ovr.runtime.client import Client
    from ovr.runtime.predictor import EdgePredictor

CHUNK_BYTES = 1 << 24  # of a chunk's rows as numbers and of its probabilities
CHUNK_ROWS = (16, 1 << 15)


class Scorer(Protocol):
    """What predicts, in three steps that may run in threads of their own."""

    @property
    def card(self) -> ModelCard:
        """The model's card."""
        ...

    @property
    def num_workers(self) -> int:
        """How many threads may take a step at once."""
        ...

    def prepare(self, shaped: ShapedRows) -> tuple[ShapedRows, Any]:
        """Return the rows without those that the model refuses, and what `answer` takes (nothing of use where none is left)."""
        ...

    def answer(self, shaped: ShapedRows, prepared: Any) -> Any:
        """Return the model's answer, which `decided` takes."""
        ...

    def decided(self, answer: Any) -> Prediction:
        """Return the predictions."""
        ...


@dataclass(frozen=True, slots=True)
class Scored:
    """A chunk's answers as they are written, and its rows that were refused: by number, where they are and what is wrong."""

    first: int
    num_rows: int
    written: Any  # bytes, or a record batch of Arrow
    refused: list[tuple[int, str, str]] = field(default_factory=list)
    counts: Mapping[str, int] = field(default_factory=dict)  # of cohorts


@dataclass(frozen=True, slots=True)
class FromBundle:
    """Scores with ONNX Runtime in this process. `top_k` is how many top classes are needed, None for those of the policy."""

    predictor: "EdgePredictor"
    batch_size: int
    num_workers: int
    top_k: int | None = None
    buffers: Buffers = field(default_factory=Buffers)

    @property
    def card(self) -> ModelCard:
        """The model's card."""
        return self.predictor.card

    def prepare(self, shaped: ShapedRows) -> tuple[ShapedRows, Any]:
        """See `Scorer`."""
        if shaped.is_checked and self.card.input.encoder is None:
            return shaped, shaped.rows
        try:
            return shaped, self.predictor.encode(shaped.rows)
        except InputError:
            problems = self.predictor.check(shaped.rows)
            if not problems:
                raise
            shaped = shaped.without(problems)
            return shaped, self.predictor.encode(shaped.rows) if len(shaped.kept_B) else None

    def answer(self, shaped: ShapedRows, prepared: Any) -> Any:
        """Return probabilities (B, K)."""
        prob_BK = self.buffers.empty((len(prepared), len(self.card.taxonomy)), np.float32)
        return self.predictor.predict_encoded(prepared, cohort=shaped.cohort, batch_size=self.batch_size, out=prob_BK)

    def decided(self, answer: Any) -> Prediction:
        """See `Scorer`."""
        policy = self.card.policy if self.top_k is None else replace(self.card.policy, top_k=self.top_k)
        return Prediction(self.card, answer, decide(answer, threshold_K=self.card.thresholds, policy=policy))


@dataclass(frozen=True, slots=True)
class FromServer:
    """Scores by asking a server."""

    client: "Client"
    card: ModelCard
    batch_size: int
    num_workers: int = 1

    def prepare(self, shaped: ShapedRows) -> tuple[ShapedRows, Any]:
        """See `Scorer`; what an encoder would refuse only the server knows, which refuses the whole request."""
        return shaped, shaped.rows

    def answer(self, shaped: ShapedRows, prepared: Any) -> Any:
        """Return the server's prediction.

        Raises:
            ServingError: the server refuses the rows, is not there, or serves another model by now.
        """
        prediction = self.client.predict(plain_rows(prepared), cohort=shaped.cohort, batch_size=self.batch_size)
        check_same_model(prediction.card, self.card)
        return prediction

    def decided(self, answer: Any) -> Prediction:
        """See `Scorer`."""
        prediction: Prediction = answer
        return prediction


def scorer_of(cfg: DictConfig, stack: ExitStack, *, top_k: int | None) -> FromBundle | FromServer:
    """Return what predicts, of bundle= or server=; `stack` closes what is opened.

    Args:
        top_k: how many top classes are needed of a bundle, None for those of its policy.

    Raises:
        ConfigError: neither or both of bundle and server, settings of the client that cannot be used, or signatures are required
            of what carries none.
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

        settings = client_settings(cfg.client)
        card = card_at(cfg.server, settings)
        return FromServer(stack.enter_context(Client(cfg.server, **settings)), card, cfg.batch_size)
    from ovr.runtime.predictor import EdgePredictor

    return FromBundle(EdgePredictor(Path(cfg.bundle)), cfg.batch_size, cfg.workers or default_workers(), top_k)


def default_workers() -> int:
    """Return how many processors this process may use, a share of them where torchrun started several on this machine."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def chunk_rows(card: ModelCard) -> int:
    """Return how many rows a chunk has: a power of two that keeps it within some MiB."""
    row_bytes = 4 * (card.input.size + len(card.taxonomy))
    least, most = CHUNK_ROWS
    fit = max(1, CHUNK_BYTES // row_bytes)
    return min(most, max(least, 1 << (fit.bit_length() - 1)))


@dataclass(frozen=True, slots=True)
class ChunkScoring:
    """The three steps from a chunk of one file to answers that are ready to be written, each for threads of its own.

    Rows that are refused are left out or, with on_error "empty", written without a prediction; with "fail" nothing is made of a
    chunk that has any.
    """

    shaping: Shaping
    scorer: Scorer
    answers: Answers
    on_error: str

    def prepare(self, chunk: Chunk) -> "InWork":
        """Shape, check and encode the rows."""
        shaped, prepared = self.shaping.rows(chunk), None
        if len(shaped.kept_B):
            shaped, prepared = self.scorer.prepare(shaped)
        failed = bool(shaped.problems) and self.on_error == "fail"
        return InWork(chunk, shaped, prepared, to_answer=bool(len(shaped.kept_B)) and not failed)

    def answer(self, work: "InWork") -> "InWork":
        """Run the model, or ask the server."""
        if not work.to_answer:
            return work
        try:
            return replace(work, made=self.scorer.answer(work.shaped, work.made))
        except ServingError as error:
            place = self.shaping.where(work.chunk, int(work.shaped.kept_B[0]))
            raise ServingError(f"{error} (the rows sent begin at {place})") from None

    def finish(self, work: "InWork") -> Scored:
        """Decide, and put the answers into the form in which they are written."""
        chunk, shaped = work.chunk, work.shaped
        refused = [(chunk.first + row, self.shaping.where(chunk, row), problem) for row, problem in shaped.problems.items()]
        if refused and self.on_error == "fail":
            return Scored(chunk.first, chunk.num_rows, None, refused)
        prediction = self.scorer.decided(work.made) if work.to_answer else None
        kept_B, number_B = np.ones(len(shaped.kept_B), bool), chunk.first + shaped.kept_B
        if self.on_error == "empty":
            number_B = np.arange(chunk.first, chunk.first + chunk.num_rows)
            kept_B = np.isin(number_B, chunk.first + shaped.kept_B)
        files = None
        if self.answers.with_files and chunk.values is not None:
            files = [_name(chunk.values[row], self.shaping.file.path) for row in shaped.kept_B.tolist()]
        counts: Mapping[str, int] = {}
        if self.scorer.card.cohorts is not None:
            cohort = shaped.cohort if isinstance(shaped.cohort, list) else [shaped.cohort] * len(shaped.kept_B)
            counts = self.scorer.card.cohorts.count(cohort)
        return Scored(chunk.first, chunk.num_rows, self.answers.write(Rows(number_B, kept_B, prediction, files)), refused, counts)


@dataclass(frozen=True, slots=True)
class InWork:
    """A chunk between two steps: its rows, and what the last step made of them."""

    chunk: Chunk
    shaped: ShapedRows
    made: Any
    to_answer: bool


def in_order(chunks: Iterator[Chunk], scoring: ChunkScoring) -> Iterator[Scored]:
    """Yield the answers to each chunk, in order, while others go through the steps and the next one is read.

    Each step has as many threads as the scorer has workers, so that ONNX Runtime waits for nothing where there are processors for
    the others. At most two chunks a worker, and three more, are held. An error of reading comes after the chunks before it.
    """
    num_workers = scoring.scorer.num_workers
    pending: deque[Future[Scored]] = deque()
    failed: Exception | None = None
    reading, *pools = (ThreadPoolExecutor(size, "ovr-step") for size in (1, num_workers, num_workers, num_workers))
    preparing, answering, finishing = pools
    try:
        following: Future[Chunk | None] | None = reading.submit(next, chunks, None)
        while following is not None or pending:
            if following is not None and len(pending) <= 2 * num_workers:
                try:
                    chunk = following.result()
                except Exception as error:
                    failed, chunk = error, None
                following = None if chunk is None else reading.submit(next, chunks, None)
                if chunk is not None:
                    prepared = preparing.submit(scoring.prepare, chunk)
                    answered = answering.submit(_after, scoring.answer, prepared)
                    pending.append(finishing.submit(_after, scoring.finish, answered))
                continue
            yield pending.popleft().result()
        if failed is not None:
            raise failed
    finally:
        for pool in (reading, *pools):
            pool.shutdown(cancel_futures=True)


def _after(step: Callable[[Any], Any], before: Future[Any]) -> Any:
    return step(before.result())


def plain_rows(rows: Any) -> Any:
    """Return rows with their columns as a client takes them: lists of Python values, or arrays."""
    return {name: plain_cells(cells) for name, cells in rows.items()} if isinstance(rows, dict) else rows


def check_same_model(answered: ModelCard, asked: ModelCard) -> None:
    """Raise ServingError unless both cards are of one bundle: a file must not mix the answers of two."""
    if answered.bundle_sha256 != asked.bundle_sha256:
        raise ServingError(
            f"the server's model was replaced on the way: bundle {answered.bundle_sha256[:12]} answers, "
            f"{asked.bundle_sha256[:12]} was asked; nothing is written, repeat the call"
        )


def _name(file: Any, source: Path) -> str:
    """Return the name of an image file as seen from the folder of the input."""
    return os.path.relpath(file, source if source.is_dir() else source.parent)
