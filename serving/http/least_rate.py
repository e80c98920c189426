"""A least rate for the bytes that move on a connection."""

import asyncio
import math
from collections.abc import Callable


class LeastRate:
    """Compares a count of bytes at regular times, and calls `too_slow` if it grows too slowly."""

    def __init__(self, count: Callable[[], float], too_slow: Callable[[], object]) -> None:
        """`count` returns the number of bytes moved so far, and math.inf when no more are to move."""
        self._count = count
        self._too_slow = too_slow
        self._before = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.until = math.inf
        """Latest time (the event loop's clock), whatever the rate."""

    def start(self, pause: float, rate: float, until: float = math.inf) -> None:
        """From now on, expect `rate` bytes per second in each period of `pause` seconds."""
        self.stop()
        self.until = until
        self._look_later(pause, rate)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_later(self, pause: float, rate: float) -> None:
        self._before = self._count()
        self._timer = asyncio.get_running_loop().call_later(pause, self._look, pause, rate)

    def _look(self, pause: float, rate: float) -> None:
        self._timer = None
        count = self._count()
        if count - self._before < pause * rate or asyncio.get_running_loop().time() >= self.until:
            self._too_slow()
        elif count < math.inf:
            self._look_later(pause, rate)
