"""How versions that a publication left loaded go: when nothing calls them any more. Knows nothing of bundles.

The router calls the scores of its own version, or backbone and heads itself; the ensemble names the versions that it calls. What is
called by one that still does its last requests stays.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from ovr.core.artifact import ModelCard
from ovr.core.faults import PLAN, HeadPlan
from ovr.errors import ServingError
from ovr.serving import control
from ovr.serving.contents import read_config, served_versions
from ovr.serving.pbtxt import CARD, head_model_name
from ovr.serving.transition import CALLERS, Transition


def retire_uncalled(transition: Transition, server: str, *, keep: int) -> None:
    """Let models serve no version but those that are called.

    Args:
        transition: on the repository of `server`.
        keep: old versions of one model that may stay because of requests that are not done; where there are more, these are waited
            for.

    Raises:
        ServingError: the server is not there, or a request is not done after a minute.
    """
    calls = list(_calls(transition.repository))
    called: dict[str, set[int]] = {}
    for _, _, callees in calls:
        for name, versions in callees.items():
            called.setdefault(name, set()).update(versions)
    for name, versions in called.items():
        old = served_versions(transition.repository, name) - versions
        if not old:
            continue
        stay: set[int] = set()
        for caller, current, callees in calls:
            if name not in callees:
                continue
            if len(old) > keep:
                # One that answers still, as a publisher was killed before it had loaded the current one, would not go.
                control.wait_until_alone(server, caller, current, *control.ready_versions(server).get(caller, ()))
            others = control.live_versions(server, caller) - {current}
            stay |= others if name == "ovr_scores" else old if others else set()
        transition.restrict(name, versions | stay)


def check_is_loaded(repository: Path, server: str) -> None:
    """Raise ServingError unless the server has what the repository says it serves: else a publication was killed."""
    ready = control.ready_versions(server)
    for caller, current, callees in _calls(repository):
        for name, versions in {**callees, caller: {current}}.items():
            if missing := versions - ready.get(name, set()):
                raise ServingError(
                    f"version {min(missing)} of {name!r} is not loaded at {server}: a publication is not finished; repeat it"
                )


def _calls(repository: Path) -> Iterator[tuple[str, int, dict[str, set[int]]]]:
    """Yield each caller in the repository with its version, and the versions of models that it calls."""
    for caller in CALLERS:
        if (config := read_config(repository, caller)) is None:
            continue
        (current,) = config.version_policy.specific.versions
        callees = {step.model_name: {int(step.model_version)} for step in config.ensemble_scheduling.step}
        yield caller, int(current), callees or {"ovr_scores": {int(current)}} | _asked_by_router(config)


def _asked_by_router(config: pb.ModelConfig) -> dict[str, set[int]]:
    """Return the versions of backbone and heads that the router asks itself."""
    plan = HeadPlan.from_json(json.loads(config.parameters[PLAN].string_value)) if PLAN in config.parameters else HeadPlan()
    if plan.backbone_version is None:
        return {}
    card = ModelCard.from_json(json.loads(config.parameters[CARD].string_value))
    asked = {head_model_name(i): {version} for i, version in zip(card.taxonomy.ids, card.head_versions, strict=True)}
    for class_id, version in plan.earlier.items():
        asked[head_model_name(class_id)].add(version)
    return {"backbone": {plan.backbone_version}, **asked}
