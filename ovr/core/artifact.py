"""One head as data, and what a runtime must know of a model besides its weights. Knows nothing of files or frameworks.

K = heads
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.errors import ArtifactError

SCHEMA_VERSION = 1
COLUMNS_SCHEMA_VERSION = 2  # of cards and manifests with their classes in columns, and of manifests with head shards

CalibrationStatus = Literal["ok", "separable", "at_bound", "one_class", "no_rows"]
DecisionMode = Literal["argmax", "multilabel"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What turns a head's logit z into a probability: sigmoid(scale * z + bias).

    Temperature scaling is scale = 1/T, bias = 0 (Guo et al. 2017, "On Calibration of Modern Neural Networks").
    `status` other than "ok" says why scale is not the unbounded optimum of the fitted rows.
    """

    kind: str = "temperature"
    scale: float = 1.0
    bias: float = 0.0
    status: CalibrationStatus = "no_rows"
    num_rows: int = 0
    num_positives: int = 0

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

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `head.json`."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "HeadArtifact":
        """Return the head that `to_json` wrote.

        Raises:
            ArtifactError: another schema version, or keys missing or unknown.
        """
        check_schema_version(value, "head.json")
        try:
            fields = {key: item for key, item in value.items() if key != "schema_version"}
            fields["calibration"] = Calibration(**fields["calibration"])
            return cls(**fields)
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

    def __post_init__(self) -> None:
        if not len(self.taxonomy) == len(self.head_versions) == len(self.thresholds):
            raise ArtifactError(
                f"{len(self.taxonomy)} classes, {len(self.head_versions)} versions and {len(self.thresholds)} thresholds; "
                "expected as many of each"
            )

    def to_json(self) -> dict[str, Any]:
        """Return plain values, with `schema_version`."""
        taxonomy = self.taxonomy.to_json()
        return {
            "schema_version": schema_version_with(taxonomy),
            "taxonomy": taxonomy,
            "head_versions": list(self.head_versions),
            "thresholds": list(self.thresholds),
            "policy": asdict(self.policy),
            "input": self.input.to_json(),
            "backbone_sha256": self.backbone_sha256,
            "bundle_sha256": self.bundle_sha256,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ModelCard":
        """Return the card that `to_json` wrote.

        Raises:
            ArtifactError: another schema version, or keys missing or unknown.
        """
        check_schema_version(value, "the model card", versions=(SCHEMA_VERSION, COLUMNS_SCHEMA_VERSION))
        try:
            return cls(
                taxonomy=Taxonomy.from_json(value["taxonomy"]),
                head_versions=tuple(value["head_versions"]),
                thresholds=tuple(value["thresholds"]),
                policy=DecisionPolicy(**value["policy"]),
                input=InputSchema.from_json(value["input"]),
                backbone_sha256=value["backbone_sha256"],
                bundle_sha256=value["bundle_sha256"],
            )
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"the model card cannot be read: {error}") from None


def schema_version_with(taxonomy: Any) -> int:
    """Return the schema version of a card or manifest of heads with a file each that holds `Taxonomy.to_json()`."""
    return SCHEMA_VERSION if isinstance(taxonomy, list) else COLUMNS_SCHEMA_VERSION


def check_schema_version(value: Any, what: str, *, versions: tuple[int, ...] = (SCHEMA_VERSION,)) -> None:
    """Raise ArtifactError unless `value` is an object whose `schema_version` is one that this ovr reads."""
    got = value.get("schema_version") if isinstance(value, dict) else None
    if got not in versions:
        raise ArtifactError(f"{what} has schema_version {got!r}; this ovr reads version {' or '.join(map(str, versions))}")
