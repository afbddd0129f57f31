"""Beta and isotonic calibrations of some heads as ONNX nodes: logits (B, S) -> probabilities (B, S). Knows no weights.

The sums are those of `ovr.calibrator.apply`, in float32, and in an order that keeps them monotone: an isotonic probability never
falls where its logit rises, another only where the runtime's own sigmoid does (in ONNX Runtime here and there by less than 1e-6).

B = batch, S = heads, W = entries of a head's table of knots
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ovr.core.artifact import MIN_KNOT_STEP, Calibration
from ovr.errors import ArtifactError
from ovr.export.graph import Nodes

# What a head's file has beside its weights, by its kind of calibration.
CONSTANTS = {
    "affine": ("scale", "calibration_bias"),
    "beta": ("scale", "scale_negative", "calibration_bias"),
    "isotonic": ("knot_logit", "knot_prob"),
}
_NAMES = frozenset(name for names in CONSTANTS.values() for name in names)
LOOKUP = "lookup/"  # how names begin of constants that are the same for all tables of a size

Constants = Mapping[str, NDArray[np.float32]]


def constants_of(calibration: Calibration) -> dict[str, NDArray[np.float32]]:
    """Return what the nodes of one head's calibration are made of: (1,) each, or tables (W,).

    Raises:
        ArtifactError: a scale or bias that is not finite, or a scale of 0 or less.
    """
    if calibration.kind == "isotonic":
        return {"knot_logit": table(calibration.knot_logits), "knot_prob": table(calibration.knot_probs)}
    scales = [calibration.scale] if calibration.scale_negative is None else [calibration.scale, calibration.scale_negative]
    if not (all(np.isfinite(scale) and scale > 0 for scale in scales) and np.isfinite(calibration.bias)):
        raise ArtifactError(
            f"calibration has scale {', '.join(map(str, scales))}, bias {calibration.bias}; expected finite, scale above 0"
        )
    names = CONSTANTS["affine" if calibration.scale_negative is None else "beta"]
    return {name: np.array([value], np.float32) for name, value in zip(names, [*scales, calibration.bias], strict=True)}


def calibration_kind(constants: Constants) -> str:
    """Return the kind of calibration that a head's file is of: "affine", "beta" or "isotonic".

    Raises:
        ArtifactError: of none, or its constants have wrong shapes.
    """
    found = {name: value.shape for name, value in constants.items() if name in _NAMES}
    for kind, names in CONSTANTS.items():
        if set(found) == set(names) and len(set(found.values())) == 1 and (kind == "isotonic" or set(found.values()) == {(1,)}):
            return kind
    raise ArtifactError(
        f"a head's model has {found} beside its weights; it needs the initialisers scale and calibration_bias of shape (1,), "
        "with scale_negative for beta, or knot_logit and knot_prob of one length"
    )


def weights_of(constants: Constants) -> dict[str, NDArray[np.float32]]:
    """Return what is not of the calibration."""
    return {name: value for name, value in constants.items() if name not in _NAMES}


def table(values: ArrayLike) -> NDArray[np.float32]:
    """Return the table (W,) of some knots: the first one twice, and the last one until W - 1 is a power of two above their number.

    A binary search of a fixed number of steps then ends at an entry that has a next one, and outside the knots both are equal.
    """
    knots = np.asarray(values, np.float32)
    return stretched(np.concatenate([knots[:1], knots]), 1 + (1 << len(knots).bit_length()))


def stretched(table_W: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Return a longer table of the same knots."""
    return np.pad(table_W, (0, size - len(table_W)), mode="edge")


def beta_nodes(nodes: Nodes, logit: str, heads: Sequence[Constants], output: str) -> str:
    """Add the probabilities of heads with beta calibrations; returns their name, which is `output` under the nodes' prefix."""
    scale, scale_negative, bias = (
        nodes.constant(name, np.concatenate([head[name] for head in heads])) for name in CONSTANTS["beta"]
    )
    # Each term rises with the logit, as rounded as it is; one softplus and a product with the logit would not.
    rising = nodes.node("Mul", [nodes.node("Softplus", [logit], "minus_log_negative"), scale_negative], "rising")
    minus_log = nodes.node("Softplus", [nodes.node("Neg", [logit], "minus_logit")], "minus_log_positive")
    difference = nodes.node("Sub", [rising, nodes.node("Mul", [minus_log, scale], "falling")], "difference")
    return nodes.node("Sigmoid", [nodes.node("Add", [difference, bias], "calibrated_logit")], output)


def isotonic_nodes(nodes: Nodes, logit: str, heads: Sequence[Constants], output: str) -> str:
    """Add the probabilities of heads with isotonic calibrations; returns their name, which is `output` under the nodes' prefix.

    A binary search in every head's table finds the last knot at or below the logit; then a line to the next one.
    """
    size = max(len(head["knot_logit"]) for head in heads)
    knots, probs = (
        nodes.constant(name, np.concatenate([stretched(head[name], size) for head in heads])) for name in CONSTANTS["isotonic"]
    )
    left = nodes.constant(f"{LOOKUP}first", np.arange(len(heads)) * size)
    step = (size - 1) // 2
    while step:
        probe = nodes.node("Add", [left, nodes.constant(f"{LOOKUP}step{step}", np.array([step]))], f"probe{step}")
        reached = nodes.node(
            "GreaterOrEqual", [logit, nodes.node("Gather", [knots, probe], f"probe{step}/knot")], f"probe{step}/reached"
        )
        left = nodes.node("Where", [reached, probe, left], f"left{step}")
        step //= 2
    right = nodes.node("Add", [left, nodes.constant(f"{LOOKUP}next", np.array([1]))], "right")
    (left_knot, left_prob), (right_knot, right_prob) = (
        [nodes.node("Gather", [values, index], f"{side}/{name}") for name, values in (("knot", knots), ("prob", probs))]
        for side, index in (("left", left), ("right", right))
    )
    limits = [nodes.constant(f"{LOOKUP}{name}", np.float32(value)) for name, value in (("least", 0.0), ("most", 1.0))]
    gap = nodes.node("Sub", [right_knot, left_knot], "gap")
    width = nodes.node("Max", [gap, nodes.constant(f"{LOOKUP}least_width", np.float32(MIN_KNOT_STEP))], "width")
    distance = nodes.node("Sub", [logit, left_knot], "distance")
    part = nodes.node("Clip", [nodes.node("Div", [distance, width], "parts"), *limits], "part")
    rise = nodes.node("Mul", [part, nodes.node("Sub", [right_prob, left_prob], "whole_rise")], "rise")
    return nodes.node("Min", [nodes.node("Add", [left_prob, rise], "on_the_line"), right_prob], output)
