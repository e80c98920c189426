"""From SIGTERM to the end: say not ready at once, answer on for a while, then close the ports and finish what is left.

BentoML's supervisor passes SIGTERM to its workers, whose uvicorn closes its port at once and runs the service's
shutdown hook only after the last HTTP answer; whoever still sends meanwhile is refused, and gRPC learns of it late. So
a worker takes the signal first and hands it on when those who choose where to send requests had time to notice.
"""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from types import FrameType

Hook = Callable[[], Awaitable[None]]


class Drain:
    """Takes over SIGTERM in this process. `begun` is awaited at once, `ended` when the ports are to close."""

    def __init__(self, seconds: float, begun: Hook, ended: Hook) -> None:
        """`seconds` pass between the two. For the main thread, in its running event loop."""
        self._seconds = seconds
        self._begun = begun
        self._ended = ended
        self._port_closed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._previous = signal.signal(signal.SIGTERM, self._on_signal)
        self._task: asyncio.Task[None] | None = None

    async def finish(self) -> None:
        """Now that HTTP has ended, for whatever reason: wait until `ended` has, where the signal came."""
        self._port_closed.set()
        if self._task is not None:
            await self._task

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._start)

    def _start(self) -> None:
        if self._task is None:  # BentoML's supervisor may repeat the signal of the process group
            self._task = self._loop.create_task(self._run())

    async def _run(self) -> None:
        await self._begun()
        with contextlib.suppress(TimeoutError):  # an interrupt from the keyboard closes the port without waiting
            await asyncio.wait_for(self._port_closed.wait(), self._seconds)
        if callable(self._previous):
            self._previous(signal.SIGTERM, None)
        await self._ended()
