"""How an HTTP connection ends: its client gets the answer first, and slow clients are cut off."""

import asyncio
import math
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.http import connection_limits as limits
from serving.telemetry.request_record import LEAST_RATE


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


class Stage(Enum):
    """The part of a message that is parsed next."""

    START = auto()
    HEAD = auto()
    BODY = auto()


class _Transport:
    """The transport that uvicorn sees: `close` goes to the connection, everything else to the real transport."""

    def __init__(self, connection: "ClosingConnection", wire: asyncio.Transport) -> None:
        self._connection = connection
        self._wire = wire
        self.write = wire.write
        self.close = connection.close

    def is_closing(self) -> bool:
        return self._connection.lingering or self._wire.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wire, name)


class ClosingConnection(HttpToolsProtocol):
    """Lingers before it closes, if its client may still be sending: it drops what comes until the client stops.

    If it closed with unread bytes, Linux would reset it, and the client could lose its answer (RFC 9112, 9.6). Clients
    that send or read too slowly meanwhile lose the connection.
    """

    _all_lingering: ClassVar[dict["ClosingConnection", None]] = {}
    """Connections that linger, the oldest first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lingering = False
        """Whether every request is answered, and the connection is open only until its client stops sending."""
        self._wire: asyncio.Transport
        """The real transport."""
        self._stage = Stage.START
        self._running: RequestResponseCycle | None = None
        """The current request. `cycle` is the latest request, which may wait behind it."""
        self._deaf = False
        """Whether received bytes are dropped without parsing."""
        self._draining = False
        """Whether the rest of an answered message is dropped, so that the next request can follow."""
        self._dropped = 0
        """Bytes dropped of one message."""
        self._dropping: LeastRate
        self._writing: LeastRate
        self._stopping = False

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        self._wire = transport
        self._dropping = LeastRate(lambda: self._dropped, transport.abort)
        self._writing = LeastRate(self._count_written, transport.abort)
        super().connection_made(cast("asyncio.Transport", _Transport(self, transport)))

    def connection_lost(self, exc: Exception | None) -> None:
        self._dropping.stop()
        self._writing.stop()
        self._all_lingering.pop(self, None)
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing.start(limits.WRITE_PAUSE, LEAST_RATE)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._writing.stop()

    def close(self) -> None:
        """Close now. If the client may still be sending, linger first, so that it can read its answer."""
        if self.lingering or self._wire.is_closing():
            return
        if self._stage is Stage.START and not self.pipeline and not self._deaf:
            self._wire.close()
        else:
            self._linger()

    def shutdown(self) -> None:
        self._stopping = True
        if self.lingering:
            self._dropping.until = min(self._dropping.until, self.loop.time() + limits.LINGER_PAUSE)
        elif self._draining:
            self._linger()
        elif self._busy:
            super().shutdown()
        else:
            self._wire.close()

    def _linger(self) -> None:
        self._deaf = self.lingering = True
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        if self.cycle is not None:
            self.cycle.body = bytearray()
        self._all_lingering[self] = None
        if len(self._all_lingering) > limits.LINGERING:
            next(iter(self._all_lingering))._wire.abort()
        if self._wire.can_write_eof():
            self._wire.write_eof()
        self.flow.resume_reading()
        self._start_dropping()

    def _start_dropping(self) -> None:
        self._dropped = 0
        seconds = limits.LINGER_PAUSE if self._stopping else limits.LINGER_SECONDS
        self._dropping.start(limits.LINGER_PAUSE, LEAST_RATE, self.loop.time() + seconds)

    def _drop(self, size: int) -> None:
        self._dropped += size
        if self._dropped > limits.LINGER_BYTES:
            self._wire.abort()

    def _count_written(self) -> float:
        unsent = self._wire.get_write_buffer_size()
        return -unsent if unsent else math.inf
