"""How the router of a publication asks for its classes: by the settings `serving.faults`, the bundle, and what is served before.

Knows the repository's contents, not how they change.
"""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ovr.core.artifact import ModelCard
from ovr.core.bundle import ModelBundle
from ovr.core.faults import LAST_GOOD, PLAN, PRIOR, Faults, HeadPlan
from ovr.core.files import read_json
from ovr.errors import ConfigError
from ovr.serving.contents import read_config
from ovr.serving.pbtxt import VERSION, head_model_name

log = logging.getLogger(__name__)

MAX_BEFORE = 8  # versions of a head, that many of which may be rolled back one after the other


def plan_heads(repository: Path, bundle: ModelBundle, layout: Literal["fused", "per_head"], faults: Faults) -> HeadPlan:
    """Return the plan, but for the backbone's version.

    A head's last good version is the one that the repository serves before this publication, where it is a lower one and of the
    same backbone; where the publication does not change the head, the one that stands beside it already; where it rolls the head
    back, the one that stood beside that version.

    Raises:
        ConfigError: a class that there is not, `last_good` with layout fused, or `prior` for a class without calibration rows.
    """
    fallback_of = dict(zip(bundle.taxonomy.ids, faults.fallbacks(bundle.taxonomy), strict=True))
    wants_earlier = [class_id for class_id, fallback in fallback_of.items() if fallback == LAST_GOOD]
    if wants_earlier and layout == "fused":
        raise ConfigError(
            f"fallback last_good of class {wants_earlier[0]!r} needs a model a head: publish with layout per_head or choose another"
        )
    before = _before(repository, bundle, wants_earlier) if wants_earlier else {}
    earlier = {class_id: versions[-1] for class_id, versions in before.items()}
    if without := [class_id for class_id in wants_earlier if class_id not in earlier]:
        shown = ", ".join(map(repr, without[:5])) + (f" and {len(without) - 5} more" if len(without) > 5 else "")
        log.warning("no earlier version of this backbone is served of class %s: marked unavailable where its head fails", shown)
    prior = _prior(bundle, {class_id for class_id, fallback in fallback_of.items() if fallback == PRIOR})
    return HeadPlan(replace(faults, fallback_of=dict(faults.fallback_of)), prior, earlier, before)


def _prior(bundle: ModelBundle, class_ids: set[str]) -> dict[str, float]:
    prior = {}
    for head in bundle.heads if class_ids else ():
        if head.class_id not in class_ids:
            continue
        calibration = head.calibration
        if not calibration.num_rows:
            raise ConfigError(
                f"fallback prior of class {head.class_id!r} needs calibration rows, and its head has none; choose another for it"
            )
        prior[head.class_id] = calibration.num_positives / calibration.num_rows
    return prior


def _before(repository: Path, bundle: ModelBundle, class_ids: list[str]) -> dict[str, tuple[int, ...]]:
    """Return the versions, ascending, that were served before each head and can stand in for it, of those that have any."""
    served = read_config(repository, "ovr")
    if served is None:
        return {}
    version = served.parameters[VERSION].string_value
    card = ModelCard.from_json(read_json(repository / "ovr" / version / "card.json"))
    if card.backbone_sha256 != bundle.backbone_sha256:
        return {}
    plan = HeadPlan.from_json(json.loads(served.parameters[PLAN].string_value)) if PLAN in served.parameters else HeadPlan()
    served_versions = dict(zip(card.taxonomy.ids, card.head_versions, strict=True))
    before = {}
    for class_id in class_ids:
        now, was = bundle.head(class_id).version, served_versions.get(class_id)
        candidates = [*plan.before.get(class_id, ()), *([] if was is None else [was])]
        model = repository / head_model_name(class_id)
        if lower := [version for version in candidates if version < now and (model / str(version)).is_dir()]:
            before[class_id] = tuple(lower[-MAX_BEFORE:])
    return before
