"""The bare loop: decoding and inference without server, queue or protocol, in a process for each worker."""

import contextlib
import time
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from types import TracebackType
from typing import Final

import numpy as np

from benchmarks.wrk import Sample
from chestct.card import InputSpec
from chestct.engine import Engine
from chestct.image import decode
from chestct.processes import SpawnedPool
from chestct.store import StoredModel
from serving.inference.classifier import load_engine
from serving.settings import Settings

START_SECONDS: Final = 60
WARM_UP: Final = 10
"""Iterations that do not count."""


class Loops(contextlib.AbstractContextManager["Loops"]):
    """Runs a process for each worker at the same time, each with an engine and the service's settings.

    As a context manager it ends them.
    """

    def __init__(self, model: StoredModel, images: Sequence[bytes], settings: Settings) -> None:
        self._workers: Final = settings.workers
        barrier = get_context("spawn").Barrier(settings.workers)
        self._pool: Final = SpawnedPool(settings.workers, _prepare, barrier, model, images, settings)

    def measure(self, *, decoding: bool, batch: int, seconds: float) -> Sample:
        """Return the images a second of all processes together. Without `decoding` only the graph runs."""
        turns = [self._pool.submit(_run, decoding, batch, seconds) for _ in range(self._workers)]
        return Sample(sum(turn.result() for turn in turns))

    def by_the_clock(self, rate: float, seconds: float) -> Sample:
        """Decode and infer images that come evenly, `rate` a second, in turn to each process.

        The times of Sample start when an image is due. The first WARM_UP images of a process don't count.
        """
        turns = [
            self._pool.submit(_run_by_the_clock, rate / self._workers, worker / rate, seconds)
            for worker in range(self._workers)
        ]
        times = [time for turn in turns for time in turn.result()]
        p50, p99 = np.quantile(times, [0.5, 0.99])
        return Sample(len(times) / seconds, float(p50), float(p99))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> bool | None:
        return self._pool.__exit__(kind, error, at)


class _Worker:
    """State of one process."""

    barrier: Barrier
    engine: Engine
    spec: InputSpec
    images: Sequence[bytes]


def _prepare(barrier: Barrier, model: StoredModel, images: Sequence[bytes], settings: Settings) -> None:
    _Worker.barrier, _Worker.images = barrier, images
    card = model.read_card()
    _Worker.engine, _Worker.spec = load_engine(model.graph, card, settings), card.input


def _run(decoding: bool, batch: int, seconds: float) -> float:
    images, spec = _Worker.images, _Worker.spec
    pixels = [decode(data, spec).pixels for data in images]

    def turn(number: int) -> None:
        chosen = [(number * batch + item) % len(images) for item in range(batch)]
        rows = [decode(images[one], spec).pixels if decoding else pixels[one] for one in chosen]
        _Worker.engine.infer(rows[0][np.newaxis] if batch == 1 else np.stack(rows))

    for number in range(WARM_UP):
        turn(number)
    _Worker.barrier.wait(START_SECONDS)  # all start at once, and each process takes one turn
    started = time.perf_counter()
    count = 0
    while (passed := time.perf_counter() - started) < seconds:
        turn(count)
        count += 1
    return count * batch / passed


def _run_by_the_clock(rate: float, first: float, seconds: float) -> list[float]:
    """The milliseconds of each image from the moment when it was due.

    The first is due `first` seconds after the start.
    """
    images, spec = _Worker.images, _Worker.spec
    _Worker.barrier.wait(START_SECONDS)
    started = time.perf_counter() + first
    times = []
    for number in range(WARM_UP + int(rate * seconds)):
        due = started + number / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        _Worker.engine.infer(decode(images[number % len(images)], spec).pixels[np.newaxis])
        times.append(1000 * (time.perf_counter() - due))
    return times[WARM_UP:]
