"""Graceful shutdown: on SIGTERM report not ready, answer requests for a while, then close the ports and finish.

BentoML's supervisor sends SIGTERM to its workers, and their uvicorn closes its port at once. That refuses clients that
still send, and the gRPC server would stop only after the last HTTP answer. So a worker handles the signal itself, and
passes it on after load balancers have had time to notice.
"""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from types import FrameType

Hook = Callable[[], Awaitable[None]]


class Drain:
    """Handles SIGTERM in this process."""

    def __init__(self, seconds: float, on_begin: Hook, on_end: Hook) -> None:
        """Await `on_begin` on SIGTERM, and `on_end` `seconds` later. Call it in the event loop of the main thread."""
        self._seconds = seconds
        self._on_begin = on_begin
        self._on_end = on_end
        self._port_closed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._previous = signal.signal(signal.SIGTERM, self._on_signal)
        self._task: asyncio.Task[None] | None = None

    async def finish(self) -> None:
        """Wait for `on_end` if the signal came. Call this after the end of HTTP, whatever the reason."""
        self._port_closed.set()
        if self._task is not None:
            await self._task

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._start)

    def _start(self) -> None:
        if self._task is None:  # a signal to the process group is repeated by BentoML's supervisor
            self._task = self._loop.create_task(self._run())

    async def _run(self) -> None:
        await self._on_begin()
        with contextlib.suppress(TimeoutError):  # a keyboard interrupt closes the port at once
            await asyncio.wait_for(self._port_closed.wait(), self._seconds)
        if callable(self._previous):
            self._previous(signal.SIGTERM, None)
        await self._on_end()
