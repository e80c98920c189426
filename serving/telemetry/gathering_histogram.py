"""A histogram that writes many observations at once.

To write one takes a microsecond or two of the event loop, because the workers share their numbers in files. An image
has seven.
"""

import asyncio
import contextlib
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from prometheus_client import Histogram
from prometheus_client.metrics_core import Metric

WRITE_SECONDS: Final = 0.05
"""Most seconds until an observation is written."""

_unwritten: Final[set["GatheringHistogram"]] = set()
"""Histograms with observations that are not written yet."""
_lock: Final = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
"""The event loop in which they will be written."""


class GatheringHistogram(Histogram):
    """Histogram whose observations are written within WRITE_SECONDS, or when this process collects its metrics."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._gathered: list[float] = []

    def observe(self, amount: float, exemplar: Any = None) -> None:
        """Observe the amount. There are no exemplars."""
        with _lock:
            self._gathered.append(amount)
            _unwritten.add(self)
        _write_later()

    def collect(self) -> Iterable[Metric]:
        """The metric with all observations of this process."""
        write_gathered()
        return super().collect()

    def write(self) -> None:
        """Write what is gathered. The caller holds the lock."""
        self._sum.inc(sum(self._gathered))
        for bucket, count in Counter(bisect_left(self._upper_bounds, amount) for amount in self._gathered).items():
            self._buckets[bucket].inc(count)
        self._gathered.clear()


def write_gathered() -> None:
    """Write all observations now."""
    global _loop
    with _lock:
        _loop = None
        for histogram in _unwritten:
            histogram.write()
        _unwritten.clear()


def _write_later() -> None:
    global _loop
    if _loop is not None and not _loop.is_closed():
        return
    with contextlib.suppress(RuntimeError):  # in a thread without a loop the observation waits for the next one
        _loop = asyncio.get_running_loop()
        _loop.call_later(WRITE_SECONDS, write_gathered)
