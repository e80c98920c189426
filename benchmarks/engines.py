"""Compares runtimes, arithmetics and input sizes: `python -m benchmarks.engines` writes docs/reference/engines.md.

It needs the networks of the folds, which `make train` leaves. Each variant of their graphs answers the images that its
fold held out, so its accuracy is out of fold. Its speed is measured on one of those graphs. Variants take turns, so
other load on the machine affects all of them alike.
"""

import datetime
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final, NamedTuple

import keras
import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.footprint import describe_machine, machine_table
from chestct.card import InputSpec
from chestct.image import decode
from load_tests.server import ROOT
from load_tests.verdict import LoadError, command
from pipeline.core import paths
from pipeline.core.params import Params
from pipeline.graph.rounding import quantise, spread
from pipeline.graph.to_onnx import serving_graph
from pipeline.judging.calibration import Calibration
from pipeline.judging.chest_ct import UNFITTED

DOCUMENT: Final = ROOT / "docs" / "reference" / "engines.md"
PICTURE: Final = ROOT / "docs" / "reference" / "engines.png"
BATCHES: Final = (1, 2, 4, 8)
ROUNDS: Final = 7
SECONDS: Final = 0.5
"""Length of one measurement."""
RESAMPLES: Final = 2000
"""Bootstrap samples of an interval."""
SMALLER: Final = (224, 192, 160)
"""Heights and widths of the input in pixels, besides the size that the network was trained on."""
Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class Variant(NamedTuple):
    """A way to compute the network."""

    runtime: str
    arithmetic: str
    size: int
    """Height and width of the input in pixels."""

    @property
    def graph(self) -> str:
        return "int8" if self.arithmetic == "int8" else "float32"

    def compile(self, graph: Path, batch: int, **options: Any) -> Run:
        """Return a function from pixels, uint8 [batch, size, size, 1], to probabilities. Default: one core."""
        if self.runtime == "ONNX Runtime":
            return _onnx_runtime(graph)
        return _openvino(graph, [batch, self.size, self.size, 1], self.arithmetic, options)


class Way(NamedTuple):
    """A way to use all cores."""

    words: str
    processes: int
    options: dict[str, Any]
    batch: int = 1
    static: bool = True


def _onnx_runtime(graph: Path) -> Run:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda pixels: np.asarray(session.run(["probabilities"], {"pixels": pixels})[0])


def _openvino(graph: Path, shape: Sequence[int], arithmetic: str, options: dict[str, Any]) -> Run:
    core = ov.Core()
    model = core.read_model(graph)
    model.reshape({"pixels": shape})
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


def variants(trained: int) -> list[Variant]:
    """Return the variants to measure. The others are compared with the first."""
    sizes = [Variant("OpenVINO", "bfloat16", size) for size in SMALLER if size < trained]
    runtimes = ("OpenVINO", "ONNX Runtime")
    kinds = [Variant(runtime, kind, trained) for runtime in runtimes for kind in ("float32", "bfloat16", "int8")]
    return [kind for kind in kinds if kind[:2] != ("ONNX Runtime", "bfloat16")] + sizes


def ways(cores: int) -> list[Way]:
    """Return the ways to use the cores, with the arithmetic that serves."""
    return [
        Way("a process a core, one thread each", cores, {}),
        Way("the same, pinned", cores, {"ENABLE_CPU_PINNING": True}),
        Way("the same, batches of 2", cores, {}, batch=2),
        Way("the same, batches of 2, the shape left open", cores, {}, batch=2, static=False),
        Way("one process, all threads in one inference", 1, {"INFERENCE_NUM_THREADS": cores}),
        Way("the same, batches of 8", 1, {"INFERENCE_NUM_THREADS": cores}, batch=8),
    ]


class Answers(NamedTuple):
    """Out-of-fold answers for N images."""

    labels: NDArray[np.int64]
    scans: NDArray[np.int64]
    best: dict[Variant, NDArray[np.int64]]
    """The most probable class, by variant."""


def answer_held_out(folder: Path) -> Answers:
    """Compute each variant's answers with the networks of the folds. Leaves each fold's graphs in `folder`.

    Raises LoadError if there are no such networks.
    """
    needed = (paths.POOL, paths.FOLD_MODELS, paths.CALIBRATION)
    if missing := [str(path) for path in needed if not path.exists()]:
        raise LoadError(f"expected {', '.join(missing)}, which `make train` leaves; run it first")
    params = Params.read(Path("params.yaml"))
    with np.load(paths.POOL) as pool:
        pixels, labels, folds, scans = (pool[name] for name in ("pixels", "labels", "folds", "scans"))
        files = [paths.RAW / str(name) for name in pool["paths"]]
    calibration = Calibration.read(paths.CALIBRATION)
    trained = params.prepare.image_size
    sized = {trained: pixels} | {size: _decoded(files, size) for size in SMALLER if size < trained}
    best = {variant: np.zeros(len(labels), np.int64) for variant in variants(trained)}
    numbers = np.unique(folds)
    for number in numbers:
        print(f"fold {number + 1} of {len(numbers)}: exporting, quantising and answering", flush=True)
        held_out = folds == number
        network = keras.models.load_model(paths.fold_model(number), compile=False)
        exact = serving_graph(network, pixels[~held_out], labels[~held_out], calibration, params, UNFITTED)
        quantised = quantise(exact, spread(pixels[~held_out], params.export.calibration_images))
        keep = folder / str(number)
        keep.mkdir()
        for name, graph in (("float32", exact), ("int8", quantised)):
            onnx.save(graph, keep / f"{name}.onnx")
        for variant, answers in best.items():
            run = variant.compile(_of_size(keep / f"{variant.graph}.onnx", variant.size), 1)
            answers[held_out] = [run(image[np.newaxis]).argmax() for image in sized[variant.size][held_out]]
    return Answers(labels, scans, best)


def _decoded(files: Sequence[Path], size: int) -> NDArray[np.uint8]:
    spec = InputSpec(height=size, width=size)
    return np.stack([decode(file.read_bytes(), spec).pixels for file in files])


def _of_size(graph: Path, size: int) -> Path:
    """Return the path of the graph with another input size. It has only convolutions and means, so any size works."""
    model = onnx.load(graph)
    _, height, width, _ = model.graph.input[0].type.tensor_type.shape.dim
    if height.dim_value == size:
        return graph
    height.dim_value = width.dim_value = size
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    path = graph.with_name(f"{graph.stem}_{size}.onnx")
    onnx.save(model, path)
    return path


def measure_speed(graphs: Path, kinds: Sequence[Variant]) -> dict[tuple[Variant, int], float]:
    """Return the images a second of one core by variant and batch, the median of ROUNDS turns."""
    runs = {
        (variant, batch): variant.compile(_of_size(graphs / f"{variant.graph}.onnx", variant.size), batch)
        for variant, batch in itertools.product(kinds, BATCHES)
    }
    rates: dict[tuple[Variant, int], list[float]] = {key: [] for key in runs}
    for number in range(ROUNDS):
        print(f"round {number + 1} of {ROUNDS}: one core", flush=True)
        for (variant, batch), run in runs.items():
            rates[variant, batch].append(_rate(run, variant.size, batch))
    return {key: float(np.median(values)) for key, values in rates.items()}


def measure_ways(graph: Path, size: int, cores: int) -> dict[str, float]:
    """Return the images a second of all cores together by way, the median of ROUNDS turns."""
    context = get_context("spawn")
    rates = {}
    for way in ways(cores):
        print(f"all cores: {way.words}", flush=True)
        barrier = context.Barrier(way.processes)
        with ProcessPoolExecutor(way.processes, context, _take_barrier, (barrier,)) as pool:
            turns = [pool.submit(_run_way, graph, size, way) for _ in range(way.processes)]
            parts = [turn.result() for turn in turns]
        rates[way.words] = float(np.median([sum(part) for part in zip(*parts, strict=True)]))
    return rates


_BARRIER: Barrier


def _take_barrier(barrier: Barrier) -> None:
    global _BARRIER
    _BARRIER = barrier


def _run_way(graph: Path, size: int, way: Way) -> list[float]:
    shape = [way.batch if way.static else -1, size, size, 1]
    run = _openvino(graph, shape, "bfloat16", way.options)
    rates = []
    for _ in range(ROUNDS):
        _BARRIER.wait(60)  # all start at once
        rates.append(_rate(run, size, way.batch))
    return rates


def _rate(run: Run, size: int, batch: int) -> float:
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 1), dtype=np.uint8)
    run(pixels)
    count, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < SECONDS:
        run(pixels)
        count += batch
    return count / passed


def accuracies(answers: Answers) -> dict[Variant, tuple[float, float, float, float]]:
    """Return by variant: accuracy, its difference from the first variant's, and both ends of its 95 % interval.

    Differences are in percentage points, paired by image and resampled by scan.
    """
    scans, members = np.unique(answers.scans, return_inverse=True)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(scans), np.full(len(scans), 1 / len(scans)), RESAMPLES)[:, members]
    right = {variant: best == answers.labels for variant, best in answers.best.items()}
    base = next(iter(right.values())).astype(float)
    found = {}
    for variant, one in right.items():
        difference = 100 * (one - base)
        low, high = np.quantile(weights @ difference / weights.sum(axis=1), (0.025, 0.975))
        found[variant] = (float(one.mean()), float(difference.mean()), float(low), float(high))
    return found


def document(answers: Answers, rates: dict[tuple[Variant, int], float], all_cores: dict[str, float], cores: int) -> str:
    known = accuracies(answers)
    first = next(iter(known))
    today = datetime.datetime.now(datetime.UTC).date()
    lines = [
        "# Engines: runtime, arithmetic and input size",
        "",
        f"Written by `python -m benchmarks.engines` on {today}. Research and education only. Not a medical device.",
        "",
        f"- **Accuracy** is out of fold, on {len(answers.labels)} images of train and valid without exact duplicates.",
        "- **Points** is the difference from the first row, paired, with a 95 % interval by scan.",
        "- **Same label** is the share of images with the first row's label.",
        f"- **Batch** columns are images a second, of one core and the graph alone, medians of {ROUNDS} turns.",
        "",
        "| runtime | arithmetic | input | accuracy | points | same label |"
        + "".join(f" batch {batch} |" for batch in BATCHES),
        "|---|---|---|---|---|---|" + "---|" * len(BATCHES),
    ]
    for variant, (accuracy, difference, low, high) in known.items():
        same = float((answers.best[variant] == answers.best[first]).mean())
        points = "0" if variant == first else f"{difference:+.1f} ({low:+.1f} to {high:+.1f})"
        speed = "".join(f" {rates[variant, batch]:.0f} |" for batch in BATCHES)
        cells = (variant.runtime, variant.arithmetic, str(variant.size), f"{accuracy:.4f}", points, f"{same:.1%}")
        lines.append(f"| {' | '.join(cells)} |{speed}")
    lines += [
        "",
        f"![Accuracy and images a second]({PICTURE.name})",
        "",
        "The networks are those of the folds of the training that was the last one then, at the largest size. Smaller"
        " inputs are fed to the same weights. bfloat16 rounds each convolution's input and kernel to eight bits of"
        " precision and adds up in float32. The service computes close calls again in float32 (`chestct/engine.py`)."
        " This table does not.",
        "",
        f"## All {cores} cores, OpenVINO, bfloat16",
        "",
        "| | images a second |",
        "|---|---|",
        *(f"| {words} | {rate:.0f} |" for words, rate in all_cores.items()),
        "",
        *machine_table({name: words for name, words in describe_machine().items() if "peers" not in name}),
    ]
    return "\n".join(lines) + "\n"


def draw(answers: Answers, rates: dict[tuple[Variant, int], float], path: Path) -> None:
    """Draw accuracy out of fold against images a second of one core, a point for each variant."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    colours = {"float32": "C0", "bfloat16": "C1", "int8": "C2"}
    for variant, (accuracy, *_) in accuracies(answers).items():
        rate = max(rates[variant, batch] for batch in BATCHES)
        marker = "o" if variant.runtime == "OpenVINO" else "s"
        label = f"{variant.runtime}, {variant.arithmetic}, {variant.size} px"
        filled = {} if variant.size == max(one.size for one in answers.best) else {"markerfacecolor": "white"}
        axes.plot(rate, accuracy, marker, color=colours[variant.arithmetic], markersize=8, label=label, **filled)
        if filled:
            axes.annotate(f"{variant.size} px", (rate, accuracy), xytext=(8, 4), textcoords="offset points")
    axes.set(xlabel="images a second of one core, best batch", ylabel="accuracy out of fold", xlim=(0, None))
    axes.margins(y=0.15)
    axes.legend(frameon=False, fontsize="small", loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


@command("engines")
def main() -> int:
    """Return the exit code: 0, or 2 if there is nothing to measure."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        answers = answer_held_out(folder)
        graphs = folder / "0"
        rates = measure_speed(graphs, list(answers.best))
        all_cores = measure_ways(graphs / "float32.onnx", next(iter(answers.best)).size, cores)
    draw(answers, rates, PICTURE)
    DOCUMENT.write_text(document(answers, rates, all_cores, cores), encoding="utf-8")
    print(f"wrote {DOCUMENT.relative_to(ROOT)} and {PICTURE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
