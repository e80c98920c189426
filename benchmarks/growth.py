"""`python -m benchmarks.growth`: draws how throughput, p99 and memory grow with what is asked of the service.

One picture each against connections, image size, images a request and workers. In each round every point has a turn,
so other load on the machine affects all of them alike. Writes docs/reference/growth.md and its pictures.
"""

import argparse
import contextlib
import datetime
import functools
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from urllib3.filepost import encode_multipart_formdata

from benchmarks import footprint, wrk
from benchmarks.bench import settle
from benchmarks.payloads import Post
from chestct import store
from load_tests.images import phantom, pictures
from load_tests.server import OUTPUT, ROOT, Server, serve
from load_tests.traffic import each_second
from load_tests.verdict import LoadError, command
from serving.settings import Settings, SettingsError

CONNECTIONS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
MEGAPIXELS: Final = (0.1, 0.25, 1, 4, 9, 16)
IMAGES: Final = (1, 2, 4, 8, 16, 32, 64)
WORKERS: Final = (1, 2, 4, 8)
USUAL: Final = 16
"""Connections of the axis `workers`."""
FEW: Final = 4
"""Connections of the axes whose requests are large."""
PICTURES: Final = 16
WARM_UP: Final = 1
SHORT: Final = 8
"""Images of a request that is answered in a small part of a measurement."""
MANY: Final = 128
"""Connections whose first requests are read in a small part of a measurement."""
ROOM: Final = {"CHESTCT_QUEUE_SIZE": "1024", "CHESTCT_MAX_BYTES_IN_FLIGHT": str(2**30)}
"""Settings with which no request of a measurement is refused. The defaults would refuse some with 429."""
PICTURE: Final = "growth-{}.png"
DOCUMENT: Final = "growth.md"


class Axis(NamedTuple):
    """One way to ask for more."""

    name: str
    words: str
    about: str
    """How it is measured."""


AXES: Final = (
    Axis(
        "connections",
        "connections",
        "one file of 414 x 282 pixels in each request. All connections begin at once, so more than"
        f" {MANY} are measured longer",
    ),
    Axis("size", "megapixels", f"one grey PNG in each request, over {FEW} connections"),
    Axis(
        "images",
        "images a request",
        f"files of 414 x 282 pixels to /v1/predict/batch, over {FEW} connections. What is unfinished at the end does"
        f" not count, so requests of more than {SHORT} images are measured longer",
    ),
    Axis("workers", "workers", f"one file in each request, over {USUAL} connections, one engine thread a worker"),
)


class Point(NamedTuple):
    """A measurement of one round."""

    rate: float
    """Images a second."""
    p99: float
    """Milliseconds."""
    memory: float
    """Most MB of all processes together. Shared pages count once."""


Results = dict[str, dict[float, list[Point]]]
"""By the axis' name and the place on it, a point for each round."""


class Growth:
    """Starts a server for each number of workers, and measures them in turn."""

    def __init__(self, stack: contextlib.ExitStack, seconds: int) -> None:
        """The servers end with `stack`. Raises NoModel, SettingsError and LoadError."""
        wrk.check_installed()
        settings = Settings.read()
        self.model: Final = store.find(settings.model)
        self._seconds = seconds
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cores = len(os.sched_getaffinity(0))
        servers = {}
        for workers in sorted({cores, *(count for count in WORKERS if count <= cores)}):
            one = {"CHESTCT_WORKERS": str(workers), "CHESTCT_ENGINE_THREADS": "1", "CHESTCT_DECODE_THREADS": "1"}
            log = OUTPUT / f"growth-{workers}.log"
            servers[workers] = stack.enter_context(serve(environment={**os.environ, **ROOM, **one}, log=log))
            print(f"{workers} workers: ready", flush=True)
        self._all = servers[cores]
        usual = self._requests("usual", Post("/v1/predict", [({"Content-Type": k}, d) for k, d in pictures(PICTURES)]))
        self._plan: dict[tuple[str, float], Callable[[], Point]] = {}
        for count in CONNECTIONS:
            self._add("connections", count, self._all, usual, count, 1)
        for size in MEGAPIXELS:
            post = Post("/v1/predict", [({"Content-Type": "image/png"}, enlarged(size))])
            self._add("size", size, self._all, self._requests(f"size-{size}", post), FEW, 1)
        for count in IMAGES:
            self._add("images", count, self._all, self._requests(f"images-{count}", together(count)), FEW, count)
        for workers, server in servers.items():
            self._add("workers", workers, server, usual, USUAL, 1)

    def run(self, rounds: int) -> Results:
        """Measure each point `rounds` times. Print a line for each. Raises LoadError."""
        results: Results = {axis.name: {} for axis in AXES}
        for number in range(1, rounds + 1):
            for (axis, place), measure in self._plan.items():
                point = measure()
                results[axis].setdefault(place, []).append(point)
                print(
                    f"{number}/{rounds}  {axis:12}{place:>8g}{point.rate:>10.1f} images/s"
                    f"{point.p99:>10.1f} ms{point.memory:>8.0f} MB",
                    flush=True,
                )
        return results

    def _requests(self, name: str, post: Post) -> Path:
        post.write(self._all.url, self._folder / name)
        return self._folder / name

    def _add(self, axis: str, place: float, server: Server, requests: Path, connections: int, images: int) -> None:
        self._plan[axis, place] = functools.partial(self._measure, server, requests, connections, images)

    def _measure(self, server: Server, requests: Path, connections: int, images: int) -> Point:
        seconds = length(self._seconds, images, connections)
        wrk.load(server.url, requests, connections, WARM_UP)
        settle(server)
        with each_second(server.memory) as memory:
            sample = wrk.load(server.url, requests, connections, seconds)
        settle(server)
        if not sample.rate:
            raise LoadError(f"{server.url}: no request was answered in {seconds} s; --seconds gives it longer")
        return Point(images * sample.rate, sample.p99, max(memory) / 1e6)


def length(seconds: int, images: int, connections: int) -> int:
    """Seconds of a measurement with so many images in each request, over so many connections."""
    return seconds * math.ceil(max(images / SHORT, connections / MANY))


def enlarged(megapixels: float) -> bytes:
    """A phantom as a grey PNG of so many megapixels."""
    side = int((megapixels * 2**20) ** 0.5)
    file = BytesIO()
    Image.open(BytesIO(phantom())).convert("L").resize((side, side)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def together(count: int) -> Post:
    """A request of `count` files to /v1/predict/batch."""
    fields = [("images", (f"slice-{n}", data, kind)) for n, (kind, data) in enumerate(pictures(count))]
    body, kind = encode_multipart_formdata(fields, "chestct")
    return Post("/v1/predict/batch", [({"Content-Type": kind}, body)])


def draw(axis: Axis, points: Mapping[float, Sequence[Point]], path: Path) -> None:
    """Draw the medians with the least and the most of the rounds: throughput, p99 and memory."""
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    places = sorted(points)
    for axes, field, label in zip(
        figure.subplots(1, 3), Point._fields, ("images a second", "p99, milliseconds", "memory, MB"), strict=True
    ):
        values = [[getattr(point, field) for point in points[place]] for place in places]
        axes.plot(places, [np.median(one) for one in values], marker="o", markersize=4)
        axes.fill_between(places, [min(one) for one in values], [max(one) for one in values], alpha=0.2)
        axes.set(xscale="log", xlabel=axis.words, ylabel=label, ylim=(0, None))
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def document(results: Results, machine: Mapping[str, str], seconds: int, rounds: int) -> str:
    """The page with the pictures and their tables."""
    today = datetime.datetime.now(datetime.UTC).date()
    settings = ", ".join(f"`{name}={value}`" for name, value in ROOM.items())
    lines = [
        "# How cost grows",
        "",
        f"Written by `make growth` on {today}: medians of {rounds} rounds of {seconds} seconds, with the least and the",
        "most of them. wrk sends drawn phantoms over HTTP, on the same cores. The memory is the most of all processes",
        "together. Shared pages count once. A server keeps some of the memory that large files took, so later rounds",
        f"have more. So that nothing is refused, the service has {settings}.",
    ]
    for axis in AXES:
        name = PICTURE.format(axis.name)
        lines += ["", f"## {axis.words[0].upper()}{axis.words[1:]}", "", f"{axis.about[0].upper()}{axis.about[1:]}."]
        lines += ["", f"![Throughput, p99 and memory by {axis.words}]({name})", ""]
        lines += [f"| {axis.words} | images a second | p99 ms | memory MB |", "|---|---|---|---|"]
        for place, points in sorted(results[axis.name].items()):
            cells = [_spread([getattr(point, field) for point in points]) for field in Point._fields]
            lines.append(f"| {place:g} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *footprint.machine_table(machine)]) + "\n"


def _spread(values: Sequence[float]) -> str:
    return f"{np.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


@command("growth", store.NoModel, SettingsError)
def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 0, or 2 if there is no result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--seconds", type=int, default=4, help="length of each measurement (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each point (default %(default)s)")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "docs" / "reference", help="of growth.md and its pictures"
    )
    options = parser.parse_args(arguments)
    if min(options.seconds, options.rounds) < 1:
        raise LoadError("--seconds and --rounds: expected 1 or more")
    machine = footprint.describe_machine()
    with contextlib.ExitStack() as stack:
        growth = Growth(stack, options.seconds)
        results = growth.run(options.rounds)
    options.folder.mkdir(parents=True, exist_ok=True)
    for axis in AXES:
        draw(axis, results[axis.name], options.folder / PICTURE.format(axis.name))
    text = document(results, {**machine, "model": growth.model.tag}, options.seconds, options.rounds)
    (options.folder / DOCUMENT).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
