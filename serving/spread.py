"""Spreads HTTP connections over the workers: one that is crowded ends a connection, so that its client opens another.

The workers share one listening socket, and of a burst of connections the worker that wakes first may take all; kept
alive, they would stay there while another worker idles. A new one goes to whoever is free to take it.
"""

import mmap
import os
from collections.abc import Container
from pathlib import Path
from types import TracebackType
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LEAST: Final = 3
"""So many requests above the mean of all workers make one crowded. Fewer are chance."""
SHARE: Final = 1 / 8
"""And so much of the mean, where that is more."""


class Load:
    """How many requests each worker has taken and not answered, over HTTP and gRPC, and whether its engine idles.

    In memory that the workers share. As a context manager it counts one more meanwhile. Until `join` it knows of this
    worker alone.
    """

    def __init__(self, workers: int) -> None:
        self._slots = 2 * workers  # BentoML's supervisor numbers its workers up to this
        self.own = 0
        """This worker's place."""
        self._size = 9 * self._slots
        self._share(mmap.mmap(-1, self._size))

    def join(self, file: Path, worker: int) -> None:
        """Share the counts by this file, which is made where it is not.

        `worker`: 1 and up, different for each that is alive. Raises OSError where the file can't be made.
        """
        with file.open("a+b") as opened:
            opened.truncate(self._size)
            self._share(mmap.mmap(opened.fileno(), self._size))
        self.own = worker - 1
        self._counts[self.own] = 0
        self._pids[self.own] = os.getpid()
        self.set_idle(False)

    def _share(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._first_idle = 8 * self._slots
        numbers = memoryview(memory)[: self._first_idle].cast("i")
        self._pids, self._counts = numbers[: self._slots], numbers[self._slots :]

    def set_idle(self, idle: bool) -> None:
        """Say whether this worker's engine has nothing to do."""
        self._memory[self._first_idle + self.own] = idle

    def find_idle(self, without: Container[int] = ()) -> int | None:
        """The place of another worker whose engine idles and that is not in `without`; None where there is none."""
        after_own = self._first_idle + self.own + 1
        for start, end in ((after_own, self._size), (self._first_idle, after_own - 1)):
            while (start := self._memory.find(b"\1", start, end) + 1) > 0:
                worker = start - 1 - self._first_idle
                if worker not in without and _is_alive(self._pids[worker]):
                    return worker
        return None

    def __enter__(self) -> None:
        self._counts[self.own] += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._counts[self.own] -= 1

    def is_crowded(self) -> bool:
        """Whether this worker has clearly more than the mean of those that are alive."""
        own = self._counts[self.own]
        if own < LEAST:
            return False
        counts = [count for pid, count in zip(self._pids, self._counts, strict=True) if pid and _is_alive(pid)]
        mean = sum(counts) / len(counts) if counts else own
        return own - mean >= max(LEAST, SHARE * mean)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:  # there is none, or by now another user's
        return False
    return True


class Spread:
    """ASGI middleware around the whole service: counts its requests, and ends connections while it is crowded."""

    def __init__(self, app: ASGIApp, load: Load) -> None:
        self._app = app
        self._load = load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_and_spread(message: Message) -> None:
            if message["type"] == "http.response.start" and self._load.is_crowded():
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        with self._load:
            await self._app(scope, receive, send_and_spread)
