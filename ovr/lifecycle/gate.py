"""May a head enter a bundle? It must pass its own checks on rows of its class that it was not fitted on.

- counts: as many rows of the class, and as many of others, as the policy asks for.
- calibration: the contract (`ovr.metric.contract`): the upper bound of its calibration error is within the limit.
- not worse: on the same rows, than the version that it replaces, by paired tests (`ovr.metric.compare`).

Classes that the taxonomy calls critical are held to the second part of the policy.

N = rows
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.apply import calibrated_prob
from ovr.core.artifact import Calibration, HeadArtifact
from ovr.core.bundle import ModelBundle
from ovr.core.calibrations import Calibrations
from ovr.core.taxonomy import ClassSpec
from ovr.errors import ConfigError, GateError
from ovr.lifecycle.assemble import NewModel, head_logits
from ovr.lifecycle.calibration_rows import FEATURES, LOGIT, MASK, TARGET
from ovr.metric.compare import compare
from ovr.metric.contract import judge
from ovr.metric.intervals import CONFIDENCE

F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Policy:
    """What a head is held to.

    Args:
        min_positives, min_negatives: known rows of the class, and of others.
        max_ece: limit of the calibration error; a class's own `max_ece` comes before it.
        undecided: whether rows that are too few to decide the contract let a head "pass" or "fail".
        worse: "not_shown": it fails where the rows show that it is worse; "excluded": it passes where they show that it is at most
            `margin` worse in average precision, and at most `margin` in NLL.
        margin: see `worse`.
        confidence: of each check.
    """

    min_positives: int = 5
    min_negatives: int = 5
    max_ece: float = 0.05
    undecided: Literal["pass", "fail"] = "pass"
    worse: Literal["not_shown", "excluded"] = "not_shown"
    margin: float = 0.02
    confidence: float = CONFIDENCE

    def __post_init__(self) -> None:
        if self.undecided not in ("pass", "fail"):
            raise ConfigError(f"the gate's undecided is {self.undecided!r}; expected pass or fail")
        if self.worse not in ("not_shown", "excluded"):
            raise ConfigError(f"the gate's worse is {self.worse!r}; expected not_shown or excluded")
        for name in ("min_positives", "min_negatives"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"the gate's {name} is {value!r}; expected at least 0")
        for name in ("max_ece", "margin", "confidence"):
            if not 0 < (value := getattr(self, name)) <= 1:
                raise ConfigError(f"the gate's {name} is {value!r}; expected above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a head was held to."""

    name: str
    passed: bool
    said: str


@dataclass(frozen=True, slots=True)
class Judged:
    """What the gate says of a head."""

    class_id: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether all checks did."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "passed": self.passed,
            "checks": {check.name: {"passed": check.passed, "said": check.said} for check in self.checks},
        }

    def __str__(self) -> str:
        return "; ".join(f"{check.name}: {check.said}" for check in self.checks if not check.passed)


class Gate:
    """The policy of all classes, and that of critical ones: what `critical` names is another for these."""

    def __init__(self, critical: dict[str, Any] | None = None, **settings: Any) -> None:
        """Take the fields of `Policy`.

        Raises:
            ConfigError: a field that there is not, or a value that it cannot have.
        """
        try:
            self.policy, self.critical = Policy(**settings), Policy(**{**settings, **(critical or {})})
        except TypeError as error:
            raise ConfigError(f"the gate's policy cannot be used: {error}") from None

    def judge(
        self,
        spec: ClassSpec,
        prob_N: F64,
        target_N: Bools,
        mask_N: Bools,
        *,
        threshold: float,
        replaced: tuple[F64, Bools, float] | None = None,
    ) -> Judged:
        """Return what the gate says of a head, by its probabilities of rows that it was not fitted on.

        Args:
            replaced: the probabilities (N,) of the version that it replaces, the rows (N,) that this was not fitted on either, and
                its threshold; None: there is none, or it cannot be asked.
        """
        policy = self.critical if spec.critical else self.policy
        num_positives, num_negatives = int((target_N & mask_N).sum()), int((~target_N & mask_N).sum())
        enough = num_positives >= policy.min_positives and num_negatives >= policy.min_negatives
        counts = f"{num_positives} rows of the class and {num_negatives} of others"
        asked = "" if enough else f"; expected at least {policy.min_positives} and {policy.min_negatives}"
        checks = [Check("counts", enough, counts + asked), self._calibration(policy, spec, prob_N, target_N, mask_N)]
        if replaced is not None:
            checks.append(self._not_worse(policy, prob_N, target_N, mask_N, threshold, replaced))
        return Judged(spec.id, tuple(checks))

    def _calibration(self, policy: Policy, spec: ClassSpec, prob_N: F64, target_N: Bools, mask_N: Bools) -> Check:
        columns = (prob_N[:, None], target_N[:, None], mask_N[:, None])
        limit = policy.max_ece if spec.max_ece is None else spec.max_ece
        (found,) = judge(*columns, class_ids=[spec.id], limit_K=np.array([limit]), confidence=policy.confidence)
        passed = found.outcome == "pass" or (found.outcome == "undecided" and policy.undecided == "pass")
        return Check("calibration", passed, str(found).partition(": ")[2])

    def _not_worse(
        self, policy: Policy, prob_N: F64, target_N: Bools, mask_N: Bools, threshold: float, replaced: tuple[F64, Bools, float]
    ) -> Check:
        old_N, fair_N, old_threshold = replaced
        known_N1 = (mask_N & fair_N)[:, None]
        if not (known_N1[:, 0] & target_N).any():
            said = "the version before was fitted on all of these rows of the class, so that the two cannot be compared on them"
            return Check("not worse", policy.worse == "not_shown", said)
        found = compare(
            old_N[:, None],
            prob_N[:, None],
            (old_N >= old_threshold)[:, None] & known_N1,
            (prob_N >= threshold)[:, None] & known_N1,
            target_N[:, None] & known_N1,
            known_N1,
            confidence=policy.confidence,
        )
        precision, nll = found.average_precision, found.nll
        low, high = float(precision.low_K[0]), float(nll.high_K[0])
        said = (
            f"{found.verdict_K[0]} than the version before on {int(known_N1.sum())} rows: average precision "
            f"{precision.second_K[0]:.4f} for {precision.first_K[0]:.4f} ({low:+.4f} to {precision.high_K[0]:+.4f}), NLL "
            f"{nll.second_K[0]:.4f} for {nll.first_K[0]:.4f} ({nll.low_K[0]:+.4f} to {high:+.4f})"
        ).replace("same than", "the same as")
        if policy.worse == "not_shown":
            return Check("not worse", str(found.verdict_K[0]) != "worse", said)
        return Check(
            "not worse", low >= -policy.margin and high <= policy.margin, f"{said}; at most {policy.margin:g} worse is allowed"
        )


def check_passed(judged: Sequence[Judged], *, force: bool) -> list[str]:
    """Return the classes whose heads the gate refuses, which `force` lets in.

    Raises:
        GateError: there are any, and `force` is false.
    """
    refused = [each for each in judged if not each.passed]
    if refused and not force:
        told = "; ".join(f"{each.class_id!r}: {each}" for each in refused)
        raise GateError(f"the gate refuses {len(refused)} of {len(judged)} heads: {told}. force=true lets them in, and is recorded")
    return [each.class_id for each in refused]


def judge_stored(gate: Gate, source: ModelBundle, spec: ClassSpec, *, replaced: tuple[NewModel, HeadArtifact] | None) -> Judged:
    """Return what the gate says of a head on the calibration rows of the bundle that it is taken from.

    Its calibration and threshold were fitted on these, which makes the checks milder than rows of its own would.

    Args:
        spec: the class, as the bundle that it comes to describes it.
        replaced: the head that it replaces, with the same backbone; asked where `source` keeps features of the rows.
    """
    files = {name: source.path / name for name in (LOGIT, TARGET, MASK, FEATURES)}
    if not all(files[name].is_file() for name in (LOGIT, TARGET, MASK)):
        return Judged(spec.id, (Check("counts", False, f"bundle {source.path} keeps no calibration rows to judge by"),))
    k = source.taxonomy.column(spec.id)
    head = source.heads[k]
    logit_N, target_N, mask_N = (np.load(files[name], allow_pickle=False)[:, k] for name in (LOGIT, TARGET, MASK))
    before = None
    if replaced is not None and files[FEATURES].is_file():
        model, old = replaced
        old_logit_N = head_logits(model.kind, model.weights, np.load(files[FEATURES], allow_pickle=False))
        before = (prob_of(old_logit_N, old.calibration), np.ones(len(old_logit_N), np.bool_), old.threshold)
    prob_N = prob_of(logit_N, head.calibration)
    return gate.judge(spec, prob_N, target_N, mask_N, threshold=head.threshold, replaced=before)


def prob_of(logit_N: NDArray[np.floating[Any]], calibration: Calibration) -> F64:
    """Return a head's probabilities (N,) for its logits."""
    return calibrated_prob(logit_N[:, None], Calibrations.of([calibration]))[:, 0]


def prob_logits(prob_N: F64) -> F64:
    """Return the log-odds (N,) of probabilities, those of 0 and 1 as far out as float32 tells."""
    clipped_N = np.clip(prob_N, 2.0**-25, 1 - 2.0**-25)
    logit_N: F64 = np.log(clipped_N) - np.log1p(-clipped_N)
    return logit_N
