"""Triton model configurations as protobuf messages, and their text. Knows nothing of directories or servers.

B = batch (left out of Triton's dims), K = heads, D = features
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from ovr.core.artifact import ModelCard
from ovr.core.cohorts import COHORT
from ovr.core.faults import PLAN, HeadPlan
from ovr.core.outcomes import OUTPUTS, PER_CLASS
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import slug
from ovr.errors import ArtifactError, ConfigError
from ovr.input.records import wire_name

InstanceKind = Literal["KIND_CPU", "KIND_GPU"]

CARD = "ovr.card"  # the parameters of the router's configuration
VERSION = "ovr.version"


@dataclass(frozen=True, slots=True)
class Scheduling:
    """How Triton runs the ONNX models of a publication."""

    instance_kind: InstanceKind
    instance_count: int
    max_batch_size: int
    max_queue_delay_us: int
    max_queue_size: int  # requests waiting for one model; more are refused. 0: no limit
    num_threads: int  # of one session; 0: as many as there are cores

    def __post_init__(self) -> None:
        if self.instance_kind not in ("KIND_CPU", "KIND_GPU"):
            raise ConfigError(f"instance_kind is {self.instance_kind!r}; expected 'KIND_CPU' or 'KIND_GPU'")
        for name, least in (
            ("instance_count", 1),
            ("max_batch_size", 1),
            ("max_queue_delay_us", 0),
            ("max_queue_size", 0),
            ("num_threads", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} is {value!r}; expected a whole number of at least {least}")


def head_model_name(class_id: str) -> str:
    """Return the Triton model of a class's head."""
    return f"head_{slug(class_id)}"


def scores_config(card: ModelCard, scheduling: Scheduling, *, version: int, labels_version: int) -> pb.ModelConfig:
    """Return the configuration of `ovr_scores`: raw rows to calibrated probabilities, names by the classification extension.

    Args:
        labels_version: the version whose directory holds the label file. Triton starts every version again whose configuration
            changes in more than the versions, so that versions with the same classes share one.
    """
    config = _onnx_config("ovr_scores", scheduling, version=version)
    _tensor(config.input, card.input.name, pb.TYPE_FP32, card.input.shape)
    if card.cohorts is not None:
        _tensor(config.input, COHORT, pb.TYPE_INT64, [1])
    _tensor(config.output, "prob", pb.TYPE_FP32, [len(card.taxonomy)]).label_filename = f"{labels_version}/labels.txt"
    return config


def router_config(card: ModelCard, scheduling: Scheduling, *, version: int, plan: HeadPlan | None = None) -> pb.ModelConfig:
    """Return the configuration of `ovr`, with the model card among its parameters, where any client can read it.

    Outputs of a class each, and the top classes, are as many as a request asks for.
    """
    config = _config("ovr", "python", scheduling, version=version)
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=scheduling.instance_count)
    # Requests wait for company once, in front of the scores; here those that are waiting anyway are taken together.
    config.dynamic_batching.max_queue_delay_microseconds = 0
    name, shape = router_input(card.input)
    _tensor(config.input, name, pb.TYPE_FP32 if card.input.raw_kind is None else pb.TYPE_STRING, shape)
    if card.cohorts is not None:
        _tensor(config.input, COHORT, pb.TYPE_STRING, [1]).optional = True
    _tensor(config.output, "prob", pb.TYPE_FP32, [-1])
    _tensor(config.output, "label", pb.TYPE_BOOL, [-1])
    _tensor(config.output, "abstained", pb.TYPE_BOOL, [1])
    _tensor(config.output, "top", pb.TYPE_INT64, [-1])
    _tensor(config.output, "top_class", pb.TYPE_STRING, [-1])
    _tensor(config.output, "head_version", pb.TYPE_INT64, [-1])
    _tensor(config.output, "unavailable", pb.TYPE_BOOL, [-1])
    _tensor(config.output, "bundle_sha256", pb.TYPE_STRING, [1])
    _tensor(config.output, "request_id", pb.TYPE_STRING, [1])
    for output in OUTPUTS:  # made for requests that name them, or no output at all
        _tensor(config.output, output, pb.TYPE_FP64, [-1 if output in PER_CLASS else 1])
    config.parameters[CARD].string_value = json.dumps(_public(card).to_json(), ensure_ascii=False, sort_keys=True)
    config.parameters[VERSION].string_value = str(version)
    config.parameters[PLAN].string_value = json.dumps((plan or HeadPlan()).to_json(), ensure_ascii=False, sort_keys=True)
    return config


def router_input(input: InputSchema) -> tuple[str, tuple[int, ...]]:
    """Return name and shape of a row that clients send to `ovr`: the network's own, or one text."""
    return (input.name, input.shape) if input.raw_kind is None else (wire_name(input.raw_kind), (1,))


def _public(card: ModelCard) -> ModelCard:
    """Return the card with no more of the encoder than a client needs: vocabularies take megabytes."""
    if card.input.raw_kind is None:
        return card
    return replace(card, input=replace(card.input, encoder={"kind": card.input.raw_kind}))


def backbone_config(card: ModelCard, scheduling: Scheduling, *, version: int, num_features: int) -> pb.ModelConfig:
    """Return the configuration of `backbone`: raw rows to features (B, D)."""
    config = _onnx_config("backbone", scheduling, version=version)
    _tensor(config.input, card.input.name, pb.TYPE_FP32, card.input.shape)
    _tensor(config.output, "features", pb.TYPE_FP32, [num_features])
    return config


def head_config(
    class_id: str, scheduling: Scheduling, *, version: int, num_features: int, earlier: int | None = None
) -> pb.ModelConfig:
    """Return the configuration of one head: features (B, D) to its calibrated probability (B, 1).

    Args:
        earlier: a version that is kept loaded beside `version`.
    """
    config = _onnx_config(head_model_name(class_id), scheduling, version=version)
    if earlier is not None:
        config.version_policy.specific.versions.append(earlier)
    _tensor(config.input, "features", pb.TYPE_FP32, [num_features])
    _tensor(config.output, "prob", pb.TYPE_FP32, [1])
    return config


def ensemble_config(card: ModelCard, scheduling: Scheduling, *, version: int, backbone_version: int) -> pb.ModelConfig:
    """Return the configuration of `ovr_heads`: the backbone and every head, one output `prob_<slug>` (B, 1) a class."""
    config = pb.ModelConfig(name="ovr_heads", platform="ensemble", max_batch_size=scheduling.max_batch_size)
    config.version_policy.specific.versions.append(version)
    _tensor(config.input, card.input.name, pb.TYPE_FP32, card.input.shape)
    steps = config.ensemble_scheduling.step
    backbone = steps.add(model_name="backbone", model_version=backbone_version)
    backbone.input_map[card.input.name] = card.input.name
    backbone.output_map["features"] = "features"
    for class_id, head_version in zip(card.taxonomy.ids, card.head_versions, strict=True):
        output = f"prob_{slug(class_id)}"
        _tensor(config.output, output, pb.TYPE_FP32, [1])
        step = steps.add(model_name=head_model_name(class_id), model_version=head_version)
        step.input_map["features"] = "features"
        step.output_map["prob"] = output
    return config


def both_versions(old: pb.ModelConfig, new: pb.ModelConfig) -> pb.ModelConfig:
    """Return `old` serving `new`'s versions besides its own, with every size that differs between the two left open."""
    config = pb.ModelConfig()
    config.CopyFrom(old)
    versions = {*old.version_policy.specific.versions, *new.version_policy.specific.versions}
    config.version_policy.specific.versions[:] = sorted(versions)
    for ours, theirs in ((config.input, new.input), (config.output, new.output)):
        wanted = {tensor.name: tensor for tensor in theirs}
        for tensor in ours:
            if tensor.name in wanted:
                tensor.dims[:] = [a if a == b else -1 for a, b in zip(tensor.dims, wanted[tensor.name].dims, strict=True)]
    return config


def to_text(config: pb.ModelConfig) -> str:
    """Return the text of `config.pbtxt`."""
    return str(text_format.MessageToString(config, as_utf8=True))


def from_text(text: str, what: str) -> pb.ModelConfig:
    """Return the configuration in `text`; `what` names it in the error.

    Raises:
        ArtifactError: it is not the text of a Triton model configuration.
    """
    try:
        return text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError as error:
        raise ArtifactError(f"{what} is not a Triton model configuration: {error}") from None


def _onnx_config(name: str, scheduling: Scheduling, *, version: int) -> pb.ModelConfig:
    config = _config(name, "onnxruntime", scheduling, version=version)
    kind = pb.ModelInstanceGroup.Kind.Value(scheduling.instance_kind)
    config.instance_group.add(kind=kind, count=scheduling.instance_count)
    # Without it every session of the native backend has a thread pool as large as the machine.
    config.parameters["intra_op_thread_count"].string_value = str(scheduling.num_threads)
    return config


def _config(name: str, backend: str, scheduling: Scheduling, *, version: int) -> pb.ModelConfig:
    config = pb.ModelConfig(name=name, backend=backend, max_batch_size=scheduling.max_batch_size)
    config.version_policy.specific.versions.append(version)
    config.dynamic_batching.max_queue_delay_microseconds = scheduling.max_queue_delay_us
    config.dynamic_batching.default_queue_policy.max_queue_size = scheduling.max_queue_size
    return config


def _tensor(tensors: Any, name: str, data_type: int, dims: Sequence[int]) -> Any:
    return tensors.add(name=name, data_type=data_type, dims=dims)
