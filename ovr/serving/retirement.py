"""How versions that a publication left loaded go: when nothing calls them any more. Knows nothing of bundles.

The router calls the scores of its own version; the ensemble names the versions that it calls. A version that is called by one that
still does its last requests stays.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from ovr.core.faults import PLAN, HeadPlan
from ovr.errors import ServingError
from ovr.serving import control
from ovr.serving.contents import read_config, served_versions
from ovr.serving.pbtxt import head_model_name
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
    for caller, current, callees in _calls(transition.repository):
        kept = _kept(transition.repository)
        old = {name: served_versions(transition.repository, name) - {version, kept.get(name)} for name, version in callees.items()}
        if not any(old.values()):
            continue
        if max(map(len, old.values())) > keep:
            # One that answers still, as a publisher was killed before it had loaded the current one, would not go.
            control.wait_until_alone(server, caller, current, *control.ready_versions(server).get(caller, ()))
        others = control.live_versions(server, caller) - {current}
        for name, version in callees.items():
            called = {version, kept.get(name)} | (others if caller == "ovr" else old[name] if others else set())
            transition.restrict(name, called)


def check_is_loaded(repository: Path, server: str) -> None:
    """Raise ServingError unless the server has what the repository says it serves: else a publication was killed."""
    ready = control.ready_versions(server)
    for caller, current, callees in _calls(repository):
        for name, version in {**callees, caller: current}.items():
            if version not in ready.get(name, ()):
                raise ServingError(
                    f"version {version} of {name!r} is not loaded at {server}: a publication is not finished; repeat it"
                )


def _kept(repository: Path) -> dict[str, int]:
    """Return the versions of heads that stand in for those in use where these fail."""
    config = read_config(repository, "ovr")
    if config is None or PLAN not in config.parameters:
        return {}
    earlier = HeadPlan.from_json(json.loads(config.parameters[PLAN].string_value)).earlier
    return {head_model_name(class_id): version for class_id, version in earlier.items()}


def _calls(repository: Path) -> Iterator[tuple[str, int, dict[str, int]]]:
    """Yield each caller in the repository with its version, and the models that it calls with theirs."""
    for caller in CALLERS:
        if (config := read_config(repository, caller)) is None:
            continue
        (current,) = config.version_policy.specific.versions
        steps = {step.model_name: int(step.model_version) for step in config.ensemble_scheduling.step}
        yield caller, int(current), steps or {"ovr_scores": int(current)}
