"""May a head enter a bundle? It must pass its own checks on rows of its class that it was not fitted on.

- counts: as many rows of the class, and as many of others, as the policy asks for.
- calibration: the contract (`ovr.metric.contract`): the upper bound of its calibration error is within the limit.
- not worse: than the version that it replaces, by more than a margin, on rows that neither has seen (`ovr.metric.not_worse`). Where
  too few of these are of others, those that the version before has seen count too, unless the policy is against it: they favour
  that version, so that a head that is worse passes less often than on rows that are new to both.

Equal rows count once. Each check passes, fails or is undecided, where the policy says what happens (`ovr.lifecycle.gate_policy`).
Classes that the taxonomy calls critical are held to the second part of the policy.

N = rows
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.apply import calibrated_prob
from ovr.core.artifact import Calibration
from ovr.core.calibrations import Calibrations
from ovr.core.nearest import nearest
from ovr.core.taxonomy import ClassSpec
from ovr.errors import ConfigError, GateError
from ovr.lifecycle.gate_policy import CRITICAL, DEFAULT, Policy
from ovr.metric.contract import judge as judge_contract
from ovr.metric.not_worse import not_worse

STRICT = {"others": "unseen"}  # of critical classes, unless their part of the policy says otherwise
F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Needed(NamedTuple):
    """About how many rows that neither version has seen would decide a check."""

    num_positives: int
    num_negatives: int


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a head was held to."""

    name: str
    passed: bool
    said: str
    undecided: bool = False  # the rows do not tell: the policy says whether that passes
    needed: Needed | None = None  # rows that would tell, where these are too few


@dataclass(frozen=True, slots=True)
class Judged:
    """What the gate says of a head."""

    class_id: str
    checks: tuple[Check, ...]
    policy: Policy = DEFAULT  # that it was held to, with the limit of the class
    looser: tuple[str, ...] = ()  # its settings that ask less than the default does

    @property
    def passed(self) -> bool:
        """Whether all checks did."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "passed": self.passed,
            "undecided": [check.name for check in self.checks if check.undecided],
            "policy": self.policy.to_json(),
            "looser_than_default": list(self.looser),
            "checks": {
                check.name: {"passed": check.passed, "undecided": check.undecided, "said": check.said} for check in self.checks
            },
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
        if critical is not None and not isinstance(critical, dict):
            raise ConfigError(
                f"the gate's critical is {critical!r}; expected settings that are others for critical classes, or null"
            )
        for name in (*settings, *(critical or {})):
            if name not in (known := [field.name for field in fields(Policy)]):
                raise ConfigError(
                    f"the gate's policy has no {name!r}; {nearest(str(name), known) or 'expected some of ' + ', '.join(known)}"
                )
        self.policy, self.critical = Policy(**settings), Policy(**{**settings, **STRICT, **(critical or {})})

    def judge(
        self,
        spec: ClassSpec,
        prob_N: F64,
        target_N: Bools,
        mask_N: Bools,
        *,
        threshold: float,
        replaced: tuple[F64, Bools, float] | None = None,
        compared_N: F64 | None = None,
    ) -> Judged:
        """Return what the gate says of a head, by its probabilities of rows that it was not fitted on.

        Args:
            mask_N: the rows whose label is known; of equal rows one alone (see `distinct`).
            replaced: the probabilities (N,) of the version that it replaces, the rows (N,) that this was neither fitted nor
                calibrated on either, and its threshold; None: there is none, or it cannot be asked.
            compared_N: the probabilities (N,) that are compared with those; None: `prob_N`.
        """
        policy, default = (self.critical, CRITICAL) if spec.critical else (self.policy, DEFAULT)
        policy = policy if spec.max_ece is None else replace(policy, max_ece=spec.max_ece)
        num_positives, num_negatives = int((target_N & mask_N).sum()), int((~target_N & mask_N).sum())
        enough = num_positives >= policy.min_positives and num_negatives >= policy.min_negatives
        counts = f"{num_positives} different rows of the class and {num_negatives} of others"
        asked = "" if enough else f"; expected at least {policy.min_positives} and {policy.min_negatives}"
        needed = None if enough else Needed(policy.min_positives, policy.min_negatives)
        checks = [
            Check("counts", enough, counts + asked, needed=needed),
            self._calibration(policy, spec, prob_N, target_N, mask_N),
        ]
        if replaced is not None:
            second_N = prob_N if compared_N is None else compared_N
            checks.append(self._not_worse(policy, second_N, prob_N >= threshold, target_N, mask_N, replaced))
        return Judged(spec.id, tuple(checks), policy, policy.looser_than(default))

    def _calibration(self, policy: Policy, spec: ClassSpec, prob_N: F64, target_N: Bools, mask_N: Bools) -> Check:
        columns, limit_1 = (prob_N[:, None], target_N[:, None], mask_N[:, None]), np.array([policy.max_ece])
        (found,) = judge_contract(*columns, class_ids=[spec.id], limit_K=limit_1, confidence=policy.confidence)
        undecided = found.outcome == "undecided"
        passed = found.outcome == "pass" or (undecided and policy.undecided == "pass")
        return Check("calibration", passed, str(found).partition(": ")[2], undecided)

    def _not_worse(
        self, policy: Policy, prob_N: F64, label_N: Bools, target_N: Bools, mask_N: Bools, replaced: tuple[F64, Bools, float]
    ) -> Check:
        old_N, fair_N, old_threshold = replaced
        known_N = mask_N & fair_N
        num_positives, num_negatives = int((target_N & known_N).sum()), int((~target_N & known_N).sum())
        of = f"{num_positives} rows of the class and {num_negatives} of others that neither version has seen"
        if policy.others == "seen" and num_negatives < policy.min_compared:
            seen_N = mask_N & ~target_N & ~fair_N
            known_N, num_seen = known_N | seen_N, int(seen_N.sum())
            num_negatives += num_seen
            of += f", and {num_seen} of others that the version before has seen, which favour it" if num_seen else ""
        if min(num_positives, num_negatives) < policy.min_compared:
            said = f"undecided: there are {of}; to compare them takes {policy.min_compared} of each"
            least = Needed(policy.min_compared, policy.min_compared)
            return Check("not worse", policy.worse == "not_shown", said, True, least)
        found = not_worse(
            old_N[known_N],
            prob_N[known_N],
            old_N[known_N] >= old_threshold,
            label_N[known_N],
            target_N[known_N],
            margin=policy.margin,
            confidence=policy.confidence,
        )
        undecided = found.outcome == "undecided"
        most = f"at most {policy.margin:g} worse"
        said = {"pass": f"{most} than", "fail": "worse than", "undecided": f"undecided whether {most} than"}[found.outcome]
        needs = f"; about {found.num_needed} rows of the class would show it of a head that is as good" if undecided else ""
        lets_in = policy.worse == "not_shown" or (policy.worse == "estimate" and found.estimate_within)
        passed = found.outcome == "pass" or (undecided and lets_in)
        more = Needed(found.num_needed, math.ceil(found.num_needed * num_negatives / num_positives)) if undecided else None
        return Check("not worse", passed, f"{said} the version before on {of}: {found}{needs}", undecided, more)


def distinct(group_N: NDArray[Any], target_N: Bools, mask_N: Bools) -> Bools:
    """Return the known rows (N,) without those that repeat an earlier one with the same label; equal rows have one `group_N`."""
    first_N = np.zeros(len(group_N), np.bool_)
    for some_N in (mask_N & target_N, mask_N & ~target_N):
        row_P = np.flatnonzero(some_N)
        first_N[row_P[np.unique(group_N[row_P], return_index=True)[1]]] = True
    return first_N


def check_passed(judged: Sequence[Judged], *, force: bool, more_rows: str) -> list[str]:
    """Return the classes whose heads the gate refuses, which `force` lets in.

    Args:
        more_rows: how rows that would decide are brought in.

    Raises:
        GateError: there are any, and `force` is false.
    """
    refused = [each for each in judged if not each.passed]
    if refused and not force:
        told = "; ".join(f"{each.class_id!r}: {each}" for each in refused)
        needed = [check.needed for each in refused for check in each.checks if not check.passed and check.needed is not None]
        what = ""
        if needed:
            most = Needed(*(max(nums) for nums in zip(*needed, strict=True)))
            what = (
                f". What can decide are rows that no version has seen, about {most.num_positives} of the class and "
                f"{most.num_negatives} of others{more_rows}"
            )
        raise GateError(
            f"the gate refuses {len(refused)} of {len(judged)} heads: {told}{what}. force=true lets them in, and is recorded"
        )
    return [each.class_id for each in refused]


def prob_of(logit_N: NDArray[np.floating[Any]], calibration: Calibration) -> F64:
    """Return a head's probabilities (N,) for its logits."""
    return calibrated_prob(logit_N[:, None], Calibrations.of([calibration]))[:, 0]


def prob_logits(prob_N: F64) -> F64:
    """Return the log-odds (N,) of probabilities, those of 0 and 1 as far out as float32 tells."""
    clipped_N = np.clip(prob_N, 2.0**-25, 1 - 2.0**-25)
    logit_N: F64 = np.log(clipped_N) - np.log1p(-clipped_N)
    return logit_N
