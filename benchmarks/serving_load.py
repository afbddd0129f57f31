"""Ours and the peers under load, in turn: 1, 8 and 64 clients that ask again as soon as they are answered, one row a request.

What dynamic batching gives is measured with a small backbone, whose rows cost less than their way through HTTP, and with a larger
one, and for the scores and the router apart.

All servers are asked over HTTP by the same process on their own machine, which they share with it; tensors are binary, also for
scikit-learn behind FastAPI; BentoML takes JSON. Clients ask the router for what a program needs (`prob`, `label`, `abstained`,
`top`), the scores for `prob`. Each answers alone while the others wait. K = heads, D = values of a row
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from benchmarks.export import export
from benchmarks.load import Generator, Job, Seen, Target
from benchmarks.load_process import first_answer
from benchmarks.peer_servers import bentoml_scores, sklearn_behind_fastapi
from benchmarks.report import Row, said
from benchmarks.serving_models import SEPARATE, add_separate_models, asked_of, without_batching
from ovr import EdgePredictor
from ovr.backbone.mlp import Mlp
from ovr.core.bundle import ModelBundle
from ovr.serving.repository import publish
from ovr.serving.server import start

ROUTED = ("prob", "label", "abstained", "top")
SCORES, ROUTER, ENSEMBLE, HEADS_ROUTER = "scores", "router", "ensemble, per head", "router, per head"
BARE, SKLEARN, BENTOML, SEPARATE_MODELS = "bare ONNX Runtime", "scikit-learn, FastAPI", "BentoML, fused graph", "K separate models"
SCORES_ALONE, ROUTER_ALONE = "scores, no batching", "router, no batching"
PAIRS = (
    (SCORES, BARE),
    (SCORES, SEPARATE_MODELS),
    (ROUTER, SEPARATE_MODELS),
    (ROUTER, SKLEARN),
    (ROUTER, BENTOML),
    (ENSEMBLE, SEPARATE_MODELS),
    (HEADS_ROUTER, SEPARATE_MODELS),
)
MOST_CLIENTS = 64


@dataclass(frozen=True)
class Data:
    """Rows to fit scikit-learn on, and rows that are asked for."""

    x: np.ndarray
    y: np.ndarray

    @property
    def asked(self) -> np.ndarray:
        """The first rows."""
        return self.x[:64]


def digits() -> Data:
    """Return scikit-learn's digits: K = 10, D = 64."""
    x, y = load_digits(return_X_y=True)
    return Data(x.astype(np.float32) / 16, y)


def made(num_heads: int, num_values: int = 384) -> Data:
    """Return rows of a class each, which is the nearest of so many random directions."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20 * num_heads, num_values)).astype(np.float32)
    return Data(x, (x @ rng.normal(size=(num_values, num_heads)).astype(np.float32)).argmax(axis=1))


def measure(folder: Path, generator: Generator, *, quick: bool, peers: Path | None) -> Iterator[Row]:
    """Yield all rows; without the Python of `peers`, scikit-learn and BentoML are left out."""
    clients, seconds, turns = ((1, 4), 0.2, 1) if quick else ((1, 8, MOST_CLIENTS), 2.0, 3)
    cases = [("digits", digits(), 10), *([] if quick else [("made", made(100), 100)])]
    for name, data, num_heads in cases:
        root = folder / f"load-{name}"
        bundle = exported(root, num_heads, data, hidden=[256])
        with ExitStack() as stack:
            targets = fused_served(root, bundle, data.asked, stack) | heads_served(root, bundle, data.asked, stack)
            if peers is not None:
                targets[SKLEARN] = stack.enter_context(sklearn_behind_fastapi(peers, root, data.x, data.y, data.asked))
                targets[BENTOML] = stack.enter_context(bentoml_scores(peers, root, Path(bundle.fused_onnx), data.asked))
            check(targets, EdgePredictor(bundle.path).predict_proba(data.asked[:1])[0])
            for num_clients in clients:
                most = num_clients == clients[-1]
                asked = {key: target for key, target in targets.items() if most or key not in (SCORES_ALONE, ROUTER_ALONE)}
                seen = in_turn(generator, asked, num_clients, seconds=seconds, turns=turns)
                what = f"{name}, {num_clients} client{'s' * (num_clients > 1)}"
                yield from compared(what, num_heads, seen)
                yield from bars(what, num_heads, num_clients, most, seen)
    if not quick:
        yield from of_a_larger_backbone(folder / "load-larger", generator, seconds=seconds, turns=turns)


def of_a_larger_backbone(root: Path, generator: Generator, *, seconds: float, turns: int) -> Iterator[Row]:
    """Yield what batching gives where the model, and not HTTP, takes most of the time of a request: 5 million weights."""
    num_heads, data = 10, made(10)
    bundle = exported(root, num_heads, data, hidden=[2048, 2048])
    with ExitStack() as stack:
        targets = fused_served(root, bundle, data.asked, stack)
        seen = in_turn(generator, {BARE: targets[BARE]}, 1, seconds=seconds, turns=turns)
        yield Row("larger, 1 client, in process, p50", "-", num_heads, seen[BARE].ms(0.5), None, "ms", None)
        seen = in_turn(generator, targets, MOST_CLIENTS, seconds=seconds, turns=turns)
        yield from bars(f"larger, {MOST_CLIENTS} clients", num_heads, MOST_CLIENTS, True, seen)


def exported(root: Path, num_heads: int, data: Data, *, hidden: list[int]) -> ModelBundle:
    """Make `root` and a bundle in it, of a dense backbone with these layers."""
    root.mkdir()
    shape = data.x.shape[1:]
    return export(root / "bundle", num_heads, Mlp(shape, hidden=hidden, activation="relu", dropout=0.0), shape)


def fused_served(root: Path, bundle: ModelBundle, asked: np.ndarray, stack: ExitStack) -> dict[str, Target]:
    """Serve the fused graph, with dynamic batching and without, and return what asks for it, and the bare graph."""
    publish(bundle, root / "fused")
    without_batching(root / "fused", root / "alone")
    name, graph = bundle.input.name, str(bundle.fused_onnx)
    targets = {BARE: Target("", (), graph=graph, rows=asked)}
    for repository, scores, router in (("fused", SCORES, ROUTER), ("alone", SCORES_ALONE, ROUTER_ALONE)):
        url = stack.enter_context(start(root / repository, timeout_s=300)).http_url
        targets[router] = asked_of(url, "ovr", name, asked, ROUTED)
        targets[scores] = asked_of(url, "ovr_scores", name, asked, ("prob",))
    return targets


def heads_served(root: Path, bundle: ModelBundle, asked: np.ndarray, stack: ExitStack) -> dict[str, Target]:
    """Serve a model a head, and a full model a class beside them, and return what asks for them."""
    publish(bundle, root / "per_head", layout="per_head")
    add_separate_models(bundle, root / "per_head")
    url, name = stack.enter_context(start(root / "per_head", timeout_s=300)).http_url, bundle.input.name
    return {
        HEADS_ROUTER: asked_of(url, "ovr", name, asked, ROUTED),
        ENSEMBLE: asked_of(url, "ovr_heads", name, asked),
        SEPARATE_MODELS: asked_of(url, SEPARATE, name, asked),
    }


def check(targets: Mapping[str, Target], expected_K: np.ndarray) -> None:
    """Raise unless each server gives the first row what it is to: ours and the fused graph these, scikit-learn shares of 1."""
    for key in (SCORES, SCORES_ALONE, ENSEMBLE, SEPARATE_MODELS):
        got_K = np.frombuffer(first_answer(targets[key])[-expected_K.nbytes :], np.float32)
        # Triton gives the outputs of an ensemble in an order of its own.
        np.testing.assert_allclose(np.sort(got_K), np.sort(expected_K), atol=1e-6, err_msg=key)
    if BENTOML in targets:
        np.testing.assert_allclose(json.loads(first_answer(targets[BENTOML]))[0], expected_K, atol=1e-6)
    if SKLEARN in targets:
        got_K = np.frombuffer(first_answer(targets[SKLEARN]), np.float32)
        assert got_K.shape == expected_K.shape
        np.testing.assert_allclose(got_K.sum(), 1, atol=1e-5)


def in_turn(
    generator: Generator, targets: Mapping[str, Target], num_clients: int, *, seconds: float, turns: int
) -> dict[str, Seen]:
    """Return what came of each; the first turn, a short one, warms up and counts for nothing."""
    seen = {key: Seen() for key in targets}
    for turn in range(turns + 1):
        for key in list(targets)[:: -1 if turn % 2 else 1]:
            job = Job([targets[key]], seconds=seconds if turn else min(seconds, 0.5), num_clients=num_clients)
            came = generator.run(job)
            if came.num_failed or not len(came.latency_s):
                raise SystemExit(f"{key}: {came.num_failed} requests failed: {'; '.join(came.told)}")
            if turn:
                seen[key] = seen[key].and_then(came)
    return seen


def compared(what: str, k: int, seen: Mapping[str, Seen]) -> Iterator[Row]:
    """Yield rates and latencies of the pairs that are there."""
    for ours, peer in PAIRS:
        if peer not in seen:
            continue
        a, b = seen[ours], seen[peer]
        note = f"{len(a.latency_s)} and {len(b.latency_s)} requests"
        yield Row(f"{what}, {ours}, rate", peer, k, a.rate, b.rate, "1/s", a.rate / b.rate, note)
        for quantile in (0.5, 0.95, 0.99):
            name = f"{what}, {ours}, p{quantile * 100:.0f}"
            yield Row(name, peer, k, a.ms(quantile), b.ms(quantile), "ms", b.ms(quantile) / a.ms(quantile))


def bars(what: str, k: int, num_clients: int, most: bool, seen: Mapping[str, Seen]) -> Iterator[Row]:
    """Yield what is asked of ours, and whether it holds here."""
    if num_clients == 1:
        for router, scores in ((ROUTER, SCORES), (HEADS_ROUTER, ENSEMBLE)):
            added = seen[router].ms(0.5) - seen[scores].ms(0.5)
            yield Row(f"{what}, {router}, p50 added", f"{scores}: <= 1.5 ms", k, added, 1.5, "ms", 1.5 / added, said(added <= 1.5))
    if k >= 100:
        times = seen[SCORES].rate / seen[SEPARATE_MODELS].rate
        yield Row(
            f"{what}, scores, rate", f"{SEPARATE_MODELS}: >= 20 times", k, times, 20.0, "times", times / 20, said(times >= 20)
        )
    if most:
        for on, off in ((SCORES, SCORES_ALONE), (ROUTER, ROUTER_ALONE)):
            times = seen[on].rate / seen[off].rate
            note = f"{said(times >= 3)}; {seen[on].rate:.0f} and {seen[off].rate:.0f} requests a second"
            yield Row(f"{what}, {on}, batching", "no batching: >= 3 times", k, times, 3.0, "times", times / 3, note)
