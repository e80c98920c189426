"""Runs the ONNX graph with OpenVINO on the CPU. The only module that imports the inference runtime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from chestct.card import ModelCard

BATCH_SIZES: Final = (1, 2, 4, 8)
"""Compiled batch sizes. A static shape runs faster than a dynamic one, but each size takes memory."""


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
    """A graph compiled for the CPU. It is not thread-safe."""

    def __init__(
        self,
        graph: Path,
        *,
        threads: int = 0,
        threads_alone: int = 0,
        batch_sizes: Sequence[int] = BATCH_SIZES,
        bfloat16: bool = False,
        recheck: float = 0,
    ) -> None:
        """Compile the graph for each of `batch_sizes`, with `threads` CPU threads for one inference, 0 for all cores.

        With `threads_alone` above `threads`, also for one image with so many threads (`infer_alone`).

        `bfloat16`: use it if the CPU has instructions for it, which takes half the time. Scores then differ a little
        from float32, but do not depend on the batch. If the two highest probabilities of an image are closer than
        `recheck`, it is computed again in float32, so that rounding decides no close call. Raises FileNotFoundError.
        """
        if not graph.is_file():
            raise FileNotFoundError(f"no ONNX graph at {graph}")
        core = ov.Core()
        self.bfloat16: Final[bool] = bfloat16 and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.lacks_bfloat16: Final[bool] = bfloat16 and not self.bfloat16
        """Whether bfloat16 was asked for, but the CPU has no instructions for it."""
        self._sizes: Final = sorted(set(batch_sizes))
        precision = "bf16" if self.bfloat16 else "f32"
        self._requests: Final = {size: _compile(core, graph, size, threads, precision) for size in self._sizes}
        more = threads_alone > threads > 0
        self._alone: Final = _compile(core, graph, 1, threads_alone, precision) if more else None
        self._recheck: Final = recheck if self.bfloat16 else 0
        self._exact: Final = _compile(core, graph, 1, threads, "f32") if self._recheck else None

    @property
    def largest_batch(self) -> int:
        return self._sizes[-1]

    def infer(self, pixels: NDArray[np.uint8]) -> Scores:
        """Score uint8 [N, height, width, 1] with any N of 1 or more, in batches padded to the compiled sizes."""
        parts = [
            self._run(pixels[start : start + self.largest_batch]) for start in range(0, len(pixels), self.largest_batch)
        ]
        return parts[0] if len(parts) == 1 else Scores(*(np.concatenate(field) for field in zip(*parts, strict=True)))

    def infer_alone(self, pixels: NDArray[np.uint8]) -> Scores:
        """Score one image, uint8 [1, height, width, 1], in less time, if nothing else needs the cores."""
        return self.infer(pixels) if self._alone is None else self._with_exact(_outputs(self._alone, pixels, 1), pixels)

    def _run(self, pixels: NDArray[np.uint8]) -> Scores:
        count = len(pixels)
        size = next(size for size in self._sizes if size >= count)
        if size > count:
            pixels = np.concatenate([pixels, np.zeros((size - count, *pixels.shape[1:]), np.uint8)])
        return self._with_exact(_outputs(self._requests[size], pixels, count), pixels)

    def _with_exact(self, scores: Scores, pixels: NDArray[np.uint8]) -> Scores:
        """The scores, with those of close calls in float32."""
        if self._exact is not None:
            second, first = np.partition(scores.probabilities, -2, axis=1)[:, -2:].T
            for index in np.flatnonzero(first - second < self._recheck):
                exact = _outputs(self._exact, pixels[index : index + 1], 1)
                for kept, better in zip(scores, exact, strict=True):
                    kept[index] = better[0]
        return scores


def load(
    graph: Path,
    card: ModelCard,
    *,
    threads: int = 0,
    threads_alone: int = 0,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    bfloat16: bool = True,
) -> Engine:
    """Compile the graph of the card's model. Every answer comes from an engine with these options.

    `bfloat16`: use it if the card allows it and the CPU has instructions for it. Close calls by the card's margin are
    then computed again in float32. Raises FileNotFoundError.
    """
    return Engine(
        graph,
        threads=threads,
        threads_alone=threads_alone,
        batch_sizes=batch_sizes,
        bfloat16=bfloat16 and card.bfloat16 is not None,
        recheck=card.thresholds.refer_margin,
    )


def _outputs(request: ov.InferRequest, pixels: NDArray[np.uint8], count: int) -> Scores:
    """Scores of the first `count` images."""
    request.infer({"pixels": np.ascontiguousarray(pixels)})
    # Copies, because the next inference overwrites the request's tensors.
    scores = Scores(*(request.get_tensor(name).data[:count].copy() for name in Scores._fields))
    for values in (scores.probabilities, scores.chest_ct):
        np.clip(values, 0, 1, out=values)  # a vectorised softmax or tanh can round to more than 1
    return scores


def _compile(core: ov.Core, graph: Path, size: int, threads: int, precision: str) -> ov.InferRequest:
    """Compile the graph for batches of `size` images."""
    model = core.read_model(graph)
    _, height, width, channels = model.input("pixels").partial_shape
    model.reshape({"pixels": [size, height, width, channels]})
    return core.compile_model(model, "CPU", _options(threads, precision)).create_infer_request()


def _options(threads: int, precision: str) -> dict[str, object]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
        "ENABLE_CPU_PINNING": False,  # pinned, two processes of one thread share a core
    }
