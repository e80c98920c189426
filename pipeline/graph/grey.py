"""One grey channel in, not three equal ones: a part of the exported graph that costs time and adds nothing.

The network was built for colour, so it begins by copying the grey picture into three channels, scales them and
convolves them. All of that is linear in the one grey level, so a kernel over the grey level and a constant does the
same, a tenth of the time for the whole graph cheaper.
"""

from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

CONSTANT: Final = 128.0
"""Of the second channel, by which each channel's offset enters: exact as uint8 and bfloat16, and so large that the
kernels of both channels are of one size, as int8 needs it."""


def fold_grey(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose first convolution takes the grey level and CONSTANT instead of three scaled copies of the level.

    The constant is a channel, not a bias, because a convolution pads after scaling: beyond the picture's border both
    channels are zero. A graph that does not begin with copy, scale, convolve is returned as it is.
    """
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    graph = folded.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    copy = next((node for node in graph.node if node.op_type == "Concat" and len(set(node.input)) == 1), None)
    if copy is None:
        return model
    scale, offset = np.ones(len(copy.input)), np.zeros(len(copy.input))
    chain = [copy]
    while (node := _only_reader(graph, chain[-1].output[0])) is not None and node.op_type in ("Mul", "Add", "Sub"):
        constant = tensors.get(node.input[1])
        if constant is None:
            return model
        values = numpy_helper.to_array(constant).astype(float).reshape(-1)
        if node.op_type == "Mul":
            scale, offset = scale * values, offset * values
        else:
            offset = offset + (values if node.op_type == "Add" else -values)
        chain.append(node)
    if node is None or node.op_type != "Transpose":
        return model
    channels_first = node
    convolution = _only_reader(graph, channels_first.output[0])
    if convolution is None or convolution.op_type != "Conv" or convolution.input[1] not in tensors:
        return model

    kernel = tensors[convolution.input[1]]
    kernel.CopyFrom(numpy_helper.from_array(_grey_kernel(numpy_helper.to_array(kernel), scale, offset), kernel.name))
    channels_first.input[0] = copy.input[0]
    for node in chain:
        graph.node.remove(node)
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([0, 0, 0, 0, 0, 1, 0, 0], np.int64), "one_more_channel"),
            numpy_helper.from_array(np.array(CONSTANT, np.float32), "constant"),
        ]
    )
    pad = helper.make_node("Pad", [channels_first.output[0], "one_more_channel", "constant"], ["grey_and_constant"])
    graph.node.insert(list(graph.node).index(channels_first) + 1, pad)
    convolution.input[0] = pad.output[0]
    _drop_unused(graph)
    del graph.value_info[:]  # the shapes in between, as they were
    onnx.checker.check_model(folded, full_check=True)
    return folded


def _grey_kernel(kernel: NDArray[Any], scale: NDArray[Any], offset: NDArray[Any]) -> NDArray[np.float32]:
    """[F, 2, h, w] for grey level and CONSTANT, of [F, 3, h, w] for the channels `scale * level + offset`."""
    level = np.einsum("fchw,c->fhw", kernel.astype(float), scale)
    constant = np.einsum("fchw,c->fhw", kernel.astype(float), offset) / CONSTANT
    return np.stack([level, constant], axis=1).astype(np.float32)


def _only_reader(graph: onnx.GraphProto, value: str) -> onnx.NodeProto | None:
    readers = [node for node in graph.node if value in node.input]
    return readers[0] if len(readers) == 1 else None


def _drop_unused(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
