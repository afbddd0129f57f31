"""Some rows with torch's calibrated probabilities for them, kept in a bundle: what exports and servers are checked against.

N = rows, K = heads
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.apply import calibrated_prob
from ovr.core.artifact import Calibration
from ovr.core.bundle import ModelBundle
from ovr.core.calibrations import Calibrations, cohort_calibrations
from ovr.core.cohorts import CohortCalibrations
from ovr.core.heads import HeadColumns
from ovr.core.shards import npy_bytes
from ovr.errors import ArtifactError

TOLERANCE = 1e-5  # of probabilities, absolute: torch and ONNX Runtime add in another order


@dataclass(frozen=True, slots=True)
class Reference:
    """Raw rows x (N, *shape) float32 and what the heads give for them; with cohorts also torch's logits."""

    x: NDArray[np.float32]
    prob_NK: NDArray[np.float64]
    tolerance_K: NDArray[np.float64]
    class_ids: tuple[str, ...]
    cohorts: CohortCalibrations | None = None
    logit_NK: NDArray[np.float32] | None = None

    def parts(self) -> dict[str, bytes]:
        """Return the files that `load_reference` reads, by their path in a bundle."""
        logit = {} if self.logit_NK is None else {"reference/logit.npy": npy_bytes(self.logit_NK)}
        return {"reference/x.npy": npy_bytes(self.x), "reference/prob.npy": npy_bytes(self.prob_NK), **logit}

    def of_cohort(self, number: int) -> "Reference":
        """Return what the heads give where every row is of cohort `number` of the graph, counted from 1."""
        assert self.cohorts is not None
        assert self.logit_NK is not None
        calibrations = cohort_calibrations(self.cohorts, number - 1)
        prob_NK = calibrated_prob(self.logit_NK, calibrations)
        return Reference(self.x, prob_NK, tolerances(calibrations), self.class_ids)

    def of(self, columns: Sequence[int] | slice) -> "Reference":
        """Return the reference of the heads in some columns, with the same rows."""
        ids = self.class_ids[columns] if isinstance(columns, slice) else tuple(self.class_ids[column] for column in columns)
        return Reference(self.x, self.prob_NK[:, columns], self.tolerance_K[columns], ids)

    def compare(self, prob_NK: NDArray[np.float32], *, what: str) -> float:
        """Return the largest absolute difference of `prob_NK` from the reference.

        Raises:
            ArtifactError: another shape, or a class whose difference is above its tolerance or NaN.
        """
        if prob_NK.shape != self.prob_NK.shape:
            raise ArtifactError(f"{what} gives shape {prob_NK.shape} for the reference rows; expected {self.prob_NK.shape}")
        diff_NK = np.abs(prob_NK.astype(np.float64) - self.prob_NK)
        wrong_NK = ~(diff_NK <= self.tolerance_K)
        if wrong_NK.any():
            row, column = (int(i) for i in np.argwhere(wrong_NK)[0])
            raise ArtifactError(
                f"{what} gives class {self.class_ids[column]!r} on reference row {row} the probability "
                f"{prob_NK[row, column]:.9g}; expected {self.prob_NK[row, column]:.9g} within {self.tolerance_K[column]:.2g} "
                f"({int(wrong_NK.any(axis=0).sum())} of {len(self.class_ids)} classes are wrong)"
            )
        return float(diff_NK.max())


def load_reference(bundle: ModelBundle) -> Reference:
    """Return the reference rows of an opened bundle.

    Raises:
        ArtifactError: the bundle has none, or they do not fit its input and classes.
    """
    try:
        x, prob_NK = (np.load(bundle.path / "reference" / name, allow_pickle=False) for name in ("x.npy", "prob.npy"))
        logit_NK = None
        if bundle.cohorts is not None:
            logit_NK = np.load(bundle.path / "reference" / "logit.npy", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"bundle {bundle.path} has no readable reference rows: {error}") from None
    expected = (len(x), len(bundle.taxonomy))
    if x.shape[1:] != bundle.input.shape or prob_NK.shape != expected or (logit_NK is not None and logit_NK.shape != expected):
        raise ArtifactError(
            f"bundle {bundle.path} has reference rows of shape {x.shape} with probabilities {prob_NK.shape}; "
            f"expected (N, {', '.join(map(str, bundle.input.shape))}) and (N, {len(bundle.taxonomy)})"
        )
    heads = bundle.heads
    calibrations = heads.calibrations if isinstance(heads, HeadColumns) else [head.calibration for head in heads]
    return Reference(x, prob_NK, tolerances(calibrations), bundle.taxonomy.ids, bundle.cohorts, logit_NK)


def tolerances(calibrations: Sequence[Calibration]) -> NDArray[np.float64]:
    """Return how far each head's probability may lie from torch's: 1e-5, times what its calibration magnifies rounding by.

    A plain sigmoid is at most 1/4 as steep as its logit, and 1e-5 is for that. An affine calibration is `scale` times as steep, a
    beta calibration at most the larger of its two scales, an isotonic one 4 times its steepest line. Where that is below 1, as much
    is allowed as for the plain sigmoid.
    """
    columns = Calibrations.of(calibrations)
    steep_K = columns.scale_K.copy()
    for column in np.flatnonzero(~columns.affine_K).tolist():
        calibration = columns[column]
        if calibration.kind == "isotonic":
            knots, probs = np.array(calibration.knot_logits), np.array(calibration.knot_probs)
            steep_K[column] = 4.0 * (np.diff(probs) / np.diff(knots)).max(initial=0.0)
        else:
            steep_K[column] = max(calibration.scale, calibration.scale_negative or 0.0)
    return TOLERANCE * np.maximum(1.0, steep_K)
