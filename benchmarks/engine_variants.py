"""The ways to compute the network that benchmarks.engines compares."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from chestct.arithmetic import ARITHMETICS, Arithmetic
from chestct.engine import Ranges, has_instructions, round_convolutions  # it keeps OpenVINO from reporting its use

# isort: split
import openvino as ov

SMALLER: Final = (224, 192, 160)
"""Heights and widths of the input in pixels, besides the size that the network was trained on."""
Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class Variant(NamedTuple):
    """A way to compute the network."""

    runtime: str
    arithmetic: Arithmetic
    size: int
    """Height and width of the input in pixels."""

    def compile(self, graph: Path, batch: int, ranges: Ranges) -> Run:
        """Return a function from pixels, uint8 [batch, size, size, 1], to probabilities, on one core."""
        if self.runtime == "ONNX Runtime":
            return _onnx_runtime(graph)
        return openvino(graph, [batch, self.size, self.size, 1], self.arithmetic, ranges, {})


def variants(trained: int) -> list[Variant]:
    """Return the variants to measure. The others are compared with the first.

    Without instructions for an arithmetic, OpenVINO computes in another one, so such an arithmetic is left out.
    """
    kinds = [Variant("OpenVINO", kind, trained) for kind in reversed(ARITHMETICS) if has_instructions(kind)]
    sizes = [Variant("OpenVINO", kinds[-1].arithmetic, size) for size in SMALLER if size < trained]
    return [*kinds, Variant("ONNX Runtime", "float32", trained), *sizes]


def _onnx_runtime(graph: Path) -> Run:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda pixels: np.asarray(session.run(["probabilities"], {"pixels": pixels})[0])


def openvino(graph: Path, shape: Sequence[int], arithmetic: Arithmetic, ranges: Ranges, options: dict[str, Any]) -> Run:
    """Return the function as of Variant.compile, with other `options` of OpenVINO."""
    core = ov.Core()
    model = core.read_model(graph)
    model.reshape({"pixels": shape})
    if arithmetic == "int8":
        round_convolutions(model, ranges)
    wanted = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": 1,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "bf16" if arithmetic == "bfloat16" else "f32",
        **options,
    }
    request = core.compile_model(model, "CPU", wanted).create_infer_request()

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        request.infer({"pixels": pixels})
        return np.array(request.get_tensor("probabilities").data)

    return run
