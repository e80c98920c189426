"""The end of a serving graph: probabilities = softmax(scale * logits + shift), by nodes that can be found by name.

They are appended in ONNX instead of Keras, because an exporter renames constants, and drops a shift of 0.
"""

from typing import Final

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from chestct.card import Scaling

SCALED: Final = "scaled_logits"
SHIFTED: Final = "calibrated_logits"
"""What the two nodes give. The second input of each is its constant, float32 [classes]."""


def append_scaling(model: onnx.ModelProto, scaling: Scaling) -> None:
    """Turn the graph's output `logits` [N, classes] into its output `probabilities`."""
    nodes = {
        SCALED: helper.make_node("Mul", ["logits", f"{SCALED}_by"], [SCALED]),
        SHIFTED: helper.make_node("Add", [SCALED, f"{SHIFTED}_by"], [SHIFTED]),
    }
    softmax = helper.make_node("Softmax", [SHIFTED], ["probabilities"], axis=-1)
    model.graph.node.extend([*nodes.values(), softmax])
    for name, numbers in _numbers(scaling).items():
        model.graph.initializer.append(numpy_helper.from_array(numbers, nodes[name].input[1]))
    (output,) = (output for output in model.graph.output if output.name == "logits")
    output.CopyFrom(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", len(scaling.scale)]))


def with_scaling(model: onnx.ModelProto, scaling: Scaling) -> onnx.ModelProto:
    """Return a copy with another scaling. Raises ValueError for a graph that was exported without the named nodes."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    nodes = {node.output[0]: node for node in graph.node if node.output[0] in (SCALED, SHIFTED)}
    if set(nodes) != {SCALED, SHIFTED}:
        raise ValueError(f"its graph has no nodes {SCALED} and {SHIFTED}")
    for name, numbers in _numbers(scaling).items():
        constant = nodes[name].input[1] = _own_name(graph, nodes[name])
        old = [tensor for tensor in graph.initializer if tensor.name == constant]
        for tensor in old:
            graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(numbers, constant))
    onnx.checker.check_model(result)
    return result


def _own_name(graph: onnx.GraphProto, node: NodeProto) -> str:
    """A name for the node's constant. Rounding lets several nodes share a constant if its numbers are equal."""
    name = f"{node.output[0]}_by"
    while any(name in other.input for other in graph.node if other.output[0] != node.output[0]):
        name += "_alone"
    return name


def _numbers(scaling: Scaling) -> dict[str, np.ndarray]:
    return {SCALED: np.array(scaling.scale, np.float32), SHIFTED: np.array(scaling.shift, np.float32)}
