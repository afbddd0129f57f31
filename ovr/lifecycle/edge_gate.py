"""Backbone and heads in fewer bits, each only where labelled rows show that no head is the worse for it. Needs no torch.

The backbone is one for all heads: it is accepted if no head of fp32 is worse on its features. The heads on the accepted backbone
are then judged one by one, and those that are worse keep their fp32 weights, in a Gemm of their own. What has too few rows to be
judged on counts as worse.

N = rows, D = features, K = heads
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ovr.core.artifact import ModelCard
from ovr.core.bundle import ModelBundle
from ovr.core.heads import HeadColumns
from ovr.data.lazy import Inputs, blocks
from ovr.errors import ArtifactError, ConfigError
from ovr.export.fused import joined
from ovr.export.reduced import NUM_RANGE_ROWS, heads_model, reduced, reducible
from ovr.export.stored import parsed
from ovr.lifecycle.edge_heads import GatedHeads, Judged, Limits
from ovr.lifecycle.logits import answers, open_session
from ovr.lifecycle.rows import NewRows

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class GateRows:
    """Labelled rows of some heads (N, K): raw, or where the bundle keeps no more than that, features (N, D)."""

    target_NK: Bool
    mask_NK: Bool
    record: dict[str, Any]
    x: Inputs | None = None
    z_ND: F32 | None = None


@dataclass(frozen=True, slots=True)
class ReducedModel:
    """The fused model, and what the gate found."""

    model: onnx.ModelProto
    backbone: str  # its precision
    head_precisions: tuple[str, ...]
    because: dict[str, Any]  # why the backbone stayed in fp32, if it did
    full: Judged
    without_refit: Judged
    refit_ece_upper_K: F64  # of calibrations fitted again, on rows that they were not fitted on; NaN where none is
    final: Judged
    num_known_K2: NDArray[np.int64]  # rows of the class, and of others
    is_judged_K: Bool
    refitted_K: tuple[bool, ...]


def kept_rows(bundle: ModelBundle, columns: Sequence[int]) -> GateRows:
    """Return the calibration rows that a bundle keeps, as features.

    Raises:
        ArtifactError: it keeps none, or no features of them, or they do not fit together.
    """
    arrays = []
    for name in ("features", "target", "mask"):
        try:
            arrays.append(np.load(bundle.path / "calibration" / f"{name}.npy", allow_pickle=False))
        except (OSError, ValueError):
            raise ArtifactError(
                f"bundle {bundle.path} keeps no {name} of calibration rows that a reduced precision could be judged on; give rows "
                "with data=... and data.path=FILE"
            ) from None
    z_ND, target_NK, mask_NK = arrays
    if not len(z_ND) == len(target_NK) == len(mask_NK) or target_NK.shape != mask_NK.shape or not len(z_ND):
        raise ArtifactError(
            f"bundle {bundle.path} keeps {len(z_ND)} features, {len(target_NK)} targets and {len(mask_NK)} masks of calibration "
            "rows; expected as many of each, and one at least; give rows with data=... and data.path=FILE"
        )
    here = mask_NK[:, columns].astype(bool)
    row_M = np.flatnonzero(here.any(axis=1))
    record = {"rows": "the features of the bundle's own calibration rows", "num_rows": len(row_M)}
    return GateRows(target_NK[row_M][:, columns].astype(bool), here[row_M], record, z_ND=np.asarray(z_ND[row_M], np.float32))


def given_rows(new: NewRows, columns: Sequence[int]) -> GateRows:
    """Return rows that were read for the bundle."""
    target_NK, mask_NK = new.rows.labels.columns(slice(0, new.rows.labels.num_heads))
    return GateRows(target_NK[:, columns], mask_NK[:, columns], new.record, x=new.rows.x)


def check_reducible(bundle: ModelBundle, precision: str, limits: Limits) -> None:
    """Raise unless heads of the bundle may be reduced.

    Raises:
        ConfigError: a limit that cannot be; head shards, or calibrations of cohorts.
    """
    limits.check()
    if bundle.shards or isinstance(bundle.heads, HeadColumns):
        raise ConfigError(f"precision={precision} is not for bundles with head shards: their heads are not judged; expected fp32")
    if bundle.cohorts is not None:
        raise ConfigError(
            f"precision={precision} is not for models with a calibration for each value of {bundle.cohorts.column!r}, which is not "
            "fitted again; expected fp32"
        )


def reduce_model(
    bundle: ModelBundle, card: ModelCard, columns: Sequence[int], rows: GateRows, *, precision: str, limits: Limits, refit: bool
) -> ReducedModel:
    """Return the fused model of some heads in another precision, with what failed in fp32.

    Args:
        card: of the heads in `columns`.
        rows: raw rows; with features alone the backbone stays in fp32.
        refit: whether temperature and Platt calibrations are fitted again on the rows, after the precision changed, and taken where
            they are better. Nothing fails for it that would pass without.

    Raises:
        ArtifactError: ONNX Runtime cannot quantise the model; nothing could be reduced within the limits.
    """
    backbone = parsed(bundle.backbone_onnx.read_bytes(), what="the backbone")
    z_ND = rows.z_ND if rows.x is None else _features(backbone, rows.x)
    assert z_ND is not None
    gate = GatedHeads(bundle, card, columns, rows.target_NK, rows.mask_NK, limits, refit)
    full = gate.judged(gate.prob(gate.graph(gate.calibrations), z_ND))
    because: dict[str, Any] = {}
    backbone_precision = "fp32"
    if rows.x is None:
        because = {"reason": "the bundle keeps no raw rows to judge it on; give them with data=..."}
    elif not reducible(backbone, precision):
        because = {"reason": "it has no weights that this makes smaller"}
    elif not gate.is_judged_K.all():
        few = f"fewer than {limits.min_positives} known rows of their class or {limits.min_negatives} of others"
        because = {"reason": f"heads have {few} to be judged on", **gate.listed(~gate.is_judged_K)}
    else:
        small = reduced(backbone, precision, _some(rows.x))
        small_ND = _features(small, rows.x)
        found = gate.attempt(gate.graph, small_ND, full).final
        if (worse_K := found.worse_than(full, limits.margin)).any():
            because = {"reason": "heads on its features are worse", **gate.listed(worse_K)}
        else:
            backbone, z_ND, backbone_precision = small, small_ND, precision
    same = backbone_precision == "fp32"  # then heads apart are those of the bundle, bit for bit
    apart = {int(k) for k in np.flatnonzero(~gate.is_judged_K)}
    if not reducible(heads_model(gate.graph(None), z_ND.shape[1]), precision):
        apart = {*range(len(columns))}
    while not same or len(apart) < len(columns):
        made = gate.attempt(gate.reduced(z_ND, precision, frozenset(apart)), z_ND, full, keep=apart if same else ())
        failed = {int(k) for k in np.flatnonzero(made.final.worse_than(full, limits.margin))} - apart
        if not failed:
            break
        apart |= failed
    else:
        raise ArtifactError(
            f"nothing of this model can be {precision} within a margin of {limits.margin:g} on {len(z_ND)} rows: "
            f"{gate.why_none()}{_told(because)}; give more rows, a larger margin, or precision=fp32"
        )
    model, final = joined(backbone, made.graph, card), made.final
    if not same and 0 < len(apart) < len(columns):  # of few heads, some apart are larger than all in fp32
        every = gate.attempt(gate.reduced(z_ND, precision, frozenset(range(len(columns)))), z_ND, full)
        if (smaller := joined(backbone, every.graph, card)).ByteSize() <= model.ByteSize():
            made, model, final, apart = every, smaller, every.final, {*range(len(columns))}
    if rows.x is not None:  # the parts were judged: now the whole, as a device runs it
        final = gate.judged(_features(model, rows.x))
        if (broken_K := final.worse_than(full, limits.margin) & ~(same & np.isin(np.arange(len(columns)), [*apart]))).any():
            shown = ", ".join(repr(card.taxonomy.ids[k]) for k in np.flatnonzero(broken_K)[:5])
            raise ArtifactError(f"the {precision} model as a whole is worse than its parts, for class {shown}; use precision=fp32")
    return ReducedModel(
        model,
        backbone_precision,
        tuple("fp32" if k in apart else precision for k in range(len(columns))),
        because,
        full,
        made.without_refit,
        made.refit_ece_upper_K,
        final,
        gate.num_known_K2,
        gate.is_judged_K,
        tuple(new != old for new, old in zip(made.calibrations, gate.calibrations, strict=True)),
    )


def _features(backbone: onnx.ModelProto, x: Inputs) -> F32:
    session = open_session(backbone.SerializeToString(), num_threads=1, what="the backbone")
    return np.concatenate([answers(session, np.ascontiguousarray(x[block], np.float32)) for block in blocks(x)])


def _some(x: Inputs) -> F32:
    number_M = np.linspace(0, len(x) - 1, min(len(x), NUM_RANGE_ROWS)).astype(np.int64)
    return np.ascontiguousarray(x[number_M], np.float32)


def _told(because: dict[str, Any]) -> str:
    return f" (the backbone: {because['reason']})" if because else ""
