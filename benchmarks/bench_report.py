"""Writes the table, the document and the picture of the bench."""

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks.figures import CONNECTIONS, Results, Row, interval, read_figures
from benchmarks.footprint import machine_table
from benchmarks.tail import MOST_WAVER
from benchmarks.wrk import Sample
from load_tests.images import SIZE
from serving.settings import Settings

DOCUMENT: Final = "benchmarks.md"
PICTURE: Final = "benchmarks.png"
LEAST_ROUNDS: Final = 9
"""With fewer, the interval of a median would hold the least and the most."""
MOST_LOAD: Final = 0.5
"""Other processes that want a core. With more, the figures are not reliable."""
LOOPS: Final = ("decode-infer", "infer")
WORDS: Final = {
    "grpc-image": "service: image file over gRPC",
    "grpc-pixels": "service: pixels over gRPC",
    "grpc-pixels-8": "service: pixels over gRPC, eight a call",
    "oip": "service: pixels over OIP's binary HTTP",
    "infer": "bare loop: the model alone",
    "one-worker": "service with one worker: image file over HTTP",
    "decode-infer": "bare loop: decode and infer",
    "http": "service: image file over HTTP",
    "fastapi-engine": "FastAPI by hand, the service's engine",
    "litserve": "LitServe, the service's engine",
    "fastapi": "FastAPI by hand, ONNX Runtime fp32",
    "bentoml": "BentoML's batchable API, ONNX Runtime fp32",
    "flask": "Flask, Keras, VGG16",
    "paced": "service: by the clock at 70 % of 16",
    "paced-loop": "bare loop: by the clock at the same rate",
}
"""In the order of the turns over the same connections. A machine's speed drifts, so what is compared comes close
together."""
METHOD: Final = """
## How it is measured

Each contender starts once, is warmed up, and is then idle except in its turn. An idle process takes no CPU. A process
that starts again in each round would be measured cold. In a round, each has its turn in the order of the table. A
machine's speed drifts, so what is compared comes close together. Before each measurement there is one second of the
same load, which does not count. The next measurement waits until the server is idle.

A ratio is that of two measurements of one round. The figure is the median of the rounds. Its interval (95 %) lies
between two of the rounds, in order, so it needs no assumption about how they spread. With nine rounds, it leaves out
the least and the most. If an answer is not good, the run ends without a verdict.

- **What is sent**: drawn phantoms in turn, one in each request, the same in each run: {files}, of {width} x {height}
  pixels and {least} to {most} KB, {mean} KB on average. The middle one of the real set's pictures, nearly all of them
  PNG, has that size, and half of the files have 78 to 112 KB. One slice in twenty of the real set is a close call,
  which the service computes again in float32, unless it computes all in float32. The phantoms were chosen to have as
  many. `pixels` are the decoded phantoms.
- **HTTP** is driven by wrk, a client in C, with one thread on the same cores. It corrects its latencies for requests
  that a slow answer kept it from sending.
- **gRPC** is driven by grpcio's asyncio client, with requests that are serialised once. The client takes more of the
  cores, as the column *client* shows, so the service has less.
- **By the clock**: image files at 70 % of what 16 connections got, evenly spaced, over HTTP and into the bare loop in
  turn, {pairs} times. An asyncio client times each from the moment when it was due, and so does the loop. The figure
  is the ratio of the two p99s. Before and after each pair the loop runs at full speed for a second. If these two rates
  differ by more than {waver}, the pair does not count.
- **Bare loop**: as many processes as the service has workers, each with the engine and the settings of a worker, but
  without a server or a queue. In each round the faster batch is the limit. By the clock, the images go to the
  processes in turn.
- **Peers** have as many workers as the service, and answer the same fields. A check compares their probabilities with
  the service's. FastAPI takes the file as the body and computes in a thread, one file at a time in each process. It
  runs twice: with the service's weights in ONNX Runtime fp32, one thread a worker, and Pillow as its decoder; and with
  the service's own decoder, engine and arithmetic. LitServe has the same engine, as many processes for inference as
  the service has workers, and as many for HTTP, which is its default. It takes the file as a form, as BentoML's image
  API does, which has ONNX Runtime. Flask has its threaded server, one process and TensorFlow's own threads, as in a
  tutorial. It is measured for longer. Up to 16 of its requests are unfinished at the end and do not count, out of a
  few answers a second.
- **Uneven connections**: uvicorn's workers wait on one socket, and the one that wakes up first often accepts most
  connections. FastAPI then has half of its images a second, because the other worker idles. Its intervals show both
  cases. The service spreads connections evenly, and its workers lend each other their engines. If FastAPI's
  connections lie evenly, the service has no lead over it with the same engine, because both are near the bare loop.
- **One worker** already decodes and talks on the second core while its engine has the first. So a second worker can't
  double the images a second.
- **Ready after start** is the time from the command to the first 200 of `/readyz`, the median of several starts.
- **Memory** is that of the largest worker after all rounds: its own pages, and its share of those that it shares.
- **Installed size** is that of the distributions that `requirements/serving.txt` pins, without bytecode, after
  `image/slim.py` has removed what serves no request. The image has them so.

`benchmarks/ratios.yaml` has the last accepted ratios of machines with as many cores and the same arithmetic. `make
bench` fails if the whole interval of one is more than 15 % worse. `python -m benchmarks.bench --accept` writes them.
`benchmarks/figures.yaml` has the bounds.
"""


class Report(NamedTuple):
    machine: Mapping[str, str]
    results: Results
    values: Mapping[str, Sequence[float]]
    """Figures by name, a value for each round."""
    images: Sequence[tuple[str, bytes]]
    """Media type and bytes of each image that was sent."""
    seconds: int
    """Length of each measurement."""
    rounds: int
    pairs: int
    """Pairs of benchmarks.tail."""
    load: float
    """Load average of the minute before the run."""
    wavered: int = 0
    """Pairs that did not count."""


def describe_settings(settings: Settings) -> str:
    return (
        f"{settings.workers} workers, each with engine threads: {settings.engine_threads},"
        f" decode threads: {settings.decode_threads}, largest batch: {settings.largest_batch}"
    )


def line(row: Row, samples: Sequence[Sample]) -> str:
    """Return a measurement as a line for the terminal."""
    rate, p50, p99, client = cells(samples)
    return f"{WORDS[row.contender]:46}{size(row):>10}{rate:>24}{p50:>9}{p99:>9}{client:>8}"


def table(report: Report) -> list[str]:
    """Return the measurements and the figures as lines for the terminal."""
    lines = ["", f"{'':46}{'':>10}{'images/s (spread)':>24}{'p50 ms':>9}{'p99 ms':>9}{'client':>8}"]
    lines += [line(row, samples) for row, samples in report.results.items()]
    lines += ["", f"{'':12}{'measured (spread)':>24}{'must':>12}{'aim':>12}"]
    for name, (words, measured, must, aim, verdict) in figure_rows(report.values).items():
        lines.append(f"{name:12}{measured:>24}{must:>12}{aim:>12}  {verdict:10} {words}")
    return lines


def cells(samples: Sequence[Sample]) -> tuple[str, str, str, str]:
    """Return rate (median and spread), p50, p99 and cores of the client (medians)."""
    rate = with_spread([sample.rate for sample in samples], ".1f")
    p50, p99, client = np.median([(sample.p50, sample.p99, sample.client) for sample in samples], axis=0)
    return (rate, "", "", "") if np.isnan(p50) else (rate, f"{p50:.1f}", f"{p99:.1f}", f"{client:.2f}")


def size(row: Row) -> str:
    return f"batch {row.size}" if row.contender in LOOPS else str(row.size or "")


def with_spread(values: Sequence[float], form: str) -> str:
    """Return the median, with the least and the most if there are several values."""
    middle = f"{np.median(values):{form}}"
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}} to {max(values):{form}})"


def figure_rows(values: Mapping[str, Sequence[float]]) -> dict[str, tuple[str, str, str, str, str]]:
    """Return words, measurement, both bounds and verdict of each measured figure, by name."""
    rows = {}
    for name, figure in read_figures().items():
        if name not in values:
            continue
        form = ".0f" if figure.unit == "MB" else ".2f"
        sign = ">=" if figure.better == "higher" else "<="
        must, aim = (f"{sign} {bound:g} {figure.unit}" for bound in (figure.must, figure.aim))
        low, high = interval(values[name])
        measured = f"{np.median(values[name]):{form}}" + (f" ({low:{form}} to {high:{form}})" if low < high else "")
        rows[name] = figure.words, f"{measured} {figure.unit}", must, aim, figure.verdict(values[name])
    return rows


def write(report: Report, folder: Path) -> None:
    """Write DOCUMENT and PICTURE to the folder, and make it if necessary."""
    folder.mkdir(parents=True, exist_ok=True)
    draw(report.results, folder / PICTURE)
    (folder / DOCUMENT).write_text(document(report), encoding="utf-8")


def document(report: Report) -> str:
    today = datetime.datetime.now(datetime.UTC).date()
    lines = [
        "# Benchmarks",
        "",
        f"Written by `make bench` on {today}: medians of {report.rounds} rounds, of {report.seconds} seconds for each"
        " measurement, with the interval of the median. `not shown` means that a bound lies in the interval.",
        *(["", f"Pairs that do not count, because the machine wavered: {report.wavered}."] if report.wavered else []),
        *(["", f"**Not to be relied on**: this run had {doubts}."] if (doubts := caution(report)) else []),
        "",
        "| figure | measured | must | aim | reached |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in figure_rows(report.values).values()),
        "",
        f"![Images a second and latencies]({PICTURE})",
        "",
        "| | connections | images a second | p50 ms | p99 ms | client, cores |",
        "|---|---|---|---|---|---|",
        *(
            f"| {WORDS[row.contender]} | {size(row)} | {' | '.join(cells(samples))} |"
            for row, samples in report.results.items()
        ),
        "",
        *machine_table(report.machine),
    ]
    method = METHOD.format(**describe_images(report.images), pairs=report.pairs, waver=f"{MOST_WAVER:.0%}")
    return "\n".join(lines) + "\n" + method


def caution(report: Report) -> str:
    """Return the reasons not to rely on the figures; empty if there are none."""
    faults = []
    if report.rounds < LEAST_ROUNDS:
        faults.append(f"only {report.rounds} of {LEAST_ROUNDS} rounds")
    if report.load > MOST_LOAD:
        faults.append(f"{report.load:.1f} other processes that wanted a core in the minute before it began")
    return " and ".join(faults)


def describe_images(images: Sequence[tuple[str, bytes]]) -> dict[str, object]:
    """Return the values about the images that METHOD needs."""
    kinds = Counter(media_type.removeprefix("image/").upper() for media_type, _ in images)
    sizes = [len(data) / 1000 for _, data in images]
    return {
        "files": " and ".join(f"{count} {kind}" for kind, count in kinds.items()),
        "width": SIZE[0],
        "height": SIZE[1],
        "least": round(min(sizes)),
        "most": round(max(sizes)),
        "mean": round(sum(sizes) / len(sizes)),
    }


def draw(results: Results, path: Path) -> None:
    """Draw images a second over 16 connections and of the loops (left), and latencies by connections (right)."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    rows = [row for row in results if row.size == CONNECTIONS or row.contender in LOOPS]
    rates = [[sample.rate for sample in results[row]] for row in rows]
    middles = [float(np.median(one)) for one in rates]
    spread = [[middle - min(one) for middle, one in zip(middles, rates, strict=True)]]
    spread.append([max(one) - middle for middle, one in zip(middles, rates, strict=True)])
    names = [f"{WORDS[row.contender]}{', ' + size(row) if row.contender in LOOPS else ''}" for row in rows]
    colours = [
        "0.6" if row.contender in LOOPS else "C0" if WORDS[row.contender].startswith("service") else "C1"
        for row in rows
    ]
    bars = left.barh(names, middles, xerr=spread, color=colours, capsize=3)
    left.bar_label(bars, [f"{middle:.0f}" for middle in middles], padding=6)
    left.invert_yaxis()
    left.margins(x=0.15)
    left.set_xlabel("images a second over 16 connections: median, least and most")
    for contender in dict.fromkeys(row.contender for row in results):
        points = [(row.size, results[row]) for row in results if row.contender == contender]
        if contender in LOOPS or len(points) < 2:
            continue
        sizes = [one for one, _ in points]
        p50, p99 = (
            [np.median([getattr(sample, name) for sample in samples]) for _, samples in points]
            for name in ("p50", "p99")
        )
        (drawn,) = right.plot(sizes, p50, marker="o", markersize=3, label=WORDS[contender])
        right.plot(sizes, p99, ":", marker="o", markersize=3, color=drawn.get_color())
    right.set(xscale="log", yscale="log", xlabel="connections", ylabel="milliseconds: p50 (line), p99 (dotted)")
    right.set_xticks([1, 16, 64], ["1", "16", "64"])
    right.minorticks_off()
    if right.lines:
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=100)
