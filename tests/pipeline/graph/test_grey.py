"""The grey level's own kernel answers what three scaled copies did, up to the border, and leaves other graphs alone."""

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipeline.graph.grey import fold_grey

SIZE = 8
SCALE, OFFSET = np.array([0.02, 0.03, 0.04], np.float32), np.array([-2.1, -1.9, 3.0], np.float32)
PIXELS = np.random.default_rng(0).uniform(0, 255, (2, SIZE, SIZE, 1)).astype(np.float32)


def graph_with(copies: list[str], strides: int = 2) -> onnx.ModelProto:
    """Copy, scale and offset channel by channel, channels first, convolve with padding on two sides."""
    kernel = np.random.default_rng(1).normal(size=(5, len(copies), 3, 3)).astype(np.float32)
    constants = {"scale": SCALE, "offset": OFFSET, "kernel": kernel}
    nodes = [
        helper.make_node("Concat", copies, ["copied"], axis=3),
        helper.make_node("Mul", ["copied", "scale"], ["multiplied"]),
        helper.make_node("Add", ["multiplied", "offset"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["first", "kernel"], ["maps"], strides=[strides] * 2, pads=[0, 0, 1, 1]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", SIZE, SIZE, 1]) for name in dict.fromkeys(copies)
    ]
    maps = helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["N", 5, None, None])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "grey", inputs, [maps], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def maps(model: onnx.ModelProto) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return np.asarray(session.run(None, {"level": PIXELS})[0])


@pytest.mark.parametrize("strides", [1, 2])
def test_the_maps_stay_as_they_were_up_to_the_border(strides: int) -> None:
    model = graph_with(["level"] * 3, strides)
    folded = fold_grey(model)
    assert [node.op_type for node in folded.graph.node] == ["Transpose", "Pad", "Conv"]
    assert maps(folded) == pytest.approx(maps(model), abs=1e-4)
    kernel = next(tensor for tensor in folded.graph.initializer if tensor.name == "kernel")
    assert list(kernel.dims) == [5, 2, 3, 3]
    assert model.graph.node[0].op_type == "Concat", "the model itself is not touched"


def test_what_is_no_grey_copy_is_left_alone() -> None:
    colours = graph_with(["red", "green", "blue"])
    assert fold_grey(colours) is colours
    padded = graph_with(["level"] * 3)
    padded.graph.node[4].op_type = "MaxPool"
    padded.graph.node[4].input.pop()
    assert fold_grey(padded) is padded
