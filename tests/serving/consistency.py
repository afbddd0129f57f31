"""What must hold of a repository at every moment: whatever a configuration names is there, whole."""

import json
from pathlib import Path

from ovr.core.artifact import ModelCard
from ovr.core.faults import PLAN, HeadPlan
from ovr.serving.contents import read_config
from ovr.serving.pbtxt import CARD, VERSION, head_model_name


def check_repository(repository: Path) -> int | None:
    """Return the version of the router that is served, or None where there is none yet."""
    served = {}
    for directory in repository.iterdir():
        config = read_config(repository, directory.name)
        assert config is not None, f"{directory} has no configuration"
        served[directory.name] = list(config.version_policy.specific.versions)
        for version in served[directory.name]:
            present = {path.name for path in (directory / str(version)).iterdir()}
            if directory.name == "ovr":
                assert {"model.py", "card.json", "ovr"} <= present
            elif directory.name != "ovr_heads":
                assert "model.onnx" in present
            if directory.name == "ovr_scores":
                assert (directory / config.output[0].label_filename).is_file()
        for step in config.ensemble_scheduling.step:
            called = read_config(repository, step.model_name)
            assert called is not None
            assert step.model_version in called.version_policy.specific.versions
    if "ovr" not in served:
        return None
    (version,) = served["ovr"]
    assert version in served["ovr_scores"]
    check_plan(repository, version, served)
    return version


def check_plan(repository: Path, version: int, served: dict[str, list[int]]) -> None:
    """Check that what the router calls in layout per_head is served."""
    config = read_config(repository, "ovr")
    assert config is not None
    if config.parameters[VERSION].string_value != str(version):
        return  # its configuration is of another version by now
    plan = HeadPlan.from_json(json.loads(config.parameters[PLAN].string_value))
    if plan.backbone_version is None:
        return
    assert plan.backbone_version in served["backbone"]
    card = ModelCard.from_json(json.loads(config.parameters[CARD].string_value))
    for class_id, head_version in zip(card.taxonomy.ids, card.head_versions, strict=True):
        assert head_version in served[head_model_name(class_id)]
        assert plan.earlier.get(class_id, head_version) in served[head_model_name(class_id)]
