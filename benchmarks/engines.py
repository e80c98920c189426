"""Compares runtimes, arithmetics and input sizes: `python -m benchmarks.engines` writes docs/reference/engines.md.

It needs the networks of the folds, which `make train` leaves. Each variant of their graphs answers the images that its
fold held out, so its accuracy is out of fold. Its speed is measured on one of those graphs. Variants take turns, so
other load on the machine affects all of them alike.
"""

import argparse
import datetime
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
from matplotlib.figure import Figure
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.utils import Extractor

from benchmarks.engine_variants import SMALLER, Run, Variant, openvino, variants
from benchmarks.footprint import describe_machine, machine_table
from chestct.arithmetic import Arithmetic
from chestct.card import InputSpec
from chestct.engine import Ranges
from chestct.image import decode
from chestct.processes import SpawnedPool
from load_tests.server import ROOT
from load_tests.verdict import LoadError, command
from pipeline.core import paths
from pipeline.core.params import Params
from pipeline.graph.rounding import measure_ranges
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


class Way(NamedTuple):
    """A way to use all cores."""

    words: str
    processes: int
    options: dict[str, Any]
    batch: int = 1
    static: bool = True


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


class Network(NamedTuple):
    """The network of a fold."""

    graph: Path
    ranges: Ranges
    """What int8 needs."""


class Answers(NamedTuple):
    """Out-of-fold answers for N images."""

    labels: NDArray[np.int64]
    scans: NDArray[np.int64]
    best: dict[Variant, NDArray[np.int64]]
    """The most probable class, by variant."""


def answer_held_out(folder: Path) -> tuple[Answers, list[Network]]:
    """Compute each variant's answers with the networks of the folds, whose graphs it leaves in `folder`.

    Raises LoadError if there are no such networks.
    """
    import keras  # pipeline has told TensorFlow by now to be silent

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
    numbers, network_of = np.unique(folds), list[Network]()
    for number in numbers:
        print(f"fold {number + 1} of {len(numbers)}: exporting and answering", flush=True)
        held_out = folds == number
        network = keras.models.load_model(paths.fold_model(number), compile=False)
        exact = serving_graph(network, pixels[~held_out], labels[~held_out], calibration, params, UNFITTED)
        graph, ranges = folder / f"{number}.onnx", measure_ranges(exact, pixels[~held_out], params.export)
        onnx.save(exact, graph)
        network_of.append(Network(graph, ranges))
        for variant, answers in best.items():
            run = variant.compile(_of_size(graph, variant.size), 1, ranges)
            answers[held_out] = [run(image[np.newaxis]).argmax() for image in sized[variant.size][held_out]]
    return Answers(labels, scans, best), network_of


def _decoded(files: Sequence[Path], size: int) -> NDArray[np.uint8]:
    spec = InputSpec(height=size, width=size)
    return np.stack([decode(file.read_bytes(), spec).pixels for file in files])


def _of_size(graph: Path, size: int) -> Path:
    """Return the path of the graph with another input size.

    What gives the probabilities has only convolutions and means, so any size works. The rest is left out, because the
    probe takes one size. Some exported graphs also write the size into the shape that adds the channel.
    """
    model = onnx.load(graph)
    height = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    if height == size:
        return graph
    model = Extractor(model).extract_model(["pixels"], ["probabilities"])
    for dimension in model.graph.input[0].type.tensor_type.shape.dim[1:3]:
        dimension.dim_value = size
    shapes = {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}
    for tensor in model.graph.initializer:
        if tensor.name in shapes:
            shape = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.where(shape == height, size, shape), tensor.name))
    del model.graph.value_info[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    path = graph.with_name(f"{graph.stem}_{size}.onnx")
    onnx.save(model, path)
    return path


def measure_speed(network: Network, kinds: Sequence[Variant]) -> dict[tuple[Variant, int], float]:
    """Return the images a second of one core by variant and batch, the median of ROUNDS turns."""
    runs = {
        (variant, batch): variant.compile(_of_size(network.graph, variant.size), batch, network.ranges)
        for variant, batch in itertools.product(kinds, BATCHES)
    }
    rates: dict[tuple[Variant, int], list[float]] = {key: [] for key in runs}
    for number in range(ROUNDS):
        print(f"round {number + 1} of {ROUNDS}: one core", flush=True)
        for (variant, batch), run in runs.items():
            rates[variant, batch].append(_rate(run, variant.size, batch))
    return {key: float(np.median(values)) for key, values in rates.items()}


def measure_ways(network: Network, chosen: Variant, cores: int) -> dict[str, float]:
    """Return the images a second of all cores together by way, the median of ROUNDS turns."""
    rates = {}
    for way in ways(cores):
        print(f"all cores: {way.words}", flush=True)
        barrier = get_context("spawn").Barrier(way.processes)
        with SpawnedPool(way.processes, _take_barrier, barrier) as pool:
            turns = [pool.submit(_run_way, network, chosen, way) for _ in range(way.processes)]
            parts = [turn.result() for turn in turns]
        rates[way.words] = float(np.median([sum(part) for part in zip(*parts, strict=True)]))
    return rates


_BARRIER: Barrier


def _take_barrier(barrier: Barrier) -> None:
    global _BARRIER
    _BARRIER = barrier


def _run_way(network: Network, chosen: Variant, way: Way) -> list[float]:
    shape = [way.batch if way.static else -1, chosen.size, chosen.size, 1]
    run = openvino(network.graph, shape, chosen.arithmetic, network.ranges, way.options)
    rates = []
    for _ in range(ROUNDS):
        _BARRIER.wait(60)  # all start at once
        rates.append(_rate(run, chosen.size, way.batch))
    return rates


def _rate(run: Run, size: int, batch: int) -> float:
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 1), dtype=np.uint8)
    run(pixels)
    count, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < SECONDS:
        run(pixels)
        count += batch
    return count / passed


def served(params: Params) -> Variant:
    """The variant that params.yaml chooses. Weights in float16 compute like those in float32."""
    return Variant("OpenVINO", params.export.arithmetic, params.prepare.image_size)


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


def document(
    answers: Answers, rates: dict[tuple[Variant, int], float], all_cores: dict[str, float], cores: int, chosen: Variant
) -> str:
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
        f"- **Served** is {chosen.arithmetic}, {chosen.size} pixels, by `params.yaml`: the ring in the picture.",
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
        " precision, and is left out if the CPU has no instructions for it. int8 rounds them to 256 levels. The"
        " convolutions next to the input stay in float32 (`export.unrounded` of them), and so does the head. Both add"
        " up with more bits. The service computes close calls again in float32. This table does not.",
        "",
        f"## All {cores} cores, OpenVINO, {chosen.arithmetic}",
        "",
        "| | images a second |",
        "|---|---|",
        *(f"| {words} | {rate:.0f} |" for words, rate in all_cores.items()),
        "",
        *machine_table(describe_machine()),
    ]
    return "\n".join(lines) + "\n"


def draw(answers: Answers, rates: dict[tuple[Variant, int], float], chosen: Variant, path: Path) -> None:
    """Draw accuracy out of fold against images a second of one core, a point for each variant.

    Bars are the intervals of the paired differences. The served variant has a ring.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    colours: dict[Arithmetic, str] = {"float32": "C0", "bfloat16": "C1", "int8": "C2"}
    for variant, (accuracy, difference, low, high) in accuracies(answers).items():
        rate = max(rates[variant, batch] for batch in BATCHES)
        marker = "o" if variant.runtime == "OpenVINO" else "s"
        label = f"{variant.runtime}, {variant.arithmetic}, {variant.size} px"
        filled = {} if variant.size == max(one.size for one in answers.best) else {"markerfacecolor": "white"}
        ends = [[(difference - low) / 100], [(high - difference) / 100]]
        axes.errorbar(rate, accuracy, ends, color=colours[variant.arithmetic], linewidth=1, alpha=0.5)
        if variant == chosen:
            axes.plot(rate, accuracy, "o", color="black", markersize=15, markerfacecolor="none", label="served")
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
    chosen = served(Params.read(Path("params.yaml")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        answers, (network, *_) = answer_held_out(folder)
        rates = measure_speed(network, list(answers.best))
        all_cores = measure_ways(network, chosen, cores)
    draw(answers, rates, chosen, PICTURE)
    DOCUMENT.write_text(document(answers, rates, all_cores, cores, chosen), encoding="utf-8")
    print(f"wrote {DOCUMENT.relative_to(ROOT)} and {PICTURE.name}")
    return 0


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__).parse_args()
    sys.exit(main())
