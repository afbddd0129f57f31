"""Names in an ONNX graph, and the versions that graphs are written in. Knows nothing of torch, heads or bundles."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import helper, numpy_helper

# Of the backbone and the fused graph. `onnx.helper` alone would write the newest, which current runtimes refuse.
OPSET = 18
IR_VERSION = 10
FEATURES = "features"  # the backbone's output and the heads' input
PROB = "prob"  # the output of heads and of the fused graph


def renamed(model: onnx.ModelProto, name_of: Callable[[str], str]) -> onnx.ModelProto:
    """Return a copy with every value and node renamed, and without what exporters note beside them (types, traces, file names).

    An empty name (an optional input that is not given) stays empty. Subgraphs are not looked into: no exported graph may have any.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.metadata_props[:]
    graph = copy.graph
    del graph.value_info[:]
    del graph.metadata_props[:]
    graph.doc_string = copy.doc_string = ""
    for node in graph.node:
        node.input[:] = [name and name_of(name) for name in node.input]
        node.output[:] = [name and name_of(name) for name in node.output]
        node.name = node.name and name_of(node.name)
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = name_of(value.name)
        value.doc_string = ""
        del value.metadata_props[:]
    return copy


class Nodes:
    """Nodes and initialisers of a part of a graph, under names that begin with a prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: ArrayLike) -> str:
        """Add an initialiser, and return its name in the graph."""
        array = np.asarray(value)
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), self.prefix + name))
        return self.prefix + name

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node with inputs by their names in the graph, and return the name of its output there."""
        self.nodes.append(helper.make_node(op, inputs, [self.prefix + output], **attributes))
        return self.prefix + output
