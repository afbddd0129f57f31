"""The calibration contract on what a server returns over gRPC. Knows not where rows and labels come from.

Rows are sent as the network takes them: to the router where that is what it takes, else, for models that encode cells or texts, to
the scores, which the router passes on unchanged.

N = rows, K = heads
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.bundle import ModelBundle
from ovr.errors import ConfigError, ContractError, DataError, ServingError
from ovr.metric.contract import LIMIT, HeadVerdict, judge, judge_cohorts, limits_of
from ovr.metric.intervals import CONFIDENCE
from ovr.runtime.client import Client
from ovr.runtime.predictor import EdgePredictor
from ovr.serving.repository import publish
from ovr.serving.server import start

log = logging.getLogger(__name__)

CHUNK_ROWS = 4096  # read, sent and compared at a time
TOLERANCE = 1e-6  # of probabilities, absolute: Triton against ONNX Runtime here
UNDECIDED = ("fail", "allow")
SHOWN = 20  # heads named in one error


@dataclass(frozen=True, slots=True)
class Served:
    """What a server returned, and how far that is from ONNX Runtime in this process."""

    prob_NK: NDArray[np.float32]
    server: str
    max_abs_diff: float
    same_bytes: bool


@dataclass(frozen=True, slots=True)
class Contract:
    """The verdicts, and what they are of."""

    bundle_sha256: str
    served: Served
    verdicts: tuple[HeadVerdict, ...]  # on every head, then on those that have calibrations of cohorts, in each
    confidence: float
    undecided: str

    @property
    def broken(self) -> tuple[HeadVerdict, ...]:
        """The verdicts on heads that do not keep it: those that fail, and those undecided unless that is allowed."""
        bad = ("fail", "undecided") if self.undecided == "fail" else ("fail",)
        return tuple(verdict for verdict in self.verdicts if verdict.outcome in bad)

    @property
    def is_kept(self) -> bool:
        """Whether every head keeps it, in its cohorts too, and the server's probabilities are ONNX Runtime's."""
        return not self.broken and self.served.max_abs_diff <= TOLERANCE

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `contract.json`."""
        heads, of_cohorts = ([v for v in self.verdicts if (v.cohort is not None) == cohorts] for cohorts in (False, True))
        return {
            "schema_version": 1,
            "kept": self.is_kept,
            "bundle_sha256": self.bundle_sha256,
            "server": self.served.server,
            "num_rows": len(self.served.prob_NK),
            "max_abs_diff_from_onnxruntime": self.served.max_abs_diff,
            "same_bytes_as_onnxruntime": self.served.same_bytes,
            "confidence": self.confidence,
            "undecided": self.undecided,
            "num_heads": _counts(heads),
            "num_heads_of_cohorts": _counts(of_cohorts),
            "heads": [verdict.to_json() for verdict in heads],
            "heads_of_cohorts": [verdict.to_json() for verdict in of_cohorts],
        }

    def check(self) -> None:
        """Raise ContractError, naming the heads, unless it is kept."""
        problems = []
        if self.broken:
            more = f"; and {len(self.broken) - SHOWN} more" if len(self.broken) > SHOWN else ""
            heads = "; ".join(map(str, self.broken[:SHOWN]))
            by_cohort = any(verdict.cohort is not None for verdict in self.verdicts)
            what = "heads, with those of each cohort," if by_cohort else "heads"
            problems.append(f"{len(self.broken)} of {len(self.verdicts)} {what} do not keep it: {heads}{more}")
        if not self.served.max_abs_diff <= TOLERANCE:
            problems.append(
                f"the server's probabilities differ by up to {self.served.max_abs_diff:.2g} from those of ONNX Runtime; expected "
                f"at most {TOLERANCE:g}"
            )
        if problems:
            raise ContractError(f"the calibration contract of bundle {self.bundle_sha256[:12]} is broken: {'. '.join(problems)}")


def measure_contract(
    bundle: ModelBundle,
    x: Any,
    target_NK: NDArray[np.bool_],
    mask_NK: NDArray[np.bool_],
    *,
    cohort: Any = None,
    limit: float = LIMIT,
    limit_of: Mapping[str, float] | None = None,
    confidence: float = CONFIDENCE,
    undecided: str = "fail",
    server: str | None = None,
    client: Mapping[str, Any] = MappingProxyType({}),
) -> Contract:
    """Return what a server's answers for labelled rows say of each head's calibration error.

    Args:
        x: rows (N, *bundle.input.shape) as the network takes them, read in chunks.
        cohort: of a bundle with cohorts, see `Client.predict`; every head is judged in each cohort that it is calibrated for, too.
        limit, limit_of: of the calibration error, see `limits_of`.
        undecided: what a head comes to whose rows are too few to decide: "fail", as it is not proven, or "allow".
        server: URL, or gRPC address HOST:PORT, of a server on this bundle; None starts one on a repository of its own while it
            measures.
        client: arguments of `Client` for that server.

    Raises:
        ConfigError: limits, `confidence` or `undecided` that cannot be used.
        DataError: no rows.
        ServingError: the server is not there, cannot be started, or serves another bundle.
        ArtifactError: the bundle cannot be served.
    """
    if undecided not in UNDECIDED:
        raise ConfigError(f"undecided is {undecided!r}; expected {' or '.join(map(repr, UNDECIDED))}")
    limit_K = limits_of(bundle.taxonomy, limit, limit_of)
    if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence!r}; expected a number above 0 and below 1")
    if not len(x):
        raise DataError("the contract got no rows; expected labelled rows that the bundle was not made from")
    with _address(bundle, server) as url:
        served = served_prob(bundle, x, cohort=cohort, url=url, client_settings=client)
    about: dict[str, Any] = {"class_ids": bundle.taxonomy.ids, "limit_K": limit_K, "confidence": confidence}
    verdicts = judge(served.prob_NK, target_NK, mask_NK, **about)
    if bundle.cohorts is not None:
        fitted = {name: np.array(row) == "ok" for name, row in zip(bundle.cohorts.names, bundle.cohorts.status, strict=True)}
        names = [cohort] * len(x) if cohort is None or isinstance(cohort, str) else cohort
        cohort_N = np.array(["" if name is None else str(name) for name in names], dtype=np.str_)
        verdicts += judge_cohorts(served.prob_NK, target_NK, mask_NK, cohort_N=cohort_N, fitted=fitted, **about)
    return Contract(bundle.bundle_sha256, served, tuple(verdicts), confidence, undecided)


def _counts(verdicts: Sequence[HeadVerdict]) -> dict[str, int]:
    return {outcome: sum(verdict.outcome == outcome for verdict in verdicts) for outcome in ("pass", "fail", "undecided")}


def served_prob(
    bundle: ModelBundle, x: Any, *, cohort: Any = None, url: str, client_settings: Mapping[str, Any] = MappingProxyType({})
) -> Served:
    """Return the probabilities (N, K) that the server at `url` gives for rows, compared with ONNX Runtime's.

    Raises:
        ServingError: the server is not there, serves another bundle, a class is unavailable, or the model is replaced on the way.
    """
    prob_NK = np.empty((len(x), len(bundle.taxonomy)), np.float32)
    edge, diff, same = EdgePredictor(bundle.path), 0.0, True
    with Client(url, **client_settings) as client:
        for start in range(0, len(x), CHUNK_ROWS):
            here = slice(start, min(start + CHUNK_ROWS, len(x)))
            part = np.asarray(x[here])
            names = cohort if cohort is None or isinstance(cohort, str) else cohort[here]
            if bundle.input.raw_kind is None:
                prediction = client.predict(part, cohort=names)
                if prediction.unavailable_BK is not None and prediction.unavailable_BK.any():
                    class_id = bundle.taxonomy.ids[int(prediction.unavailable_BK.any(axis=0).argmax())]
                    raise ServingError(f"class {class_id!r} is unavailable at {url}: its head does not answer")
                prob_NK[here] = prediction.prob_BK
            else:
                prob_NK[here] = client.scores(part, cohort=names)
            check_serves(client.card().bundle_sha256, bundle, url)
            expected_NK = edge.predict_proba(part, cohort=names, encoded=True)
            diff = max(diff, float(np.abs(prob_NK[here].astype(np.float64) - expected_NK).max()))
            same = same and prob_NK[here].tobytes() == expected_NK.tobytes()
    return Served(prob_NK, url, diff, same)


def check_serves(bundle_sha256: str, bundle: ModelBundle, server: str) -> None:
    """Raise ServingError unless what `server` serves is this bundle."""
    if bundle_sha256 != bundle.bundle_sha256:
        raise ServingError(f"the server at {server} serves bundle {bundle_sha256[:12]}; this one is {bundle.bundle_sha256[:12]}")


def address_of(server: str) -> str:
    """Return the URL of a server that is named by it, or by HOST:PORT of its gRPC."""
    return server if "://" in server else f"grpc://{server}"


@contextmanager
def _address(bundle: ModelBundle, server: str | None) -> Iterator[str]:
    """Yield the URL of `server`, or of one that is started on the bundle and stopped at the end."""
    if server is not None:
        yield address_of(server)
        return
    with tempfile.TemporaryDirectory(prefix="ovr-contract-") as scratch:
        repository = Path(scratch) / "repository"
        publish(bundle, repository)
        with start(repository) as running:
            log.info("a server on bundle %s is at %s", bundle.bundle_sha256[:12], running.grpc_url)
            yield running.grpc_url
