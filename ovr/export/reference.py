"""Exported models against the reference rows of a bundle.

N = rows, D = features, K = heads
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from ovr.core.onnx_file import GRAPH_OPS, HEAD_OPS
from ovr.errors import ArtifactError
from ovr.export.check import check_structure, run
from ovr.runtime.reference import Reference


@dataclass(frozen=True, slots=True)
class CheckedParts:
    """Serialised models that passed, and the largest difference of the heads' probabilities from the reference."""

    backbone: bytes
    heads: list[bytes]
    max_abs_diff: float


def check_parts(backbone: onnx.ModelProto, heads: Sequence[onnx.ModelProto], reference: Reference) -> CheckedParts:
    """Return the serialised backbone and heads (in column order) if they may be served and give the reference together.

    Raises:
        ArtifactError: they do not.
    """
    backbone_bytes = check_structure(backbone, allowed_ops=GRAPH_OPS, what="the backbone")
    features_ND = run(backbone_bytes, reference.x)
    head_bytes = []
    prob_NK = np.empty(reference.prob_NK.shape, np.float32)
    for column, (class_id, head) in enumerate(zip(reference.class_ids, heads, strict=True)):
        data = check_structure(head, allowed_ops=HEAD_OPS, what=f"head {class_id!r}")
        prob_NK[:, column : column + 1] = run(data, features_ND)
        head_bytes.append(data)
    return CheckedParts(backbone_bytes, head_bytes, reference.compare(prob_NK, what="the backbone with the head's own model"))


def check_fused(fused: onnx.ModelProto, reference: Reference) -> tuple[bytes, float]:
    """Return the serialised fused graph and its largest difference, if it may be served and gives the reference, for every cohort.

    Raises:
        ArtifactError: it does not.
    """
    data = check_structure(fused, allowed_ops=GRAPH_OPS, what="the fused graph")
    prob_NK = run(data, reference.x)
    diff = reference.compare(prob_NK, what="the fused graph")
    cohorts = reference.cohorts
    for number, name in enumerate(() if cohorts is None else (None, *cohorts.names, None)):
        of_number_NK = run(data, reference.x, cohort=number)
        if name is None:  # 0, and the first number that there is not
            if not np.array_equal(of_number_NK, prob_NK):
                raise ArtifactError(f"the fused graph gives cohort number {number} other probabilities than rows without a cohort")
            continue
        assert cohorts is not None
        what = f"the fused graph for {cohorts.column}={name}"
        diff = max(diff, reference.of_cohort(number).compare(of_number_NK, what=what))
    return data, diff
