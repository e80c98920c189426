"""Runs the ONNX graph with OpenVINO on the CPU. The only module that imports the inference runtime."""

import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chestct.card import ModelCard
from chestct.cgroups import cores_are_shared

# OpenVINO's tools, which the engine does without, would report this import to a web service.
sys.modules["openvino.tools.ovc"] = None  # type: ignore[assignment]

import openvino as ov  # noqa: E402 # after the line above

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
    """A graph compiled for the CPU. It is not thread-safe, except that `complete` may run beside everything else."""

    def __init__(
        self,
        graph: Path,
        *,
        threads: int = 0,
        threads_alone: int = 0,
        batch_sizes: Sequence[int] = BATCH_SIZES,
        bfloat16: bool = False,
        recheck: float = 0,
        only_smallest: bool = False,
    ) -> None:
        """Compile the graph for each of `batch_sizes`, with `threads` CPU threads for one inference, 0 for all cores.

        With `threads_alone` above `threads`, also for one image with so many threads (`infer_alone`). If
        `only_smallest`, compile the smallest batch size alone, and leave the others to `complete`.

        `bfloat16`: use it if the CPU has instructions for it, which takes half the time. Scores then differ a little
        from float32, but do not depend on the batch. If the two highest probabilities of an image are closer than
        `recheck`, it is computed again in float32, so that rounding decides no close call. Raises FileNotFoundError.
        """
        if not graph.is_file():
            raise FileNotFoundError(f"no ONNX graph at {graph}")
        self._graph: Final = graph
        self._core: Final = ov.Core()
        self.bfloat16: Final[bool] = bfloat16 and "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.lacks_bfloat16: Final[bool] = bfloat16 and not self.bfloat16
        """Whether bfloat16 was asked for, but the CPU has no instructions for it."""
        self._sizes: Final = sorted(set(batch_sizes))
        self._threads: Final = threads
        self._threads_alone: Final = threads_alone if threads_alone > threads > 0 else 0
        self._precision: Final = "bf16" if self.bfloat16 else "f32"
        self._recheck: Final = recheck if self.bfloat16 else 0
        self._requests = {self._sizes[0]: self._compile(self._sizes[0], threads, self._precision)}
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
        if self._recheck:
            self._in_float32()
        for size in self._sizes:
            if size not in self._requests:
                self._requests = {**self._requests, size: self._compile(size, self._threads, self._precision)}
        if self._threads_alone and self._alone is None:
            self._alone = self._compile(1, self._threads_alone, self._precision, pinned=not cores_are_shared())

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
        if self._recheck:
            second, first = np.partition(scores.probabilities, -2, axis=1)[:, -2:].T
            for index in np.flatnonzero(first - second < self._recheck):
                exact = _outputs(self._in_float32(), pixels[index : index + 1], 1)
                for kept, better in zip(scores, exact, strict=True):
                    kept[index] = better[0]
        return scores

    def _in_float32(self) -> ov.InferRequest:
        """The graph for one image in float32, compiled when it is first needed."""
        with self._compiling_exact:
            if self._exact is None:
                self._exact = self._compile(1, self._threads, "f32")
            return self._exact

    def _compile(self, size: int, threads: int, precision: str, *, pinned: bool = False) -> ov.InferRequest:
        """Compile the graph for batches of `size` images. Run it once, because the first run takes longer.

        `pinned`: each thread keeps a core of its own. Otherwise the kernel may put them all on one core for seconds.
        Pinned threads of two processes may share a core, so this is only for an image that has the machine to itself,
        and not for a container with a CPU limit: OpenVINO takes the machine's first cores in each of them.
        """
        model = self._core.read_model(self._graph)
        _, height, width, channels = model.input("pixels").partial_shape
        model.reshape({"pixels": [size, height, width, channels]})
        request = self._core.compile_model(model, "CPU", _options(threads, precision, pinned)).create_infer_request()
        request.infer()
        return request


def load(
    graph: Path,
    card: ModelCard,
    *,
    threads: int = 0,
    threads_alone: int = 0,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    bfloat16: bool = True,
    only_smallest: bool = False,
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
        only_smallest=only_smallest,
    )


def _outputs(request: ov.InferRequest, pixels: NDArray[np.uint8], count: int) -> Scores:
    """Scores of the first `count` images."""
    request.infer({"pixels": np.ascontiguousarray(pixels)})
    # Copies, because the next inference overwrites the request's tensors.
    scores = Scores(*(request.get_tensor(name).data[:count].copy() for name in Scores._fields))
    for values in (scores.probabilities, scores.chest_ct):
        np.clip(values, 0, 1, out=values)  # a vectorised softmax or tanh can round to more than 1
    return scores


def _options(threads: int, precision: str, pinned: bool) -> dict[str, object]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
        "ENABLE_CPU_PINNING": pinned,
    }
