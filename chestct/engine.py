"""Runs the ONNX graph with OpenVINO on the CPU. The only module that imports the inference runtime."""

import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chestct.arithmetic import Arithmetic, CloseCalls
from chestct.card import ModelCard
from chestct.cgroups import cores_are_shared

# OpenVINO's tools, which the engine does without, would report this import to a web service.
sys.modules["openvino.tools.ovc"] = None  # type: ignore[assignment]

import openvino as ov  # noqa: E402 # after the line above
from openvino import opset13  # noqa: E402

BATCH_SIZES: Final = (1, 2, 4, 8)
"""Compiled batch sizes. A static shape runs faster than a dynamic one, but each size takes memory."""
CPU_INFO: Final = Path("/proc/cpuinfo")
_EXACT_INT8: Final = {"avx512_vnni", "avx_vnni", "amx_int8"}
"""CPU flags of instructions that add the products of 8-bit numbers in 32 bits. Others add in 16, which may saturate."""

_TINY: Final = np.finfo(np.float32).tiny
_End = np.float32 | NDArray[np.float32]
"""Of a range, or of the range of each channel."""
Ranges = Mapping[str, tuple[float, float]]
"""By name of a tensor: its lowest and its highest value."""


class Scores(NamedTuple):
    """Outputs of the graph for N images, under these names."""

    probabilities: NDArray[np.float32]
    """[N, classes], calibrated, each row sums to 1."""
    ood_score: NDArray[np.float32]
    """[N]; higher is less similar to the training images."""
    chest_ct: NDArray[np.float32]
    """[N], 0 to 1: the probability that the picture is a chest CT slice, of any source and in any window."""
    heatmaps: NDArray[np.float32]
    """[N, classes, h, w] in logits. The spatial mean plus the card's `logit_bias` is the logit."""


class Engine:
    """A graph compiled for the CPU. It is not thread-safe, except that `complete` may run beside everything else."""

    def __init__(
        self,
        graph: Path,
        *,
        threads: int = 0,
        threads_alone: int = 0,
        batch_sizes: Sequence[int] = BATCH_SIZES,
        arithmetic: Arithmetic = "float32",
        ranges: Ranges | None = None,
        close_calls: CloseCalls | None = None,
        only_smallest: bool = False,
    ) -> None:
        """Compile the graph for each of `batch_sizes`, with `threads` CPU threads for one inference, 0 for all cores.

        With `threads_alone` above `threads`, also for one image with so many threads (`infer_alone`). If
        `only_smallest`, compile the smallest batch size alone, and leave the others to `complete`.

        In another `arithmetic` than float32, scores differ a little, but do not depend on the batch. int8 needs
        `ranges`, and rounds the convolutions whose input has one. The `close_calls` are computed again in float32.
        Raises FileNotFoundError.
        """
        if not graph.is_file():
            raise FileNotFoundError(f"no ONNX graph at {graph}")
        self._core: Final = ov.Core()
        self._model: Final = _read(self._core, graph)
        self.arithmetic: Final = arithmetic
        self._ranges: Final = ranges or {}
        self._sizes: Final = sorted(set(batch_sizes))
        self._threads: Final = threads
        self._threads_alone: Final = threads_alone if threads_alone > threads > 0 else 0
        self._close_calls: Final = None if arithmetic == "float32" else close_calls
        self._requests = {self._sizes[0]: self._compile(self._sizes[0], threads, arithmetic)}
        """By batch size. Replaced as a whole, because `complete` may run in another thread."""
        self._alone: ov.InferRequest | None = None
        self._exact: ov.InferRequest | None = None
        self._compiling_exact: Final = threading.Lock()
        if not only_smallest:
            self.complete()

    def complete(self) -> None:
        """Compile the graphs that are missing yet. Raises RuntimeError if OpenVINO can't.

        Until then, `infer` runs an image or a batch in smaller batches, and a close call waits for its graph.
        """
        if self._close_calls:
            self._in_float32()
        for size in self._sizes:
            if size not in self._requests:
                self._requests = {**self._requests, size: self._compile(size, self._threads, self.arithmetic)}
        if self._threads_alone and self._alone is None:
            self._alone = self._compile(1, self._threads_alone, self.arithmetic, pinned=not cores_are_shared())

    @property
    def largest_batch(self) -> int:
        return self._sizes[-1]

    def infer(self, pixels: NDArray[np.uint8]) -> Scores:
        """Score uint8 [N, height, width, 1] with any N of 1 or more, in batches padded to the compiled sizes."""
        requests = self._requests
        largest = max(requests)
        parts = [self._run(requests, pixels[start : start + largest]) for start in range(0, len(pixels), largest)]
        return parts[0] if len(parts) == 1 else Scores(*(np.concatenate(field) for field in zip(*parts, strict=True)))

    def infer_alone(self, pixels: NDArray[np.uint8]) -> Scores:
        """Score one image, uint8 [1, height, width, 1], in less time, if nothing else needs the cores."""
        return self.infer(pixels) if self._alone is None else self._with_exact(_outputs(self._alone, pixels, 1), pixels)

    def _run(self, requests: Mapping[int, ov.InferRequest], pixels: NDArray[np.uint8]) -> Scores:
        count = len(pixels)
        size = min(size for size in requests if size >= count)
        if size > count:
            pixels = np.concatenate([pixels, np.zeros((size - count, *pixels.shape[1:]), np.uint8)])
        return self._with_exact(_outputs(requests[size], pixels, count), pixels)

    def _with_exact(self, scores: Scores, pixels: NDArray[np.uint8]) -> Scores:
        """The scores, with those of close calls in float32."""
        if self._close_calls:
            for index in self._close_calls.find(scores.probabilities):
                exact = _outputs(self._in_float32(), pixels[index : index + 1], 1)
                for kept, better in zip(scores, exact, strict=True):
                    kept[index] = better[0]
        return scores

    def _in_float32(self) -> ov.InferRequest:
        """The graph for one image in float32, compiled when it is first needed."""
        with self._compiling_exact:
            if self._exact is None:
                self._exact = self._compile(1, self._threads, "float32")
            return self._exact

    def _compile(self, size: int, threads: int, arithmetic: Arithmetic, *, pinned: bool = False) -> ov.InferRequest:
        """Compile the graph for batches of `size` images. Run it once, because the first run takes longer.

        `pinned`: each thread keeps a core of its own. Otherwise the kernel may put them all on one core for seconds.
        Pinned threads of two processes may share a core, so this is only for an image that has the machine to itself,
        and not for a container with a CPU limit: OpenVINO takes the machine's first cores in each of them.
        """
        model = self._model.clone()
        _, height, width, channels = model.input("pixels").partial_shape
        model.reshape({"pixels": [size, height, width, channels]})
        if arithmetic == "int8":
            round_convolutions(model, self._ranges)
        request = self._core.compile_model(model, "CPU", _options(threads, arithmetic, pinned)).create_infer_request()
        request.infer()
        return request


def load(
    graph: Path,
    card: ModelCard,
    *,
    threads: int = 0,
    threads_alone: int = 0,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    fastest: Arithmetic = "int8",
    only_smallest: bool = False,
) -> Engine:
    """Compile the graph of the card's model. Every answer comes from an engine with these options.

    It computes in the fastest arithmetic, from `fastest` on, that the card allows and the CPU has instructions for.
    The card says which close calls are computed again in float32. Raises FileNotFoundError.
    """
    return Engine(
        graph,
        threads=threads,
        threads_alone=threads_alone,
        batch_sizes=batch_sizes,
        arithmetic=choose_arithmetic(card, fastest),
        ranges=card.int8.ranges if card.int8 else None,
        close_calls=card.close_calls,
        only_smallest=only_smallest,
    )


def choose_arithmetic(card: ModelCard, fastest: Arithmetic) -> Arithmetic:
    """The fastest arithmetic, from `fastest` on, that the card allows and the CPU has instructions for."""
    return next(each for each in card.allowed(fastest) if has_instructions(each))


def has_instructions(arithmetic: Arithmetic) -> bool:
    """Whether this CPU has instructions for an arithmetic. For int8, only Linux tells."""
    if arithmetic == "int8":
        return CPU_INFO.exists() and not _EXACT_INT8.isdisjoint(CPU_INFO.read_text(encoding="utf-8").split())
    return arithmetic == "float32" or "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _read(core: ov.Core, graph: Path) -> ov.Model:
    """Read a graph, and turn its weights into float32 once. Otherwise each compiled graph would keep its own."""
    model = core.read_model(graph)
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Convert" or node.get_element_type() != ov.Type.f32:
            continue
        stored = node.input_value(0).get_node()
        if stored.get_type_name() == "Constant":
            weights = opset13.constant(stored.get_data(dtype=np.float32))
            for target in node.output(0).get_target_inputs():
                target.replace_source_output(weights.output(0))
    return model


def round_convolutions(model: ov.Model, ranges: Ranges) -> None:
    """Let the CPU compute the convolutions in int8 whose input has a range. Each output channel's kernel gets its own.

    OpenVINO sees the rounded inputs and kernels, and computes with the 8-bit numbers behind them. Zero stays exact.
    """
    rounded: dict[str, ov.Node] = {}
    for node in model.get_ordered_ops():
        grouped = node.get_type_name() == "GroupConvolution"
        if not grouped and node.get_type_name() != "Convolution":
            continue
        source, kernel = (node.input_value(place) for place in (0, 1))
        name = next((each for each in source.get_names() if each in ranges), None)
        if name is None:
            continue
        if name not in rounded:
            rounded[name] = _round(source, *_with_exact_zero(*ranges[name]), 256)
        node.input(0).replace_source_output(rounded[name].output(0))
        constant = kernel.get_node()
        while constant.get_type_name() != "Constant":  # it is stored in another shape
            constant = constant.input_value(0).get_node()
        weights = constant.get_data(dtype=np.float32).reshape(kernel.get_shape())
        channels = 2 if grouped else 1  # a group has a dimension of its own
        most = np.abs(weights).max(axis=tuple(range(channels, weights.ndim)), keepdims=True, initial=_TINY)
        node.input(1).replace_source_output(_round(opset13.constant(weights), -most, most, 255).output(0))


def _round(source: ov.Output | ov.Node, low: _End, high: _End, levels: int) -> ov.Node:
    return opset13.fake_quantize(source, low, high, low, high, levels)


def _with_exact_zero(low: float, high: float) -> tuple[np.float32, np.float32]:
    """A range that holds zero and the given one, of which zero is one of 256 levels."""
    low, high = min(low, 0.0), max(high, 1e-6)
    step = (high - low) / 255
    zero = round(-low / step)
    return np.float32(-zero * step), np.float32((255 - zero) * step)


def _outputs(request: ov.InferRequest, pixels: NDArray[np.uint8], count: int) -> Scores:
    """Scores of the first `count` images."""
    request.infer({"pixels": np.ascontiguousarray(pixels)})
    # Copies, because the next inference overwrites the request's tensors.
    scores = Scores(*(request.get_tensor(name).data[:count].copy() for name in Scores._fields))
    for values in (scores.probabilities, scores.chest_ct):
        np.clip(values, 0, 1, out=values)  # a vectorised softmax or tanh can round to more than 1
    return scores


def _options(threads: int, arithmetic: Arithmetic, pinned: bool) -> dict[str, object]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if arithmetic == "bfloat16" else "f32",
        "ENABLE_CPU_PINNING": pinned,
    }
