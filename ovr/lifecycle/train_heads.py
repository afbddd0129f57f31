"""New heads on a bundle's own backbone: a class that is added, or heads that are trained again, on new labelled rows.

Weights see the training rows of the source; calibration and threshold are fitted on its calibration rows, and the gate judges on
its validation rows. Where those are too few, training, validation and calibration rows are taken together: the head is fitted on
all of them, and calibration, threshold and gate take each row's logit from a head that was fitted without it; rows that the
backbone was trained on are for the weights alone.

N = rows, D = features, M = rows that join the calibration rows
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.abstention.promises import heads_in_doubt, without_promise
from ovr.calibrator.blocks import wants_all_heads
from ovr.core.artifact import Calibration, DecisionPolicy
from ovr.core.bundle import ModelBundle
from ovr.core.calibrations import Calibrations
from ovr.core.shards import npy_bytes
from ovr.core.taxonomy import ClassSpec, Taxonomy
from ovr.data.labels import Labels
from ovr.data.leakage import U64
from ovr.data.overlap import CALIBRATION, TRAINING, rows_of_step
from ovr.errors import ConfigError, DataError
from ovr.export.stored import Weights
from ovr.lifecycle.assemble import NewModel, Rewritten, head_logits, named_once
from ovr.lifecycle.calibrate import Calibrator
from ovr.lifecycle.calibration_rows import AddedRows
from ovr.lifecycle.fit import HeadFit, HeadRows, check_kind, cross_calibrated
from ovr.lifecycle.gate import Gate, Judged, check_passed, prob_logits, prob_of
from ovr.lifecycle.head_rows import SplitRows, kept_digests, known_rows, may_be_held_out
from ovr.lifecycle.heads import last_head
from ovr.lifecycle.logits import KnownLogits
from ovr.lifecycle.put import NewHead, check_change, put
from ovr.threshold.fit import ThresholdRule, fit_thresholds
from ovr.training.evaluate import evaluate

EVERY = ("train", "val", "calib")
Bools = NDArray[np.bool_]
LeftOut = tuple[NDArray[np.float64], Bools]  # of all rows (N,): logits by heads that did not see them, and whether they count
MIN_HELD_OUT = 10  # different rows of the class among calibration and among validation rows, below which all are taken together


@dataclass(frozen=True, slots=True)
class Trained:
    """A head that was fitted, and what the gate says of it."""

    head: NewHead
    judged: Judged
    num_positives: int  # that its weights saw
    cross_fitted: bool


def train_heads(
    bundle: ModelBundle,
    out: Path,
    specs: Sequence[ClassSpec],
    rows: Mapping[str, SplitRows],
    taxonomy: Taxonomy,
    *,
    fit: HeadFit,
    calibrator: Calibrator,
    threshold: ThresholdRule,
    gate: Gate,
    kind: str | None = None,
    warm: bool = False,
    force: bool = False,
    max_overlap: float = 0.0,
    entry: Mapping[str, Any] | None = None,
) -> tuple[Rewritten, list[Trained]]:
    """Write the bundle with heads of these classes, fitted on `rows`, to `out`; return what was made of each.

    Args:
        specs: classes that the bundle has, or new ones.
        rows: as `split_rows` gives them, with the columns of `taxonomy`.
        kind: "linear" or "mlp"; None: as the head that is replaced, or as the bundle's first one.
        warm: start MLP heads from the weights of the version before; the held-out rows must be new to these.
        force: let heads in that the gate refuses; the history says so.
        max_overlap: see `may_be_held_out`, of rows that are left out in turn.
        entry: what the history tells of this step besides, in plain values.

    Raises:
        ConfigError: a calibrator that fits all heads at once.
        DataError: no rows of a class or of others; all rows of a class are copies of one; the backbone was trained on all that the
            head would be calibrated and judged on.
        GateError: the gate refuses a head, and `force` is false. Nothing is written then.
        TaxonomyError: a class is named more than once.
    """
    check_change(bundle, out)
    named_once([spec.id for spec in specs])
    check_fittable(calibrator, kind)
    some = [_rows_of(rows, taxonomy.column(spec.id), spec.id) for spec in specs]
    trained = []
    for spec, of_split in zip(specs, some, strict=True):
        few = any(of_split[name].different().num_positives < MIN_HELD_OUT for name in ("val", "calib"))
        every = HeadRows.joined([of_split[name] for name in EVERY])
        held_N = may_be_held_out(bundle, every, spec.id, max_overlap=max_overlap) if few else None
        trained.append(
            _train(bundle, spec, of_split, taxonomy, fit, calibrator, threshold, gate, kind=kind, warm=warm, held_N=held_N)
        )
    heads = [made for made, _ in trained]
    refused = check_passed([made.judged for made in heads], force=force, more_rows=", given by data=...")
    step = len(bundle.provenance.get("history", [])) + 1
    few = any(made.cross_fitted for made in heads)
    fitted, held = (EVERY, EVERY) if few else (("train",), ("calib",))
    used = {rows_of_step(TRAINING, step): fitted, rows_of_step(CALIBRATION, step): held}
    new = {name: split.digest_N[split.num_kept :] for name, split in rows.items()}
    digests = {name: np.unique(np.concatenate([new[split] for split in splits])) for name, splits in used.items()}
    if any(split.num_kept for split in rows.values()):
        digests[rows_of_step(TRAINING, step)] = np.union1d(digests[rows_of_step(TRAINING, step)], kept_digests(bundle))
    said = {
        "classes": [spec.id for spec in specs],
        "gate": {made.judged.class_id: made.judged.to_json() for made in heads},
        "forced": refused,
        "cross_fitted": [made.head.spec.id for made in heads if made.cross_fitted],
        "row_digests": rows_of_step(CALIBRATION, step),
        "train_row_digests": rows_of_step(TRAINING, step),
        **({"row_digests_are_of": "features"} if any(split.by_features for split in rows.values()) else {}),
        **(entry or {}),
    }
    result = put(
        bundle,
        out,
        [made.head for made in heads],
        entry=said,
        rows=_added(bundle, trained, some, rows, held),
        parts={name: npy_bytes(digest_U) for name, digest_U in digests.items()},
    )
    return result, heads


def check_fittable(calibrator: Calibrator, kind: str | None) -> None:
    """Raise ConfigError where no head of this kind can be fitted alone and calibrated so, before any work."""
    if wants_all_heads(calibrator):
        raise ConfigError("the calibrator fits all heads at once; one head takes calibrator=temperature, auto or another")
    if kind is not None:
        check_kind(kind)


def _rows_of(rows: Mapping[str, SplitRows], column: int, class_id: str) -> dict[str, HeadRows]:
    found = {name: split.of(column) for name, split in rows.items()}
    own = np.concatenate([found[name].group_N[found[name].target_N & found[name].mask_N] for name in EVERY])
    if len(own) < 2:
        raise DataError(
            f"class {class_id!r} has {len(own) or 'no'} row{'s' * (not len(own))}; expected at least 2 different ones, by data=, "
            "features= or positives="
        )
    if len(np.unique(own)) == 1:
        raise DataError(f"the {len(own)} rows of class {class_id!r} are copies of one; expected different rows")
    return found


def _train(
    bundle: ModelBundle,
    spec: ClassSpec,
    of_split: Mapping[str, HeadRows],
    taxonomy: Taxonomy,
    fit: HeadFit,
    calibrator: Calibrator,
    threshold: ThresholdRule,
    gate: Gate,
    *,
    kind: str | None,
    warm: bool,
    held_N: Bools | None,
) -> tuple[Trained, LeftOut | None]:
    """Return the head, and what of the rows is left out in turn, where `held_N` says which may be."""
    few = held_N is not None
    old = last_head(bundle, spec.id)
    kind = kind or (bundle.heads[0].kind if old is None else old[0].kind)
    known_U = known_rows(bundle, spec.id)
    start = None
    if warm and kind == "mlp" and old is not None and old[0].kind == kind:
        start = _warm(old[0], [of_split[name] for name in ("val", "calib")], known_U, few=few)
    out_of_fold_N = None
    if held_N is not None:
        seen = HeadRows.joined([of_split[name] for name in EVERY])
        calib = judged = replace(seen, mask_N=held_N)
        model, out_of_fold_N = fit.fit(seen, kind=kind), fit.out_of_fold(seen, kind=kind)
        calib_logit_N = out_of_fold_N
    else:
        seen, calib, judged = of_split["train"], of_split["calib"], of_split["val"]
        model = fit.fit(seen, kind=kind, start=start)
        calib_logit_N = head_logits(model.kind, model.weights, calib.z_ND)
    (calibration,) = calibrator.fit(calib_logit_N[:, None], calib.target_N[:, None], calib.mask_N[:, None])
    prob_N1 = prob_of(calib_logit_N, calibration)[:, None].astype(np.float32)
    k = taxonomy.column(spec.id)
    chosen = fit_thresholds(
        threshold, prob_N1, calib.target_N[:, None], calib.mask_N[:, None], taxonomy=taxonomy, columns=slice(k, k + 1)
    )
    # A promise is of one score on rows that it has not seen: not of the heads that were fitted without a fold each.
    doubt_K = heads_in_doubt(threshold, [calibration.kind], cohorts=few)
    chosen = without_promise(chosen, doubt_K)
    number = float(chosen.threshold_K[0])
    if out_of_fold_N is not None:  # the calibration, too, is judged by rows that it was not fitted on
        prob_N = cross_calibrated(calibrator, out_of_fold_N, judged, fit)
    else:
        prob_N = prob_of(head_logits(model.kind, model.weights, judged.z_ND), calibration)
    judged, replaced = judged.different(), None
    if old is not None:
        old_model, old_head = old
        old_prob_N = prob_of(head_logits(old_model.kind, old_model.weights, judged.z_ND), old_head.calibration)
        fair_N = ~np.isin(judged.group_N.astype(np.uint64), known_U)
        replaced = (old_prob_N, fair_N, old_head.threshold)
    said = gate.judge(spec, prob_N, judged.target_N, judged.mask_N, threshold=number, replaced=replaced)
    head = NewHead(
        spec,
        model,
        calibration,
        number,
        chosen.status_K[0],
        metrics=_figures(spec, model, calibration, number, of_split["test"].different())
        or ({} if out_of_fold_N is None else _left_out_figures(spec, prob_N, number, judged)),
        provenance={
            "num_rows": int(seen.mask_N.sum()),
            "num_positives": seen.num_positives,
            "cross_fitted": few,
            "start": "cold" if start is None or old is None else f"version {old[1].version}",
            "gate": said.to_json(),
        },
    )
    made = Trained(head, said, seen.num_positives, few)
    return made, None if out_of_fold_N is None or held_N is None else (out_of_fold_N, held_N)


def _warm(old: NewModel, held_out: Sequence[HeadRows], known_U: U64, *, few: bool) -> Weights:
    """Return the weights to start from.

    Raises:
        DataError: the rows by which the new head is calibrated and judged are rows that these were fitted on.
    """
    if few:
        raise DataError(
            f"warm=true needs {MIN_HELD_OUT} rows of the class among validation and among calibration rows; with fewer, every row "
            "is judged by a head without it, and weights that have seen it cannot be a start"
        )
    num_known = sum(int(np.isin(rows.group_N.astype(np.uint64), known_U).sum()) for rows in held_out)
    if num_known:
        raise DataError(
            f"warm=true starts from weights that were fitted on {num_known} of the {sum(map(len, held_out))} held-out rows; start "
            "cold, or give rows that are new"
        )
    return old.weights


def _figures(
    spec: ClassSpec, model: NewModel, calibration: Calibration, threshold: float, test: HeadRows
) -> dict[str, dict[str, Any]]:
    """Return the figures of the test rows, as training has them; none without a known row."""
    if not test.mask_N.any():
        return {}
    return {"test": _report(spec, head_logits(model.kind, model.weights, test.z_ND), calibration, threshold, test)}


def _left_out_figures(spec: ClassSpec, prob_N: NDArray[np.float64], threshold: float, rows: HeadRows) -> dict[str, dict[str, Any]]:
    """Return the figures of rows left out in turn, by heads and calibrations that were fitted without them."""
    found = _report(spec, prob_logits(prob_N), Calibration(scale=1.0, status="ok"), threshold, rows)
    of_calibration = {"temperature", "calibration_kind", "calibration_status", "ece_before", "nll_before", "brier_before"}
    return {"left_out": {name: value for name, value in found.items() if name not in of_calibration}}


def _report(
    spec: ClassSpec, logit_N: NDArray[np.float64], calibration: Calibration, threshold: float, test: HeadRows
) -> dict[str, Any]:
    calibrations = Calibrations.of([calibration])
    logits: Any = KnownLogits(logit_N[:, None].astype(np.float32))
    found = evaluate(
        logits,
        Labels.from_dense(test.target_N[:, None], test.mask_N[:, None]),
        calibrations=calibrations,
        threshold_K=np.array([threshold]),
        policy=DecisionPolicy(mode="multilabel"),
        small_K=np.array([test.num_positives < MIN_HELD_OUT]),
        propensity_K=np.ones(1),
    )
    said: dict[str, Any] = found.report(Taxonomy([spec]), calibrations)["classes"][0]
    return said


def _added(
    bundle: ModelBundle,
    trained: Sequence[tuple[Trained, LeftOut | None]],
    some: Sequence[Mapping[str, HeadRows]],
    rows: Mapping[str, SplitRows],
    held: Sequence[str],
) -> AddedRows:
    """Return the rows that each head was calibrated on, as calibration rows of the bundle."""
    labels, logits = {}, {}
    for (made, left_out), of_split in zip(trained, some, strict=True):
        own = EVERY if made.cross_fitted else ("calib",)
        parts = [(of_split[name].target_N, of_split[name].mask_N & (name in own)) for name in held]
        target_M, mask_M = (np.concatenate(part) for part in zip(*parts, strict=True))
        if left_out is not None:
            logits[made.head.spec.id], mask_M = left_out
        labels[made.head.spec.id] = (target_M, mask_M)
    cohort_M = None
    if bundle.cohorts is not None and all(bundle.cohorts.column in rows[name].cohorts for name in held):
        cohort_M = np.concatenate([rows[name].cohorts[bundle.cohorts.column] for name in held])
    z_MD = np.concatenate([rows[name].z_ND for name in held])
    return AddedRows(z_MD, labels, cohort_M, logits, num_kept=sum(rows[name].num_kept for name in held))
