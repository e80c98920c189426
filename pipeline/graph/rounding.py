"""Rounds the weights of a graph to float16, and measures the ranges that the engine needs for int8."""

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipeline.core.params import Export


def round_weights(exact: onnx.ModelProto, wanted: Export) -> onnx.ModelProto:
    """Return the graph with weights of the type `wanted.weights`."""
    return with_float16_weights(exact) if wanted.weights == "float16" else exact


def with_float16_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that stores its convolution kernels as float16 and casts them back. The rest stays float32."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    kernels = {node.input[1] for node in result.graph.node if node.op_type == "Conv"}
    casts = []
    for tensor in result.graph.initializer:
        if tensor.name in kernels and tensor.data_type == TensorProto.FLOAT:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}_f16"))
            casts.append(helper.make_node("Cast", [f"{name}_f16"], [name], to=TensorProto.FLOAT))
    for position, cast in enumerate(casts):
        result.graph.node.insert(position, cast)
    onnx.checker.check_model(result, full_check=True)
    return result


def measure_ranges(
    model: onnx.ModelProto, pixels: NDArray[np.uint8], wanted: Export, draw: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the range of each convolution's input that int8 rounds, by the tensor's name.

    It goes from the mean over images of the lowest value to that of the highest, and cuts off the rest. So no single
    image makes the steps wide. The images are `wanted.calibration_images` of `pixels` uint8 [N, S, S, 1]: the first
    draw, 0, is the one that is released. Three kinds of convolutions are left out, because they add most of the error
    and take little time: the share `wanted.unrounded` of them next to the input, depthwise ones, and the head.
    """
    *convolutions, _ = (node for node in model.graph.node if node.op_type == "Conv")
    rounded = convolutions[math.floor(wanted.unrounded * len(convolutions)) :]
    names = list(dict.fromkeys(node.input[0] for node in rounded if _groups(node) == 1))
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = ort.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    ends = [
        [(each.min(), each.max()) for each in session.run(names, {"pixels": image[np.newaxis]})]
        for image in draw_images(pixels, wanted.calibration_images, draw)
    ]
    lows, highs = np.asarray(ends, np.float64).mean(axis=0).round(6).T.tolist()
    return dict(zip(names, zip(lows, highs, strict=True), strict=True))


def _groups(convolution: onnx.NodeProto) -> int:
    return next((each.i for each in convolution.attribute if each.name == "group"), 1)


def draw_images(pixels: NDArray[np.uint8], count: int, draw: int) -> NDArray[np.uint8]:
    """Return `count` images: evenly spaced ones for draw 0, and random ones with the draw as the seed for others."""
    if draw == 0:
        return spread(pixels, count)
    chosen = np.random.default_rng(draw).permutation(len(pixels))[:count]
    return np.take(pixels, np.sort(chosen), axis=0)


def spread(rows: NDArray[Any], count: int) -> NDArray[Any]:
    """Return `count` rows evenly spaced from first to last, or all if there are fewer."""
    chosen = np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)
    return np.take(rows, chosen, axis=0)
