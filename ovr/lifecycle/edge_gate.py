"""Backbone and heads in fewer bits, each only where labelled rows show that no head is the worse for it. Needs no torch.

The backbone is one for all heads: it is accepted if no head of fp32 is worse on its features. The heads on the accepted backbone
are then judged one by one, and those that are worse keep their fp32 weights, in a Gemm of their own.

N = rows, D = features, K = heads
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ovr.calibrator.apply import calibrated_prob
from ovr.calibrator.platt import Platt
from ovr.calibrator.temperature import Temperature
from ovr.core.artifact import Calibration, ModelCard
from ovr.core.bundle import ModelBundle
from ovr.core.heads import HeadColumns
from ovr.data.lazy import Inputs, blocks
from ovr.errors import ArtifactError, ConfigError
from ovr.export.fused import heads_graph, joined
from ovr.export.head import head_metadata, head_model
from ovr.export.heads_graph import HeadsGraph
from ovr.export.reduced import NUM_RANGE_ROWS, heads_model, reduced, reduced_heads, reducible
from ovr.export.stored import parsed, stored_weights
from ovr.lifecycle.logits import answers, open_session
from ovr.lifecycle.rows import NewRows
from ovr.metric.calibration_bound import ece_upper_bound
from ovr.metric.classification import at_thresholds, average_precision

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

# Of calibrations that each head's own logits decide.
REFITTERS: dict[str, Temperature | Platt] = {"temperature": Temperature(), "platt": Platt()}
IDENTITY = Calibration(kind="identity")


@dataclass(frozen=True, slots=True)
class GateRows:
    """Labelled rows of some heads (N, K): raw, or where the bundle keeps no more than that, features (N, D)."""

    target_NK: Bool
    mask_NK: Bool
    record: dict[str, Any]
    x: Inputs | None = None
    z_ND: F32 | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """What rows show of each head (K,): the upper bound of its calibration error, its average precision, and its decisions."""

    ece_upper_K: F64
    ap_K: F64
    label_NK: Bool

    def worse_than(self, other: "Judged", margin: float) -> Bool:
        """Return which heads (K,) are worse than those of `other` by more than the margin, or cannot be judged."""
        return ~((self.ece_upper_K - other.ece_upper_K <= margin) & (other.ap_K - self.ap_K <= margin))


@dataclass(frozen=True, slots=True)
class ReducedModel:
    """The fused model, and what the gate found."""

    model: onnx.ModelProto
    backbone: str  # its precision
    head_precisions: tuple[str, ...]
    because: dict[str, Any]  # why the backbone stayed in fp32, if it did
    full: Judged
    without_refit: Judged
    final: Judged
    refitted_K: tuple[bool, ...] = field(default=())


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


def check_reducible(bundle: ModelBundle, precision: str, margin: Any) -> None:
    """Raise unless heads of the bundle may be reduced.

    Raises:
        ConfigError: a margin that is no number from 0 to 1; head shards, or calibrations of cohorts.
    """
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin <= 1:
        raise ConfigError(f"margin is {margin!r}; expected a number from 0 to 1")
    if bundle.shards or isinstance(bundle.heads, HeadColumns):
        raise ConfigError(f"precision={precision} is not for bundles with head shards: their heads are not judged; expected fp32")
    if bundle.cohorts is not None:
        raise ConfigError(
            f"precision={precision} is not for models with a calibration for each value of {bundle.cohorts.column!r}, which is not "
            "fitted again; expected fp32"
        )


def reduce_model(
    bundle: ModelBundle, card: ModelCard, columns: Sequence[int], rows: GateRows, *, precision: str, margin: float, refit: bool
) -> ReducedModel:
    """Return the fused model of some heads in another precision, with what failed in fp32.

    Args:
        card: of the heads in `columns`.
        rows: raw rows; with features alone the backbone stays in fp32.
        margin: by which a head's upper bound of the calibration error may rise, and its average precision fall.
        refit: whether temperature and Platt calibrations are fitted again on the rows, after the precision changed.

    Raises:
        ArtifactError: ONNX Runtime cannot quantise the model; nothing could be reduced within the margin.
    """
    backbone = parsed(bundle.backbone_onnx.read_bytes(), what="the backbone")
    z_ND = rows.z_ND if rows.x is None else _features(backbone, rows.x)
    assert z_ND is not None
    gate = _Gate(bundle, card, columns, rows, margin, refit)
    full = gate.judged(gate.prob(gate.graph(gate.calibrations), z_ND))
    because: dict[str, Any] = {}
    backbone_precision = "fp32"
    if rows.x is None:
        because = {"reason": "the bundle keeps no raw rows to judge it on; give them with data=..."}
    elif not reducible(backbone, precision):
        because = {"reason": "it has no weights that this makes smaller"}
    else:
        small = reduced(backbone, precision, _some(rows.x))
        small_ND = _features(small, rows.x)
        found = gate.judged(gate.prob(gate.graph(gate.refitted(gate.graph(None), small_ND, ())), small_ND))
        if (worse_K := found.worse_than(full, margin)).any():
            ids = [card.taxonomy.ids[k] for k in np.flatnonzero(worse_K)]
            because = {"reason": "heads on its features are worse, or cannot be judged", "num_heads": len(ids), "heads": ids[:20]}
        else:
            backbone, z_ND, backbone_precision = small, small_ND, precision
    same = backbone_precision == "fp32"  # then heads apart are those of the bundle, bit for bit
    apart: set[int] = set() if reducible(heads_model(gate.graph(None), z_ND.shape[1]), precision) else {*range(len(columns))}
    while True:
        graph, found, without, calibrations = gate.attempt(z_ND, precision, frozenset(apart), keep=apart if same else ())
        failed = {int(k) for k in np.flatnonzero(found.worse_than(full, margin))} - apart
        if not failed:
            break
        apart |= failed
    if same and len(apart) == len(columns):
        raise ArtifactError(
            f"nothing of this model can be {precision} within a margin of {margin:g} on {len(z_ND)} rows: every head is worse, has "
            f"no positive row to be judged on, or too few weights{_told(because)}; give more rows, a larger margin, or "
            "precision=fp32"
        )
    model = joined(backbone, graph, card)
    if rows.x is not None:  # the parts were judged: now the whole, as a device runs it
        found = gate.judged(_features(model, rows.x))
        if (broken_K := found.worse_than(full, margin) & ~np.isin(np.arange(len(columns)), [*apart])).any():
            shown = ", ".join(repr(card.taxonomy.ids[k]) for k in np.flatnonzero(broken_K)[:5])
            raise ArtifactError(f"the {precision} model as a whole is worse than its parts, for class {shown}; use precision=fp32")
    return ReducedModel(
        model,
        backbone_precision,
        tuple("fp32" if k in apart else precision for k in range(len(columns))),
        because,
        full,
        without,
        found,
        tuple(new != old for new, old in zip(calibrations, gate.calibrations, strict=True)),
    )


class _Gate:
    """Some heads of a bundle, and the rows that they are judged on."""

    def __init__(
        self, bundle: ModelBundle, card: ModelCard, columns: Sequence[int], rows: GateRows, margin: float, refit: bool
    ) -> None:
        self.card, self.rows, self.margin, self.refit = card, rows, margin, refit
        self.heads = [bundle.heads[column] for column in columns]
        self.calibrations = [head.calibration for head in self.heads]
        self.weights = [(kind, weights) for _, kind, weights in stored_weights(bundle, columns)]

    def graph(self, calibrations: Sequence[Calibration] | None, apart: frozenset[int] = frozenset()) -> HeadsGraph:
        """Return the heads with these calibrations; None: with none, so that the logits are the plain ones."""
        models = [
            head_model(kind, weights, new, head_metadata(replace(head, calibration=new)))
            for head, (kind, weights), new in zip(
                self.heads, self.weights, calibrations or [IDENTITY] * len(self.heads), strict=True
            )
        ]
        kind, weights = self.weights[0]
        num_features = weights["weight" if kind == "linear" else "hidden_weight"].shape[-1]
        return heads_graph(models, self.card, num_features=num_features, apart=apart)

    def attempt(
        self, z_ND: F32, precision: str, apart: frozenset[int], *, keep: Any
    ) -> tuple[HeadsGraph, Judged, Judged, list[Calibration]]:
        """Return the heads in a precision but for those apart, what they are worth with and without refit, and calibrations."""
        plain = reduced_heads(self.graph(None, apart), precision, z_ND)
        without = self.judged(calibrated_prob(self.logit(plain, z_ND), self.calibrations))
        calibrations = self.refitted(plain, z_ND, keep)
        graph = reduced_heads(self.graph(calibrations, apart), precision, z_ND)
        return graph, self.judged(self.prob(graph, z_ND)), without, calibrations

    def refitted(self, plain: HeadsGraph, z_ND: F32, keep: Any) -> list[Calibration]:
        """Return calibrations fitted again on plain logits; those that cannot be, or are to be kept, as they were."""
        made = list(self.calibrations)
        logit_NK = self.logit(plain, z_ND)
        for kind, calibrator in REFITTERS.items():
            here = [k for k, old in enumerate(self.calibrations) if old.kind == kind and k not in keep]
            if self.refit and here:
                fitted = calibrator.fit(logit_NK[:, here], self.rows.target_NK[:, here], self.rows.mask_NK[:, here])
                for k, new in zip(here, fitted, strict=True):
                    if new.status not in ("no_rows", "one_class"):
                        made[k] = new
        return made

    def logit(self, graph: HeadsGraph, z_ND: F32) -> F32:
        """Return the heads' logits (N, K)."""
        model = heads_model(graph, z_ND.shape[1], output=graph.logit)
        return _run(model, z_ND)[:, graph.slot_K]

    def prob(self, graph: HeadsGraph, z_ND: F32) -> F32:
        """Return the heads' probabilities (N, K)."""
        return _run(heads_model(graph, z_ND.shape[1]), z_ND)

    def judged(self, prob_NK: NDArray[np.floating[Any]]) -> Judged:
        """Return what the rows show of probabilities."""
        target_NK, mask_NK = self.rows.target_NK, self.rows.mask_NK
        upper_K = ece_upper_bound(prob_NK, target_NK, mask_NK)[1]
        label_NK = at_thresholds(prob_NK, self.card.thresholds)
        return Judged(upper_K, average_precision(prob_NK, target_NK, mask_NK), label_NK)


def _run(model: onnx.ModelProto, rows: F32) -> F32:
    return answers(open_session(model.SerializeToString(), num_threads=1, what="the heads"), rows)


def _features(backbone: onnx.ModelProto, x: Inputs) -> F32:
    session = open_session(backbone.SerializeToString(), num_threads=1, what="the backbone")
    return np.concatenate([answers(session, np.ascontiguousarray(x[block], np.float32)) for block in blocks(x)])


def _some(x: Inputs) -> F32:
    number_M = np.linspace(0, len(x) - 1, min(len(x), NUM_RANGE_ROWS)).astype(np.int64)
    return np.ascontiguousarray(x[number_M], np.float32)


def _told(because: dict[str, Any]) -> str:
    return f" (the backbone: {because['reason']})" if because else ""
