"""One head as data, and what a runtime must know of a model besides its weights. Knows nothing of files or frameworks.

K = heads
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, Literal

from ovr.core.cohorts import CohortCalibrations
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.errors import ArtifactError

SCHEMA_VERSION = 1
COLUMNS_SCHEMA_VERSION = 2  # of cards and manifests with their classes in columns, and of manifests with head shards
COHORTS_SCHEMA_VERSION = 3  # of cards and manifests with a calibration a cohort
CARD_VERSIONS = (SCHEMA_VERSION, COLUMNS_SCHEMA_VERSION, COHORTS_SCHEMA_VERSION)

CalibrationStatus = Literal["ok", "shrunk", "separable", "at_bound", "not_increasing", "one_class", "no_rows"]
AFFINE_KINDS = ("identity", "temperature", "platt", "joint")
CALIBRATION_KINDS = (*AFFINE_KINDS, "beta", "isotonic")
MIN_KNOT_STEP = 2.0**-6  # of logits: it bounds how far an isotonic calibration magnifies the rounding of a logit
MAX_KNOT = 2.0**17  # up to here float32 tells logits apart that are `MIN_KNOT_STEP` apart
DecisionMode = Literal["argmax", "multilabel"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What turns a head's logit z into a probability, by its kind. Each rises with z, or at least never falls.

    identity, temperature, platt, joint: sigmoid(scale * z + bias). Temperature scaling is scale = 1/T, bias = 0 (Guo et al. 2017,
    "On Calibration of Modern Neural Networks").
    beta: sigmoid(bias + scale * log p - scale_negative * log(1 - p)) with p = sigmoid(z) (Kull et al. 2017, "Beta calibration");
    scale_negative = scale is Platt's.
    isotonic: through the points (knot_logits, knot_probs), straight between them, constant outside.

    `status` other than "ok" says why the parameters are not the unbounded optimum of the fitted rows. `details` says more of how
    they were found, in plain values for JSON.
    """

    kind: str = "temperature"
    scale: float = 1.0
    bias: float = 0.0
    status: CalibrationStatus = "no_rows"
    num_rows: int = 0
    num_positives: int = 0
    scale_negative: float | None = None  # of beta alone
    knot_logits: tuple[float, ...] = ()  # of isotonic alone: rising by `MIN_KNOT_STEP` or more, within `MAX_KNOT` of 0
    knot_probs: tuple[float, ...] = ()  # as many; never falling, above 0 and below 1
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.kind not in CALIBRATION_KINDS:
            raise ArtifactError(f"calibration kind is {self.kind!r}; expected one of {', '.join(map(repr, CALIBRATION_KINDS))}")
        if (self.scale_negative is not None) != (self.kind == "beta"):
            raise ArtifactError(
                f"a {self.kind} calibration has scale_negative {self.scale_negative}; only beta has one, and always has"
            )
        if (self.kind == "isotonic") != bool(self.knot_logits or self.knot_probs):
            raise ArtifactError(f"a {self.kind} calibration has {len(self.knot_logits)} knots; only isotonic has any")
        if self.kind == "isotonic":
            check_knots(self.knot_logits, self.knot_probs)

    @property
    def is_affine(self) -> bool:
        """Whether it is sigmoid(scale * z + bias)."""
        return self.kind in AFFINE_KINDS

    def to_json(self) -> dict[str, Any]:
        """Return plain values; those that its kind does not have are left out."""
        value = {name: item for item, name in ((getattr(self, f.name), f.name) for f in fields(self))}
        for name, absent in (("scale_negative", None), ("knot_logits", ()), ("knot_probs", ()), ("details", {})):
            if value[name] == absent:
                del value[name]
            elif name.startswith("knot"):
                value[name] = list(value[name])
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Calibration":
        """Return the calibration that `to_json` wrote.

        Raises:
            ArtifactError: an unknown kind, or parameters that are not those of its kind, or not finite.
            TypeError: unknown keys, or values of another type.
        """
        for name in ("scale", "bias", "scale_negative"):
            if value.get(name) is not None and not math.isfinite(value[name]):
                raise ArtifactError(f"{name} of a calibration is {value[name]}; expected a finite number")
        parts: dict[str, Any] = {name: tuple(item) if name.startswith("knot") else item for name, item in value.items()}
        return cls(**parts)

    @property
    def temperature(self) -> float:
        """T = 1 / scale."""
        return 1.0 / self.scale


@dataclass(frozen=True, slots=True)
class HeadArtifact:
    """One exported head. It fits only the backbone whose features it was trained on."""

    class_id: str
    version: int  # Triton version directory; only ever grows
    backbone_sha256: str
    kind: str  # "linear" or "mlp"
    calibration: Calibration
    threshold: float
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)  # split -> figures with their counts
    provenance: dict[str, Any] = field(default_factory=dict)
    threshold_status: str = "ok"  # "no_positive", or "cannot_be_promised: ..." with the reason

    def __post_init__(self) -> None:
        if type(self.version) is not int or self.version < 1:
            raise ArtifactError(f"head {self.class_id!r} has version {self.version!r}; expected a whole number of at least 1")
        check_thresholds((self.threshold,), f"head {self.class_id!r}")

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `head.json`."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "calibration": self.calibration.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "HeadArtifact":
        """Return the head that `to_json` wrote.

        Raises:
            ArtifactError: another schema version, or keys missing or unknown.
        """
        check_schema_version(value, "head.json")
        try:
            parts = {key: item for key, item in value.items() if key != "schema_version"}
            parts["calibration"] = Calibration.from_json(parts["calibration"])
            return cls(**parts)
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"head.json cannot be read: {error}") from None


@dataclass(frozen=True, slots=True)
class DecisionPolicy:
    """How probabilities become a decision; the thresholds are the heads' own.

    argmax: the most probable class. multilabel: every class at or above its threshold.
    Either abstains on a row whose highest probability is below `abstain_below` (0 never abstains).
    """

    mode: DecisionMode = "argmax"
    abstain_below: float = 0.0
    top_k: int = 5

    def __post_init__(self) -> None:
        if self.mode not in ("argmax", "multilabel"):
            raise ArtifactError(f"decision mode is {self.mode!r}; expected 'argmax' or 'multilabel'")
        if not isinstance(self.abstain_below, int | float) or not 0.0 <= self.abstain_below <= 1.0:
            raise ArtifactError(f"abstain_below is {self.abstain_below!r}; expected a probability from 0 to 1")
        if not isinstance(self.top_k, int) or self.top_k < 1:
            raise ArtifactError(f"top_k is {self.top_k!r}; expected at least 1, a whole number")


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What every runtime must know besides the weights: it travels in the fused ONNX file and in the Triton repository."""

    taxonomy: Taxonomy
    head_versions: tuple[int, ...]
    thresholds: tuple[float, ...]
    policy: DecisionPolicy
    input: InputSchema
    backbone_sha256: str
    bundle_sha256: str
    cohorts: CohortCalibrations | None = None  # None: one calibration a head for all rows

    def __post_init__(self) -> None:
        check_cohorts(self.cohorts, self.taxonomy)
        if not len(self.taxonomy) == len(self.head_versions) == len(self.thresholds):
            raise ArtifactError(
                f"{len(self.taxonomy)} classes, {len(self.head_versions)} versions and {len(self.thresholds)} thresholds; "
                "expected as many of each"
            )
        check_thresholds(self.thresholds, "the model card")

    def of_classes(self, class_ids: Sequence[str], threshold: float | Mapping[str, float] | None = None) -> "ModelCard":
        """Return the card of these classes alone, in this order, with other thresholds: one for all, or some by class id.

        Raises:
            TaxonomyError: a class that is not there, or there twice.
            ArtifactError: a threshold that is not a finite number of at least 0.
        """
        columns = [self.taxonomy.column(class_id) for class_id in class_ids]
        given = {} if threshold is None else threshold
        if not isinstance(given, Mapping):
            given = {self.taxonomy[k].id: given for k in columns}
        return replace(
            self,
            taxonomy=Taxonomy(self.taxonomy[k] for k in columns),
            head_versions=tuple(self.head_versions[k] for k in columns),
            thresholds=tuple(given.get(self.taxonomy[k].id, self.thresholds[k]) for k in columns),
            cohorts=None if self.cohorts is None else self.cohorts.of_columns(columns),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values, with `schema_version`."""
        taxonomy = self.taxonomy.to_json()
        return {
            "schema_version": schema_version_with(taxonomy, self.cohorts),
            "taxonomy": taxonomy,
            "head_versions": list(self.head_versions),
            "thresholds": list(self.thresholds),
            "policy": asdict(self.policy),
            "input": self.input.to_json(),
            "backbone_sha256": self.backbone_sha256,
            "bundle_sha256": self.bundle_sha256,
            **({} if self.cohorts is None else {"cohorts": self.cohorts.to_json()}),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ModelCard":
        """Return the card that `to_json` wrote.

        Raises:
            ArtifactError: another schema version, or keys missing or unknown.
        """
        check_schema_version(value, "the model card", versions=CARD_VERSIONS)
        try:
            return cls(
                taxonomy=Taxonomy.from_json(value["taxonomy"]),
                head_versions=tuple(value["head_versions"]),
                thresholds=tuple(value["thresholds"]),
                policy=DecisionPolicy(**value["policy"]),
                input=InputSchema.from_json(value["input"]),
                backbone_sha256=value["backbone_sha256"],
                bundle_sha256=value["bundle_sha256"],
                cohorts=CohortCalibrations.from_json(value["cohorts"]) if "cohorts" in value else None,
            )
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"the model card cannot be read: {error}") from None


def check_thresholds(thresholds: Iterable[float], what: str) -> None:
    """Raise ArtifactError unless each is a finite number of at least 0; one above 1 decides for no row."""
    for threshold in thresholds:
        if not isinstance(threshold, float | int) or not 0.0 <= threshold < math.inf:
            raise ArtifactError(f"{what} has threshold {threshold!r}; expected a finite number of at least 0")


def check_knots(logits: tuple[float, ...], probs: tuple[float, ...]) -> None:
    """Raise ArtifactError unless these are the knots of an isotonic calibration."""
    if len(logits) != len(probs):
        raise ArtifactError(f"{len(logits)} knot_logits and {len(probs)} knot_probs; expected as many of each")
    if not all(math.isfinite(z) and abs(z) <= MAX_KNOT for z in logits) or any(b - a < MIN_KNOT_STEP for a, b in pairwise(logits)):
        raise ArtifactError(f"knot_logits must rise by {MIN_KNOT_STEP} or more, within {MAX_KNOT:.0f} of 0")
    if not all(0.0 < p < 1.0 for p in probs) or any(b < a for a, b in pairwise(probs)):
        raise ArtifactError("knot_probs must never fall, and lie above 0 and below 1")


def schema_version_with(taxonomy: Any, cohorts: CohortCalibrations | None = None) -> int:
    """Return the schema version of a card or manifest of heads with a file each that holds `Taxonomy.to_json()`."""
    if cohorts is not None:
        return COHORTS_SCHEMA_VERSION
    return SCHEMA_VERSION if isinstance(taxonomy, list) else COLUMNS_SCHEMA_VERSION


def check_cohorts(cohorts: CohortCalibrations | None, taxonomy: Taxonomy) -> None:
    """Raise ArtifactError unless the cohorts, if any, are of as many heads as there are classes."""
    if cohorts is not None and cohorts.num_heads != len(taxonomy):
        raise ArtifactError(f"the cohorts of column {cohorts.column!r} are of {cohorts.num_heads} heads; expected {len(taxonomy)}")


def check_schema_version(value: Any, what: str, *, versions: tuple[int, ...] = (SCHEMA_VERSION,)) -> None:
    """Raise ArtifactError unless `value` is an object whose `schema_version` is one that this ovr reads."""
    got = value.get("schema_version") if isinstance(value, dict) else None
    if got not in versions:
        raise ArtifactError(f"{what} has schema_version {got!r}; this ovr reads version {' or '.join(map(str, versions))}")
