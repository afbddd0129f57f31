"""What new labelled rows ask of each head: to be fitted again, to be calibrated again, or nothing.

Three versions of a head are asked about the same rows: the one in use; the one in use with a temperature and bias fitted on the
other folds of the rows; a head fitted, and calibrated, on the other folds. A head is to be retrained where the third is shown to be
better than the second, recalibrated where the second is shown to be better than the first (`ovr.metric.compare`, by likelihood and
by decisions), and left alone otherwise: also where its rows have changed, as long as it is not shown to be worse by it. With fewer
rows of its class than that takes, what has changed (`ovr.lifecycle.drift`) says whether rows of it are to be labelled.

N = rows, K = heads
"""

import json
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.platt import Platt
from ovr.core.artifact import HeadArtifact
from ovr.core.bundle import ModelBundle
from ovr.core.taxonomy import slug
from ovr.errors import ArtifactError
from ovr.export.stored import stored_weights
from ovr.lifecycle.assemble import head_logits
from ovr.lifecycle.drift import Counts, Drift, drifts
from ovr.lifecycle.fit import HeadFit, HeadRows, cross_calibrated
from ovr.lifecycle.gate import prob_logits, prob_of
from ovr.metric.compare import LEAST_POSITIVES, compare

F64 = NDArray[np.float64]
Need = Literal["retrain", "recalibrate", "nothing", "more rows", "label rows"]
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")  # in double quotes
COMMANDS = {"recalibrate": "calibrate", "retrain": "head retrain"}  # in this order: rows that a head was fitted on calibrate none


@dataclass(frozen=True, slots=True)
class Planned:
    """What one head needs, and by which figures. `share` is of positive rows; that of training is None where it is not known."""

    class_id: str
    owner: str
    need: Need
    num_rows: int = 0
    num_positives: int = 0
    share: float | None = None
    share_in_training: float | None = None
    nll: float | None = None  # of the head as it is
    nll_recalibrated: float | None = None
    nll_retrained: float | None = None
    drift: Drift = field(default_factory=Drift)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def plan(
    bundle: ModelBundle,
    rows: Mapping[str, HeadRows] | None,
    *,
    fit: HeadFit,
    in_training: Mapping[str, Counts] | None = None,
    served: Mapping[str, Counts] | None = None,
    confidence: float = 0.95,
) -> list[Planned]:
    """Return what each head needs by new rows that it was not fitted on, in column order.

    Args:
        rows: of each class, by its id; all are the same rows, and labels that are not known are masked. None: there are none.
        in_training: rows of each class in training.
        served: how often each class was decided on.
        confidence: that no head is called in need by chance, and that chance shows no change in any.

    Raises:
        ArtifactError: the bundle has head shards.
    """
    if bundle.shards:
        raise ArtifactError(
            f"bundle {bundle.path} keeps its {len(bundle.heads)} heads in shards; planned are heads with a file each"
        )
    in_training = in_training or {}
    logits, labelled, judged = {}, {}, {}
    if rows is not None:
        for column, kind, weights in stored_weights(bundle, range(len(bundle.heads))):
            class_id = bundle.taxonomy[column].id
            of_class = rows[class_id]
            logits[class_id] = head_logits(kind, weights, of_class.z_ND)
            labelled[class_id] = Counts(of_class.num_positives, int(of_class.mask_N.sum()))
            judged[class_id] = _judged(bundle.heads[column], kind, of_class, logits[class_id], fit, confidence)
    drift = drifts(bundle, logits=logits, labelled=labelled, in_training=in_training, served=served or {}, confidence=confidence)
    planned = []
    for spec in bundle.taxonomy:
        counts, before = labelled.get(spec.id, Counts(0, 0)), in_training.get(spec.id)
        unjudged: Need = "label rows" if drift[spec.id].signs else "nothing" if rows is None else "more rows"
        need, nll = judged.get(spec.id) or (unjudged, [None, None, None])
        planned.append(
            Planned(
                spec.id,
                spec.owner,
                need,
                counts.num_rows,
                counts.count,
                counts.share if counts.num_rows else None,
                None if before is None else before.share,
                nll[0],
                nll[1],
                nll[2],
                drift[spec.id],
            )
        )
    return planned


def _judged(
    head: HeadArtifact, kind: str, rows: HeadRows, logit_N: F64, fit: HeadFit, confidence: float
) -> tuple[Need, list[float | None]] | None:
    """Return what a head needs by the known rows, and the NLL of its three versions; None of too few rows."""
    of_class = rows.of(rows.mask_N)
    if min(of_class.num_positives, of_class.num_negatives) < 2 * LEAST_POSITIVES:
        return None
    prob_N = prob_of(logit_N[rows.mask_N], head.calibration)
    retrained_N = fit.out_of_fold(of_class, kind=kind)
    probs = [prob_N, *(cross_calibrated(Platt(), some_N, of_class, fit) for some_N in (prob_logits(prob_N), retrained_N))]
    return _need(probs, of_class.target_N, confidence), [_nll(each_N, of_class.target_N) for each_N in probs]


def _nll(prob_N: F64, target_N: NDArray[np.bool_]) -> float:
    right_N = np.clip(np.where(target_N, prob_N, 1 - prob_N), 2.0**-25, None)
    return float(-np.log(right_N).mean())


def _need(probs: Sequence[F64], target_N: NDArray[np.bool_], confidence: float) -> Need:
    needs: tuple[Need, Need] = ("recalibrate", "retrain")
    for step in (1, 0):  # retrained against recalibrated, then recalibrated against as it is
        before_N1, after_N1 = (prob_N[:, None] for prob_N in probs[step : step + 2])
        known_N1 = np.ones(before_N1.shape, np.bool_)
        found = compare(before_N1, after_N1, before_N1 >= 0.5, after_N1 >= 0.5, target_N[:, None], known_N1, confidence=confidence)
        if found.verdict_K[0] == "better":
            return needs[step]
    return "nothing"


def jobs(planned: Collection[Planned], *, bundle: str, data: Sequence[str]) -> str:
    """Return a workflow of GitHub Actions, as YAML, with a job for each owner whose classes need something.

    A job runs the commands for its owner's classes alone and keeps the new bundle; who may start it is said by the repository's
    environments, which have the owners' names.

    Args:
        bundle: where the bundle lies, as the commands take it.
        data: the settings by which the rows are read, as the commands take them.
    """
    lines = [
        "# Written by `ovr head plan`: a job for each owner of classes that need something.",
        "name: heads",
        "on: workflow_dispatch",
        "jobs:",
    ]
    owners: dict[str, list[Planned]] = {}
    for each in planned:
        if each.need in COMMANDS:
            owners.setdefault(each.owner, []).append(each)
    for owner, classes in owners.items():
        job = f"owner-{slug(owner)}" if owner else "no-owner"  # a plain word to YAML, and one that GitHub takes as a job's id
        lines += [
            f"  {job}:",
            f"    environment: {_quoted(_literal(owner or 'nobody'))}",
            "    runs-on: ubuntu-latest",
            "    steps:",
            "      - uses: actions/checkout@v4",
            "      - run: pip install '.[train]'",
        ]
        source, number = bundle, 0
        for need, command in COMMANDS.items():
            ids = [each.class_id for each in classes if each.need == need]
            if ids:
                number += 1
                out = f"{job}-{number}"
                classes_word = _literal(shlex.quote(f"classes=[{','.join(map(_hydra_text, ids))}]"))
                line = f"ovr {command} {shlex.join([f'bundle={source}', *data])} {classes_word} out={out}"
                lines.append(f"      - run: {_quoted(line)}")
                source = out
        lines += ["      - uses: actions/upload-artifact@v4", f"        with: {{name: {job}, path: {source}}}"]
    if not owners:
        lines[-1] = "jobs: {}"
    return "\n".join(lines) + "\n"


def _literal(text: str) -> str:
    """Return text of which GitHub's expressions make what is given: ${{ }} in a class id is evaluated by nobody."""
    return text.replace("${{", "${{ '${{' }}")


def _hydra_text(text: str) -> str:
    """Return the text in quotes, of which Hydra and OmegaConf read what is given: an interpolation in it is none."""
    plain = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), plain)
    return f"'{escaped}'"


def _quoted(text: str) -> str:
    """Return the text as YAML in double quotes: JSON, without the characters that YAML cannot hold or would fold."""
    return _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))
