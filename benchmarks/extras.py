"""`python -m benchmarks.extras [FOLDER]`: measures what heat maps and the OOD score cost the graph.

Compares the graph of FOLDER (default release/) with the same graph that has only the output `probabilities`. Both take
turns on one image and one thread, so other load on the machine affects both alike.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import openvino as ov

from benchmarks import latency
from chestct.store import GRAPH

OPTIONS: Final = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
"""As chestct.engine sets them. The engine itself rejects a graph without all outputs."""


def measure(graph: Path) -> tuple[float, float]:
    """Return the median milliseconds of the graph without the extras, and the median that they add in a round."""
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder, GRAPH)
        onnx.utils.extract_model(str(graph), str(bare), ["pixels"], ["probabilities"])
        times = latency.measure({"alone": _compiled(bare), "whole": _compiled(graph)})
    alone, whole = np.array(times["alone"]), np.array(times["whole"])
    return float(np.median(alone)), float(np.median(whole - alone))


def _compiled(graph: Path) -> Callable[[], object]:
    core = ov.Core()
    model = core.read_model(graph)
    _, height, width, channels = model.input("pixels").partial_shape
    model.reshape({"pixels": [1, height, width, channels]})
    request = core.compile_model(model, "CPU", OPTIONS).create_infer_request()
    pixels = np.random.default_rng(0).integers(0, 256, tuple(model.input("pixels").shape), dtype=np.uint8)
    return lambda: request.infer({"pixels": pixels})


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "release"
    bare, added = measure(folder / GRAPH)
    print(f"probabilities alone {bare:.2f} ms; heat maps and ood_score add {added:.2f} ms, {added / bare:+.1%}")


if __name__ == "__main__":
    main()
