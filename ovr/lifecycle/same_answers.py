"""The answers of heads that two bundles both have, compared bit by bit: in every way in which they are asked for on CPUs.

- each head's own model, as the layout `per_head` serves it, in batches of 1 to 64
- the fused graph, as it is served and as `EdgePredictor` runs it: each cohort that both have, and rows without one; batches of 1 to
  64 rows of any cohorts; on one thread (what is served) and on as many as there are cores

N = rows, B = rows of a batch, C = heads that are compared, S = cohorts, the pooled one first
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.bundle import ModelBundle
from ovr.core.cohorts import COHORT, POOLED
from ovr.errors import ArtifactError
from ovr.lifecycle.logits import bundle_features, open_session

F32 = NDArray[np.float32]
Ask = Callable[[F32, NDArray[np.int64]], F32]  # rows (B, ...) and the number of each one's cohort among those compared -> (B, C)

MAX_BATCH = 64
THREADS = (1, 0)  # of ONNX Runtime; 0: as many as there are cores


def same_answers(old: ModelBundle, new: ModelBundle, ids: Sequence[str], x: F32) -> int:
    """Return how many answers of each head were compared.

    Args:
        ids: heads that both bundles have, with the same files.
        x: rows (N, *shape), as the graphs take them.

    Raises:
        ArtifactError: an answer differs; or the bundle's own answer to a row differs with the batch, on one thread.
    """
    if not ids:
        return 0
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, len(x), size) for size in range(1, MAX_BATCH + 1)]
    num_answers = _own_models(old, new, ids, x, batches)
    cohorts = _cohorts(old, new)
    alone_SNC: F32 | None = None
    for num_threads in THREADS:
        how = "on one thread" if num_threads == 1 else "on all cores"
        asks = [_fused(bundle, ids, cohorts, num_threads) for bundle in (old, new)]
        if alone_SNC is None:
            numbers = [np.array([s]) for s in range(len(cohorts))]
            alone_SNC = np.stack([np.concatenate([asks[0](x[n : n + 1], s) for n in range(len(x))]) for s in numbers])
            num_answers += alone_SNC[..., 0].size
        for rows in batches:
            cohort_B = rng.integers(0, len(cohorts), len(rows))
            answers = [ask(np.ascontiguousarray(x[rows]), cohort_B) for ask in asks]
            what = f"the fused graph, {how} and in a batch of {len(rows)}"
            if num_threads == 1:  # other rows and their number change nothing
                _check_same(alone_SNC[cohort_B, rows], answers[0], ids, what=what)
            _check_same(answers[0], answers[1], ids, what=what)
            num_answers += len(rows)
    return num_answers


def _own_models(old: ModelBundle, new: ModelBundle, ids: Sequence[str], x: F32, batches: Sequence[NDArray[np.int64]]) -> int:
    features = [bundle_features(bundle, x) for bundle in (old, new)]
    for class_id in ids:
        sessions = [
            open_session(bundle.head_onnx(bundle.head(class_id)).read_bytes(), num_threads=1, what=f"head {class_id!r}")
            for bundle in (old, new)
        ]
        name = sessions[0].get_inputs()[0].name
        whole_N1 = sessions[0].run(None, {name: features[0]})[0]
        for rows in [np.arange(len(x)), *batches]:
            prob_B1 = sessions[1].run(None, {name: np.ascontiguousarray(features[1][rows])})[0]
            _check_same(whole_N1[rows], prob_B1, [class_id], what=f"its own model, in a batch of {len(rows)}")
    return len(x) + sum(map(len, batches))


def _cohorts(old: ModelBundle, new: ModelBundle) -> list[str | None]:
    """Return the cohorts that both bundles have; None is no cohort."""
    if old.cohorts is None or new.cohorts is None or old.cohorts.column != new.cohorts.column:
        return [None]
    return [None, *(name for name in old.cohorts.names if name in new.cohorts.names)]


def _fused(bundle: ModelBundle, ids: Sequence[str], cohorts: Sequence[str | None], num_threads: int) -> Ask:
    session: Any = open_session(bundle.fused_onnx.read_bytes(), num_threads=num_threads, what="the fused graph")
    name = session.get_inputs()[0].name
    columns = [bundle.taxonomy.column(class_id) for class_id in ids]
    number_S = np.full(len(cohorts), POOLED) if bundle.cohorts is None else bundle.cohorts.numbers(cohorts)

    def ask(x_B: F32, cohort_B: NDArray[np.int64]) -> F32:
        feed: dict[str, NDArray[Any]] = {name: x_B}
        if bundle.cohorts is not None:
            feed[COHORT] = number_S[cohort_B][:, None]
        prob_BC: F32 = session.run(None, feed)[0][:, columns]
        return prob_BC

    return ask


def _check_same(old_NC: F32, new_NC: F32, ids: Sequence[str], *, what: str) -> None:
    wrong_NC = old_NC.view(np.uint32) != new_NC.view(np.uint32)
    if wrong_NC.any():
        row, c = (int(i) for i in np.argwhere(wrong_NC)[0])
        raise ArtifactError(
            f"head {ids[c]!r} has the same files in both bundles and another answer by {what}: {old_NC[row, c]:.9g} and "
            f"{new_NC[row, c]:.9g} for row {row} ({int(wrong_NC.any(axis=0).sum())} of {len(ids)} unchanged heads differ)"
        )
