"""Many heads of one kind as few ONNX nodes, from stacked weights. Knows nothing of the backbone or of files.

B = batch, D = features, S = heads, H = hidden units of one head, P = heads padded to blocks
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from onnx import helper

from ovr.core.cohorts import COHORT
from ovr.export.graph import Nodes

UNIT_BLOCK = 16  # hidden units: sums over them that all begin at whole cache lines add in one order, whichever head's they are
COLUMN_BLOCK = 32  # columns that the widest CPU kernels (AVX-512) take at once; 64 costs 0.3 us more a row at K = 10

Stack = dict[str, NDArray[np.float32]]  # weights of the heads under the names that one head has them by, (S, ...) each


def num_padded(num_heads: int) -> int:
    """Return the columns of so many heads, padded to whole blocks."""
    return -(-num_heads // COLUMN_BLOCK) * COLUMN_BLOCK


def folded(stack: Stack, scale_S: ArrayLike, bias_S: ArrayLike) -> Stack:
    """Return the weights of the heads whose plain logit is scale * logit + bias: two nodes less for each answer."""
    # Rounded to float32 first, as a head's own file has them.
    scale_S, bias_S = (np.asarray(value, dtype=np.float32).astype(np.float64) for value in (scale_S, bias_S))
    weight, bias = stack["weight"], stack["bias"]
    return {
        **stack,
        "weight": (scale_S.reshape(-1, 1, 1) * weight).astype(np.float32),
        "bias": (scale_S[:, None] * bias + bias_S[:, None]).astype(np.float32),
    }


def blank(stack: Stack, num_heads: int) -> Stack:
    """Return zeros for so many heads of the kind and size of those in `stack`, padded to whole blocks."""
    return {name: np.zeros((num_padded(num_heads), *value.shape[1:]), np.float32) for name, value in stack.items()}


class HeadsGraph(Nodes):
    """Nodes and initialisers of heads, under names that begin with `heads/`."""

    def __init__(self, features: str) -> None:
        """Take the name of the input (B, D)."""
        super().__init__("heads/")
        self.features = features
        self.logit = ""  # the name of all heads' logits (B, S), once there are any
        self.slot_K = np.empty(0, np.int64)  # which of their columns is whose

    def part(self, prefix: str) -> Nodes:
        """Return a part of this graph under a longer prefix: what is added to one is in both."""
        part = Nodes(self.prefix + prefix)
        part.nodes, part.initializers = self.nodes, self.initializers
        return part

    def linear(self, heads: Stack, *, apart: str = "") -> str:
        """Add calibrated logits (B, P) of linear heads."""
        weight = self.constant(f"{apart}linear/weight", heads["weight"][:, 0])
        bias = self.constant(f"{apart}linear/bias", heads["bias"][:, 0])
        return self.node("Gemm", [self.features, weight, bias], f"{apart}linear/logit", transB=1)

    def mlp(self, heads: Stack, *, apart: str = "") -> str:
        """Add calibrated logits (B, P) of heads with H hidden units each: one Gemm, a product by entries, a sum over H."""
        padded, units = heads["hidden_bias"].shape
        name, more = f"{apart}mlp{units}", -units % UNIT_BLOCK
        hidden = units + more
        hidden_weight = np.pad(heads["hidden_weight"], ((0, 0), (0, more), (0, 0)))
        weight = self.constant(f"{name}/hidden_weight", hidden_weight.reshape(padded * hidden, -1))
        bias = self.constant(f"{name}/hidden_bias", np.pad(heads["hidden_bias"], ((0, 0), (0, more))).reshape(-1))
        flat = self.node("Gemm", [self.features, weight, bias], f"{name}/hidden_sum", transB=1)
        units = self.node("Relu", [flat], f"{name}/hidden")
        shape = self.constant(f"{name}/shape", np.array([-1, padded, hidden]))
        grouped = self.node("Reshape", [units, shape], f"{name}/grouped")
        product = self.node(
            "Mul", [grouped, self.constant(f"{name}/weight", np.pad(heads["weight"][:, 0], ((0, 0), (0, more))))], f"{name}/product"
        )
        axes = self.constant(f"{name}/axes", np.array([2]))
        total = self.node("ReduceSum", [product, axes], f"{name}/sum", keepdims=0)
        return self.node("Add", [total, self.constant(f"{name}/bias", heads["bias"][:, 0])], f"{name}/logit")

    def logits(self, kind: str, heads: Stack, *, apart: str = "") -> str:
        """Add calibrated logits (B, P) of heads of one kind and size, padded to whole blocks.

        Args:
            apart: how the names begin of heads that are a group of their own beside others of their kind.
        """
        return self.linear(heads, apart=apart) if kind == "linear" else self.mlp(heads, apart=apart)

    def cohorts(self, logit: str, factor_CP: NDArray[np.float32], offset_CP: NDArray[np.float32]) -> str:
        """Add the logits (B, P) of each row's cohort, factor * logit + offset: the row of the tables that the input `cohort` says.

        That input, int64 (B, 1), is 0 where it is not given, as are numbers that the tables do not have: one row's mistake must not
        fail the others of its batch.
        """
        zero, size, axis = (
            self.constant(f"cohort/{name}", np.array(value))
            for name, value in (("pooled", 0), ("size", len(factor_CP)), ("axis", [1]))
        )
        is_low = self.node("GreaterOrEqual", [COHORT, zero], "cohort/not_below")
        is_high = self.node("Less", [COHORT, size], "cohort/not_above")
        known = self.node("Where", [self.node("And", [is_low, is_high], "cohort/is_known"), COHORT, zero], "cohort/known")
        row = self.node("Squeeze", [known, axis], "cohort/row")
        factor = self.node("Gather", [self.constant("cohort/factors", factor_CP), row], "cohort/factor", axis=0)
        offset = self.node("Gather", [self.constant("cohort/offsets", offset_CP), row], "cohort/offset", axis=0)
        return self.node("Add", [self.node("Mul", [logit, factor], "cohort/scaled"), offset], "cohort/logit")

    def first(self, values: str, count: int, output: str) -> None:
        """Give the first columns of `values` out as `output`."""
        bounds = [self.constant(name, np.array([value])) for name, value in (("start", 0), ("end", count), ("axis", 1))]
        self.nodes.append(helper.make_node("Slice", [values, *bounds], [output]))
