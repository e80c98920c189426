"""Accepts HTTP connections so that all workers have equally many.

All workers wait on one listening socket. libuv accepts all connections that wait on it in one go, so the worker that
wakes up first would get most of them: it would decode and parse alone, however well the engines are shared.
"""

import asyncio
import contextlib
import errno
import logging
import math
import socket
import ssl as tls
import sys
from collections.abc import Callable
from typing import Any, ClassVar, Final

import uvloop
from uvicorn import config

from serving.http.connections import BoundedConnection
from serving.worker_states import WorkerStates

PATIENCE: Final = 0.02
"""Seconds that a connection waits for a worker with fewer of them. After that, the worker seems to hang."""
LOOKS: Final = 16
"""Turns of the event loop in which a worker looks whether another has accepted, before it looks once a STEP."""
STEP: Final = 0.001
"""Seconds between two looks. The event loop has no shorter timer, and a fast worker takes a tenth of that."""
EXHAUSTED_PAUSE: Final = 1.0
"""Seconds without accepting, once the system has no open file or memory for a connection."""
_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_WAITING: Final = slice(24, 28)
"""tcpi_unacked in Linux' struct tcp_info: of a listening socket, the number of connections that wait."""

_log = logging.getLogger(__name__)


def install(states: WorkerStates) -> None:
    """Balance the connections of uvicorn servers that start later in this process, by the numbers in `states`."""
    _Loop.states = states
    config.LOOP_FACTORIES["auto"] = f"{__name__}:{loop_factory.__name__}"


def loop_factory(use_subprocess: bool = False) -> Callable[[], asyncio.AbstractEventLoop]:
    """The class of uvicorn's event loop. uvicorn calls this by its name."""
    return _Loop


class BalancedServer:
    """Listens on a socket that other workers listen on, too. It has what uvicorn uses of asyncio.Server."""

    def __init__(
        self,
        listening: socket.socket,
        create: Callable[[], BoundedConnection],
        states: WorkerStates,
        ssl: tls.SSLContext | None = None,
    ) -> None:
        """`create` makes the protocol of a connection. Call this in an event loop."""
        self._listening = listening
        self._create = create
        self._states = states
        self._ssl = ssl
        self._loop = asyncio.get_running_loop()
        self._open = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._deferring_since = math.inf
        """Time (the event loop's clock) since when connections have waited for another worker."""
        self._looks = 0
        """Number of looks since then."""
        self._closed = False
        self._states.publish_connections(0)
        self._listen()

    def close(self) -> None:
        """Accept no more connections."""
        if not self._closed:
            self._closed = True
            self._states.publish_connections(None)
            self._loop.remove_reader(self._listening)
            if self._timer:
                self._timer.cancel()

    async def wait_closed(self) -> None:
        """Return at once. uvicorn waits for the connections itself."""

    def _listen(self) -> None:
        if not _count_waiting(self._listening):
            self._end_deferring()
        self._loop.add_reader(self._listening, self._accept_share)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listening)
        self._timer = self._loop.call_later(seconds, self._listen)

    def _accept_share(self) -> None:
        """Accept connections until this worker has its share, and leave the others to the other workers for a while."""
        # In this order: a connection that another worker accepts meanwhile counts at most once.
        open_ones, workers = self._states.count_connections()
        waiting = _count_waiting(self._listening)
        if not waiting:  # another worker was faster
            self._end_deferring()
            return
        now = self._loop.time()
        most = math.ceil((open_ones + waiting) / workers) - self._open
        if now - self._deferring_since >= PATIENCE:
            most = max(1, most)  # one at each step, because the other worker may come back
        try:
            self._accept(most)
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            _log.warning("no connection is accepted for %g s: %s", EXHAUSTED_PAUSE, error.strerror)
            self._pause(EXHAUSTED_PAUSE)
            return
        if most >= waiting:
            self._end_deferring()
            return
        self._deferring_since = min(now, self._deferring_since)
        self._looks += 1
        if self._looks > LOOKS:
            self._pause(STEP)

    def _end_deferring(self) -> None:
        """Note that no connection waits for another worker any more."""
        self._looks, self._deferring_since = 0, math.inf

    def _accept(self, most: int) -> None:
        """Accept up to `most` connections that wait. Raises OSError."""
        with contextlib.suppress(BlockingIOError, InterruptedError, ConnectionAbortedError):
            for _ in range(most):
                accepted, _ = self._listening.accept()
                self._count(1)
                task = self._loop.create_task(self._serve(accepted))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _serve(self, accepted: socket.socket) -> None:
        connection = self._create()
        connection.on_lost = lambda: self._count(-1)
        try:
            await self._loop.connect_accepted_socket(lambda: connection, accepted, ssl=self._ssl)
        except OSError as error:  # such as a failed handshake of TLS
            _log.debug("a connection failed: %s", error)
            accepted.close()
            if connection.transport is None:
                self._count(-1)

    def _count(self, change: int) -> None:
        self._open += change
        if not self._closed:
            self._states.publish_connections(self._open)


class _Loop(uvloop.Loop):
    """uvloop's event loop, whose servers on shared sockets are balanced."""

    states: ClassVar[WorkerStates]

    async def create_server(self, protocol_factory: Any, *arguments: Any, **options: Any) -> Any:
        """A server as asyncio has it. On a listening socket that belongs to several workers it is balanced."""
        given: socket.socket | None = options.get("sock")
        # With SO_REUSEPORT each worker has a socket of its own, between which the kernel chooses.
        if given is None or given.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
            return await super().create_server(protocol_factory, *arguments, **options)
        given.setblocking(False)
        with contextlib.suppress(OSError):  # not a TCP socket
            given.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # the accepted ones inherit it
        given.listen(options.get("backlog", 100))
        return BalancedServer(given, protocol_factory, self.states, options.get("ssl"))


def _count_waiting(listening: socket.socket) -> int:
    """The number of connections that wait; 1 if the system does not tell it."""
    try:
        info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _WAITING.stop)
    except (AttributeError, OSError):  # not on Linux
        return 1
    return int.from_bytes(info[_WAITING], sys.byteorder)
