"""The ways to compute the network that benchmarks.engines compares."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

import chestct.engine  # noqa: F401 # it keeps OpenVINO from reporting its use

# isort: split
import openvino as ov

SMALLER: Final = (224, 192, 160)
"""Heights and widths of the input in pixels, besides the size that the network was trained on."""
MIXED: Final = "bfloat16, then int8"
"""The convolutions next to the input in bfloat16 (`export.unrounded` of them), the others in int8."""
Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class Variant(NamedTuple):
    """A way to compute the network."""

    runtime: str
    arithmetic: str
    size: int
    """Height and width of the input in pixels."""

    @property
    def graph(self) -> str:
        return self.arithmetic if self.arithmetic in ("int8", MIXED) else "float32"

    def compile(self, graph: Path, batch: int, **options: Any) -> Run:
        """Return a function from pixels, uint8 [batch, size, size, 1], to probabilities. Default: one core."""
        if self.runtime == "ONNX Runtime":
            return _onnx_runtime(graph)
        return openvino(graph, [batch, self.size, self.size, 1], self.arithmetic, options)


def variants(trained: int) -> list[Variant]:
    """Return the variants to measure. The others are compared with the first."""
    sizes = [Variant("OpenVINO", "bfloat16", size) for size in SMALLER if size < trained]
    kinds = [Variant("OpenVINO", kind, trained) for kind in ("float32", "bfloat16", MIXED, "int8")]
    return kinds + [Variant("ONNX Runtime", kind, trained) for kind in ("float32", "int8")] + sizes


def _onnx_runtime(graph: Path) -> Run:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda pixels: np.asarray(session.run(["probabilities"], {"pixels": pixels})[0])


def openvino(graph: Path, shape: Sequence[int], arithmetic: str, options: dict[str, Any]) -> Run:
    core = ov.Core()
    model = core.read_model(graph)
    model.reshape({"pixels": shape})
    wanted = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": 1,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "bf16" if arithmetic in ("bfloat16", MIXED) else "f32",
        **options,
    }
    request = core.compile_model(model, "CPU", wanted).create_infer_request()

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        request.infer({"pixels": pixels})
        return np.array(request.get_tensor("probabilities").data)

    return run
