"""New heads on a bundle's own backbone: a class that is added, or heads that are trained again, on new labelled rows.

Weights see the training rows of the source; MLP heads are done when its validation rows say so. Calibration and threshold are
fitted on its calibration rows, and the gate judges on its validation rows. Where those are too few, training, validation and
calibration rows are taken together: weights see all of them, and calibration, threshold and gate take each row's logit from a
head that was fitted without it.

N = rows, D = features
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.blocks import wants_all_heads
from ovr.core.artifact import Calibration, DecisionPolicy
from ovr.core.bundle import ModelBundle
from ovr.core.calibrations import Calibrations
from ovr.core.shards import npy_bytes
from ovr.core.taxonomy import ClassSpec, Taxonomy
from ovr.data.labels import Labels
from ovr.data.leakage import U64, row_digests
from ovr.data.overlap import CALIBRATION, TRAINING, Overlap, check_overlap, read_digests, rows_of_step
from ovr.data.splits import SPLIT_NAMES, Splits
from ovr.errors import ConfigError, DataError
from ovr.export.stored import stored_weights
from ovr.lifecycle.assemble import NewModel, Rewritten, head_logits
from ovr.lifecycle.calibrate import Calibrator
from ovr.lifecycle.calibration_rows import AddedRows
from ovr.lifecycle.fit import HeadFit, HeadRows
from ovr.lifecycle.gate import Gate, Judged, check_passed, prob_of
from ovr.lifecycle.heads import NewHead, put
from ovr.lifecycle.logits import KnownLogits, bundle_features
from ovr.threshold.fit import ThresholdRule, fit_thresholds
from ovr.training.evaluate import evaluate

MIN_HELD_OUT = 10  # rows of the class among calibration and among validation rows, below which all are taken together


@dataclass(frozen=True, slots=True)
class SplitRows:
    """Rows of a source as the bundle's heads take them."""

    z_ND: NDArray[np.float32]
    digest_N: U64
    labels: Labels
    cohorts: Mapping[str, NDArray[np.str_]]
    known_N: NDArray[np.bool_]  # rows that the bundle, or one of its heads since, was trained or calibrated on

    def of(self, column: int) -> HeadRows:
        """Return the rows with the labels of one class."""
        target_N1, mask_N1 = self.labels.columns(slice(column, column + 1))
        return HeadRows(self.z_ND, target_N1[:, 0], mask_N1[:, 0], self.digest_N.astype(np.int64))


@dataclass(frozen=True, slots=True)
class Trained:
    """A head that was fitted, and what the gate says of it."""

    head: NewHead
    judged: Judged
    num_positives: int  # that its weights saw
    cross_fitted: bool


def split_rows(bundle: ModelBundle, splits: Splits, *, max_overlap: float, num_threads: int = 1) -> dict[str, SplitRows]:
    """Return the rows of a source by split, after a look for held-out rows that the bundle was made from.

    Raises:
        ConfigError: `max_overlap` is no share.
        DataError: of the validation, calibration and test rows too many are rows that the backbone was trained on.
    """
    backbone_U = read_digests(bundle.path, TRAINING, later=False)
    known = [each for each in (read_digests(bundle.path, kind) for kind in (TRAINING, CALIBRATION)) if each is not None]
    found = {}
    source = ", ".join(file.name for file in splits.origin.files) or "the source"
    for name in SPLIT_NAMES:
        rows = getattr(splits, name)
        digest_N = row_digests(rows.x)
        if name != "train" and len(rows) and backbone_U is not None:
            # Rows that an earlier head was fitted on may be held out for the next one; those of the backbone may not.
            overlap = Overlap(TRAINING, np.flatnonzero(np.isin(digest_N, backbone_U)), len(rows))
            what, numbers = f"split {name} of {source}", splits.origin.row_numbers.get(name)
            check_overlap([overlap], max_overlap=max_overlap, purpose="held out", row_numbers=numbers, source=what)
        known_N = np.isin(digest_N, np.concatenate(known)) if known else np.zeros(len(rows), np.bool_)
        z_ND = bundle_features(bundle, rows.x, num_threads=num_threads) if len(rows) else np.zeros((0, 0), np.float32)
        found[name] = SplitRows(z_ND, digest_N, rows.labels, rows.cohorts, known_N)
    return found


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
    entry: Mapping[str, Any] | None = None,
) -> tuple[Rewritten, list[Trained]]:
    """Write the bundle with heads of these classes, fitted on `rows`, to `out`; return what was made of each.

    Args:
        specs: classes that the bundle has, or new ones.
        rows: as `split_rows` gives them, with the columns of `taxonomy`.
        kind: "linear" or "mlp"; None: as the head that is replaced, or as the bundle's first one.
        warm: start MLP heads from the weights of the version before.
        force: let heads in that the gate refuses; the history says so.
        entry: what the history tells of this step besides, in plain values.

    Raises:
        ConfigError: a calibrator that fits all heads at once.
        DataError: no rows of a class or of others; all rows of a class are copies of one.
        GateError: the gate refuses a head, and `force` is false. Nothing is written then.
    """
    if wants_all_heads(calibrator):
        raise ConfigError("the calibrator fits all heads at once; one head takes calibrator=temperature, auto or another")
    some = [_rows_of(rows, taxonomy.column(spec.id), spec.id) for spec in specs]
    few = any(each[name].num_positives < MIN_HELD_OUT for each in some for name in ("val", "calib"))
    trained = []
    for spec, of_split in zip(specs, some, strict=True):
        made = _train(bundle, spec, of_split, rows, taxonomy, fit, calibrator, threshold, gate, kind=kind, warm=warm, few=few)
        trained.append(made)
    heads = [made for made, _ in trained]
    refused = check_passed([made.judged for made in heads], force=force)
    step = len(bundle.provenance.get("history", [])) + 1
    held = ("train", "val", "calib") if few else ("calib",)
    fitted = (
        ("train", "val", "calib") if few else ("train", "val") if any(m.head.model.kind == "mlp" for m in heads) else ("train",)
    )
    used = {rows_of_step(TRAINING, step): fitted, rows_of_step(CALIBRATION, step): held}
    digests = {name: np.unique(np.concatenate([rows[split].digest_N for split in splits])) for name, splits in used.items()}
    said = {
        "classes": [spec.id for spec in specs],
        "gate": {made.judged.class_id: made.judged.to_json() for made in heads},
        "forced": refused,
        "cross_fitted": few,
        "row_digests": rows_of_step(CALIBRATION, step),
        "train_row_digests": rows_of_step(TRAINING, step),
        **(entry or {}),
    }
    result = put(
        bundle,
        out,
        [made.head for made in heads],
        entry=said,
        rows=_added(bundle, [(spec.id, logit_N) for spec, (_, logit_N) in zip(specs, trained, strict=True)], some, rows, held),
        parts={name: npy_bytes(digest_U) for name, digest_U in digests.items()},
    )
    return result, heads


def _rows_of(rows: Mapping[str, SplitRows], column: int, class_id: str) -> dict[str, HeadRows]:
    found = {name: split.of(column) for name, split in rows.items()}
    own = np.concatenate([each.group_N[each.target_N & each.mask_N] for each in found.values()])
    if len(own) > 1 and len(np.unique(own)) == 1:
        raise DataError(f"the {len(own)} rows of class {class_id!r} are copies of one; expected different rows")
    return found


def _train(
    bundle: ModelBundle,
    spec: ClassSpec,
    of_split: Mapping[str, HeadRows],
    rows: Mapping[str, SplitRows],
    taxonomy: Taxonomy,
    fit: HeadFit,
    calibrator: Calibrator,
    threshold: ThresholdRule,
    gate: Gate,
    *,
    kind: str | None,
    warm: bool,
    few: bool,
) -> tuple[Trained, NDArray[np.float64] | None]:
    """Return the head, and where rows were too few the logits of all of them by heads that did not see them."""
    column = bundle.taxonomy.column(spec.id) if spec.id in bundle.taxonomy.ids else None
    old = None if column is None else bundle.heads[column]
    kind = kind or (bundle.heads[0] if old is None else old).kind
    start = None
    if column is not None:
        ((_, old_kind, old_weights),) = stored_weights(bundle, [column])
        start = old_weights if warm and old_kind == kind else None
    if few:
        names: Sequence[str] = ("train", "val", "calib")
        seen = HeadRows.joined([of_split[name] for name in names])
        out_of_fold_N = fit.out_of_fold(seen, kind=kind)
        model = fit.fit(seen, kind=kind, start=start)
        calib, judged = seen, seen
        calib_logit_N = judged_logit_N = out_of_fold_N
    else:
        names = ("val",)
        seen, calib, judged = of_split["train"], of_split["calib"], of_split["val"]
        model, out_of_fold_N = fit.fit(seen, kind=kind, held_out=judged, start=start), None
        calib_logit_N, judged_logit_N = (head_logits(model.kind, model.weights, each.z_ND) for each in (calib, judged))
    (calibration,) = calibrator.fit(calib_logit_N[:, None], calib.target_N[:, None], calib.mask_N[:, None])
    prob_N1 = prob_of(calib_logit_N, calibration)[:, None].astype(np.float32)
    k = taxonomy.column(spec.id)
    chosen = fit_thresholds(
        threshold, prob_N1, calib.target_N[:, None], calib.mask_N[:, None], taxonomy=taxonomy, columns=slice(k, k + 1)
    )
    number = float(chosen.threshold_K[0])
    replaced = None
    if old is not None:
        old_logit_N = head_logits(old_kind, old_weights, judged.z_ND)
        fair_N = ~np.concatenate([rows[name].known_N for name in names])
        replaced = (prob_of(old_logit_N, old.calibration), fair_N, old.threshold)
    said = gate.judge(
        spec, prob_of(judged_logit_N, calibration), judged.target_N, judged.mask_N, threshold=number, replaced=replaced
    )
    head = NewHead(
        spec,
        model,
        calibration,
        number,
        chosen.status_K[0],
        metrics=_figures(spec, model, calibration, number, of_split["test"]),
        provenance={
            "num_rows": int(seen.mask_N.sum()),
            "num_positives": seen.num_positives,
            "cross_fitted": few,
            "start": "cold" if start is None else f"version {old.version}" if old is not None else "",
            "gate": said.to_json(),
        },
    )
    return Trained(head, said, seen.num_positives, few), out_of_fold_N


def _figures(
    spec: ClassSpec, model: NewModel, calibration: Calibration, threshold: float, test: HeadRows
) -> dict[str, dict[str, Any]]:
    """Return the figures of the test rows, as training has them; none without a known row."""
    if not test.mask_N.any():
        return {}
    logit_N1 = head_logits(model.kind, model.weights, test.z_ND)[:, None].astype(np.float32)
    calibrations = Calibrations.of([calibration])
    logits: Any = KnownLogits(logit_N1)
    found = evaluate(
        logits,
        Labels.from_dense(test.target_N[:, None], test.mask_N[:, None]),
        calibrations=calibrations,
        threshold_K=np.array([threshold]),
        policy=DecisionPolicy(mode="multilabel"),
        small_K=np.array([test.num_positives < MIN_HELD_OUT]),
        propensity_K=np.ones(1),
    )
    return {"test": found.report(Taxonomy([spec]), calibrations)["classes"][0]}


def _added(
    bundle: ModelBundle,
    logits: Sequence[tuple[str, NDArray[np.float64] | None]],
    some: Sequence[Mapping[str, HeadRows]],
    rows: Mapping[str, SplitRows],
    held: Sequence[str],
) -> AddedRows:
    z_MD = np.concatenate([rows[name].z_ND for name in held])
    labels = {}
    for (class_id, _), of_split in zip(logits, some, strict=True):
        joined = HeadRows.joined([of_split[name] for name in held])
        labels[class_id] = (joined.target_N, joined.mask_N)
    cohort_M = None
    if bundle.cohorts is not None and all(bundle.cohorts.column in rows[name].cohorts for name in held):
        cohort_M = np.concatenate([rows[name].cohorts[bundle.cohorts.column] for name in held])
    known = {class_id: logit_N for class_id, logit_N in logits if logit_N is not None}
    return AddedRows(z_MD, labels, cohort_M, known)


def with_positives(
    rows: Mapping[str, SplitRows], z_PD: NDArray[np.float32], digest_P: U64, column: int, *, seed: int
) -> dict[str, SplitRows]:
    """Return the rows with some that are of class `column` and of which nothing else is known, spread over the splits by size.

    Equal rows come into one split.
    """
    sizes = np.array([len(rows[name].z_ND) for name in SPLIT_NAMES], np.float64)
    group_P = np.unique(digest_P, return_inverse=True)[1]
    drawn_G = np.random.default_rng(seed).permutation(int(group_P.max()) + 1)
    split_P = np.searchsorted(np.cumsum(sizes / sizes.sum()), (drawn_G + 0.5) / len(drawn_G))[group_P]
    found = {}
    for s, name in enumerate(SPLIT_NAMES):
        here, old = split_P == s, rows[name]
        target_NK, mask_NK = old.labels.dense()
        more_target, more_mask = (np.zeros((int(here.sum()), target_NK.shape[1]), np.bool_) for _ in range(2))
        more_target[:, column], more_mask[:, column] = True, True
        labels = Labels.from_dense(np.concatenate([target_NK, more_target]), np.concatenate([mask_NK, more_mask]))
        unknown = np.zeros(int(here.sum()), np.bool_)
        found[name] = replace(
            old,
            z_ND=np.concatenate([old.z_ND, z_PD[here]]),
            digest_N=np.concatenate([old.digest_N, digest_P[here]]),
            labels=labels,
            cohorts={key: np.concatenate([value, np.full(len(unknown), "", value.dtype)]) for key, value in old.cohorts.items()},
            known_N=np.concatenate([old.known_N, unknown]),
        )
    return found
