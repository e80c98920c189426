"""Rounds the weights of a graph to int8 or float16.

int8 also rounds activations: a convolution takes int8 weights with a scale per channel, and uint8 input with a range
measured on training images. Pairs of QuantizeLinear and DequantizeLinear in the file say so, and OpenVINO and ONNX
Runtime turn them into int8 convolutions. Everything else stays float32: additions, the head, the calibration, the OOD
score, and the convolutions next to the input if wanted. Those add most of the error.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from pipeline.core.params import Export


def round_weights(exact: onnx.ModelProto, pixels: NDArray[np.uint8], wanted: Export, draw: int = 0) -> onnx.ModelProto:
    """Return the graph with weights of the type `wanted.weights`.

    int8 takes its ranges from some of `pixels` [N, S, S, 1]. The first draw, 0, is the one that is released.
    """
    if wanted.weights == "float16":
        return with_float16_weights(exact)
    if wanted.weights == "int8":
        return quantise(exact, draw_images(pixels, wanted.calibration_images, draw), wanted.unrounded)
    return exact


def draw_images(pixels: NDArray[np.uint8], count: int, draw: int) -> NDArray[np.uint8]:
    """Return `count` images: evenly spaced ones for draw 0, and random ones with the draw as the seed for others."""
    if draw == 0:
        return spread(pixels, count)
    chosen = np.random.default_rng(draw).permutation(len(pixels))[:count]
    return np.take(pixels, np.sort(chosen), axis=0)


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._left: Iterator[NDArray[np.uint8]] = iter(pixels)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        image = next(self._left, None)
        return None if image is None else {"pixels": image[np.newaxis]}


def quantise(model: onnx.ModelProto, pixels: NDArray[np.uint8], unrounded: float = 0) -> onnx.ModelProto:
    """Return a copy of the float32 graph with int8 convolutions.

    The ranges come from `pixels` uint8 [N, S, S, 1]. `unrounded` is the share of the convolutions, counted from the
    input, that stay as they are.
    """
    with TemporaryDirectory() as folder:
        exact, folded, quantised = (Path(folder, name) for name in ("exact.onnx", "folded.onnx", "quantised.onnx"))
        onnx.save(model, exact)
        quant_pre_process(exact, folded, skip_symbolic_shape=True)  # merges batch norms into their convolutions
        convolutions = [node.name for node in onnx.load(folded).graph.node if node.op_type == "Conv"]
        quantize_static(
            folded,
            quantised,
            _Images(pixels),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=convolutions[: int(unrounded * len(convolutions))],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                # A convolution's output is much wider than what its activation passes on.
                "OpTypesToExcludeOutputQuantization": ["Conv"],
                "QuantizeBias": False,
            },
        )
        result = onnx.load(quantised)
    onnx.checker.check_model(result, full_check=True)
    return result


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


def spread(rows: NDArray[Any], count: int) -> NDArray[Any]:
    """Return `count` rows evenly spaced from first to last, or all if there are fewer."""
    chosen = np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)
    return np.take(rows, chosen, axis=0)
