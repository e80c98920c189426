"""HTTP connections that end: half-sent heads, bodies nobody reads, answers nobody takes, and the lingering close.

uvicorn waits for ever for a request's head, and for a client that does not read its answer. And what it closes with
unread bytes before it, Linux resets, so that a client that is still sending may lose the refusal it was sent (RFC 9112,
9.6). `install` has uvicorn serve each connection by `BoundedConnection`, which bounds all of these.

The file is longer than others, since all of these bounds act on the state of one connection.
"""

import asyncio
import math
import resource
from collections import deque
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, ClassVar, Final, cast

from uvicorn import config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from serving.http.errors import RequestError, error_response
from serving.http.least_rate import LeastRate
from serving.http.parser import Parser
from serving.http.request_recording import COMMON_HEADERS, REQUEST_ID
from serving.telemetry.request_record import LEAST_RATE, RequestRecord, choose_id

HEAD_SECONDS: Final = 10.0
"""From a connection's start, or from a head's first byte, to the head's end."""
HEAD_BYTES: Final = 32 * 1024
"""Of a head, and of what is neither head nor body: trailers, ends of chunks, empty lines."""
HEADERS: Final = 128
"""Lines of a head. Each takes 120 bytes of memory and more, however short it is."""
PIECES: Final = 10_000
"""Of a body that may be small. To parse chunks of one byte takes 0.1 s a MB."""
LEAST_PIECE: Final = 32
"""Bytes of each, with what frames it, in the mean of more."""
PIPELINED: Final = 32
"""Requests that wait behind the one that is answered, on one connection."""
LINGER_SECONDS: Final = 30.0
"""In which the rest of a body that nobody reads is dropped."""
LINGER_PAUSE: Final = 5.0
"""Of these in which less than LEAST_RATE comes of it, then it is given up. At a stop it has no longer than this."""
LINGER_BYTES: Final = 1 << 30
"""Dropped at most; it takes about a second of a core."""
LINGERING: Final = 512
"""Connections, per worker, that are open for that alone; beyond, the oldest of them ends."""
WRITE_PAUSE: Final = 10.0
"""Seconds in which a client must take its answer at LEAST_RATE, or what is left of it."""
HALF_CLOSE: Final = 0.5
"""Seconds after its request in which a client may end its side and wait for the answer. Later it has hung up."""
CONNECTIONS: Final = 2048
"""Open at once, per worker; beyond, the one that idles longest ends."""

_HEAD_TOO_LARGE: Final = RequestError(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "head_too_large",
    f"expected a request's line and headers in at most {HEAD_BYTES} bytes and {HEADERS} lines, got more",
)
_TOO_MANY_WAIT: Final = RequestError(
    HTTPStatus.BAD_REQUEST,
    "invalid_request",
    f"expected at most {PIPELINED} requests that wait behind another one on a connection, got more",
)
_TOO_SMALL_PIECES: Final = RequestError(
    HTTPStatus.BAD_REQUEST,
    "invalid_request",
    f"expected a body in pieces of {LEAST_PIECE} bytes or more, got more than {PIECES} of fewer",
)
_NO_HTTP: Final = RequestError(HTTPStatus.BAD_REQUEST, "invalid_request", "expected a request in HTTP/1.1")
_NO_TRAILERS: Final[deque[tuple[bytes, bytes]]] = deque(maxlen=0)
"""In place of a request's headers once its app has them: uvicorn would append its trailers to them."""


def install() -> None:
    """Make it the connection of each server that starts later in this process and is not told otherwise.

    Each takes an open file, of which many systems grant 1,024 and more on demand; half of them are for connections.
    """
    config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedConnection.__name__}"
    most, at_most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= most < 2 * CONNECTIONS:  # below 0: without a limit
        most = 2 * CONNECTIONS if at_most < 0 else min(2 * CONNECTIONS, at_most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, at_most))
        BoundedConnection.most = most // 2


class _Transport:
    """What uvicorn takes for the connection's transport: how it closes is left to the connection."""

    def __init__(self, connection: "BoundedConnection", wire: asyncio.Transport) -> None:
        self._connection = connection
        self._wire = wire
        self.write = wire.write
        self.close = connection.close

    def is_closing(self) -> bool:
        return self._connection.lingering or self._wire.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wire, name)


class _Stage(Enum):
    """What of a message comes next."""

    START = auto()
    HEAD = auto()
    BODY = auto()


class BoundedConnection(HttpToolsProtocol):
    """One connection. What is read for a request in progress is left to serving.http.body; all else is bounded here."""

    most: ClassVar[int] = CONNECTIONS
    """Connections that may be open at once."""
    _all_lingering: ClassVar[dict["BoundedConnection", None]] = {}
    """The oldest first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ws_protocol_class = None  # an upgrade is not taken: the request is answered as HTTP/1.1
        self.parser = Parser(self)
        self.repeated_head = False
        self.lingering = False
        """Whether all is answered, and the connection is open only until its client has stopped sending."""
        self._wire: asyncio.Transport
        self._stage = _Stage.START
        self._running: RequestResponseCycle | None = None
        """The request that is answered; `cycle` is the last that came, which may wait behind it."""
        self._moved = False
        """Whether of the bytes that came last some ended a head or a message, or were a body's."""
        self._unparsed = 0
        """Bytes that came since that was so."""
        self._pieces = 0
        """Of the last request's body."""
        self._body_bytes = 0
        """That it came in, chunks' lengths among them."""
        self._deaf = False
        """Whether what comes is dropped unparsed."""
        self._refusal: RequestError | None = None
        """Why a callback of the parser refused."""
        self._draining = False
        """Whether the rest of a message is dropped that was answered before it was read, to go on with the next."""
        self._dropped = 0
        self._dropping: LeastRate
        self._writing: LeastRate
        self._head_timer: asyncio.TimerHandle | None = None
        self._idle_since = 0.0
        """When the last request had come whole, or was answered."""
        self._stopping = False

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # What the event loop and uvicorn call

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        self._wire = transport
        self._dropping = LeastRate(lambda: self._dropped, transport.abort)
        self._writing = LeastRate(self._count_written, transport.abort)
        super().connection_made(cast("asyncio.Transport", _Transport(self, transport)))
        self._idle_since = self.loop.time()
        self._await_head()
        if len(self.connections) > self.most:
            self._make_place()

    def connection_lost(self, exc: Exception | None) -> None:
        self._time_head(None)
        self._dropping.stop()
        self._writing.stop()
        self._all_lingering.pop(self, None)
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._drop(len(data))
            return
        self._moved = False
        self._unparsed += len(data)
        super().data_received(data)
        if self._moved:
            self._unparsed = 0
        if not self._deaf and (self._unparsed > HEAD_BYTES or self._has_too_many_headers()):
            self._refuse(_HEAD_TOO_LARGE)
        self._body_bytes += len(data)
        if not self._deaf and self._pieces > PIECES and self._pieces * LEAST_PIECE > self._body_bytes:
            self._refuse(_TOO_SMALL_PIECES)
        if self._deaf:
            return
        if self._draining:
            self._drop(len(data))
        elif self._head_timer is None and self.timeout_keep_alive_task is None and not self._busy:
            self._await_head()

    def eof_received(self) -> bool:  # type: ignore[override] # uvicorn ends the connection
        """Whether the connection stays until what was asked is answered.

        A client that hangs up looks like one that only says that it sends no more, but for the time.
        """
        late = self.loop.time() - self._idle_since > HALF_CLOSE
        if late or not self._busy or self._deaf or self._stage is not _Stage.START:
            return False
        self.shutdown()
        return True

    def head_without_upgrade(self) -> bytes:
        framing = (header for header in self.scope["headers"] if header[0] in (b"content-length", b"transfer-encoding"))
        return b"".join((b"POST / HTTP/1.1\r\n", *(b"%s: %s\r\n" % header for header in framing), b"\r\n"))

    def on_message_begin(self) -> None:
        if self.repeated_head:
            return
        self._stage = _Stage.HEAD
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self.repeated_head:
            return
        if self._has_too_many_headers() or (self._unparsed > HEAD_BYTES and self._measure_head() > HEAD_BYTES):
            self._refusal = _HEAD_TOO_LARGE
        elif len(self.pipeline) >= PIPELINED:
            self._refusal = _TOO_MANY_WAIT
        if self._refusal is not None:
            raise ValueError
        self._moved = True
        self._pieces = self._body_bytes = 0
        self._time_head(None)
        self._unset_keepalive_if_required()
        if self.expect_100_continue and self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False
        super().on_headers_complete()  # raises for a target without a path
        self._stage = _Stage.BODY
        if self.expect_100_continue:
            self._close_unless_continued(self.cycle)
        self.headers = _NO_TRAILERS  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        self._moved = True
        self._pieces += 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():  # its body is still to come
            return
        self._moved = True
        self._stage = _Stage.START
        self._idle_since = self.loop.time()
        super().on_message_complete()
        if self._draining:
            self._draining = False
            self._dropping.stop()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._idle_since = self.loop.time()
        if self._wire.get_write_buffer_size():
            self._writing.start(WRITE_PAUSE, LEAST_RATE)
        if self.lingering or self._wire.is_closing() or (self._busy and not self._deaf):
            return
        if self._deaf:
            self.close()
        elif self._stage is _Stage.BODY:
            self._unset_keepalive_if_required()
            self._draining = True
            self._start_dropping()
        elif self._stage is _Stage.HEAD:
            self._unset_keepalive_if_required()
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal or _NO_HTTP)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing.start(WRITE_PAUSE, LEAST_RATE)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._writing.stop()

    def close(self) -> None:
        """Close now, or once the client has read its answer, where it may still be sending."""
        if self.lingering or self._wire.is_closing():
            return
        if self._stage is _Stage.START and not self.pipeline and not self._deaf:
            self._wire.close()
        else:
            self._linger()

    def shutdown(self) -> None:
        self._stopping = True
        if self.lingering:
            self._dropping.until = min(self._dropping.until, self.loop.time() + LINGER_PAUSE)
        elif self._draining:
            self._linger()
        elif self._busy:
            super().shutdown()
        else:
            self._wire.close()

    # Heads

    def _await_head(self) -> None:
        self._time_head(self.loop.call_later(HEAD_SECONDS, self._end_late_head))

    def _has_too_many_headers(self) -> bool:
        return self._stage is _Stage.HEAD and len(self.headers) > HEADERS

    def _measure_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _time_head(self, timer: asyncio.TimerHandle | None) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._head_timer = timer

    def _end_late_head(self) -> None:
        if self._stage is _Stage.START and not self._unparsed:
            self._wire.close()
        else:
            words = f"expected the whole head of a request within {HEAD_SECONDS:g} seconds"
            self._refuse(RequestError(HTTPStatus.REQUEST_TIMEOUT, "head_timeout", words))

    def _close_unless_continued(self, cycle: RequestResponseCycle) -> None:
        """Answered without being asked to go on, a client may send its body all the same, or the next request."""
        keep_alive = cycle.keep_alive
        receive = cycle.receive

        async def receive_and_continue() -> Any:
            cycle.keep_alive = keep_alive and not self._stopping
            return await receive()

        cycle.keep_alive = False
        cycle.receive = receive_and_continue  # type: ignore[method-assign]

    def _refuse(self, error: RequestError) -> None:
        """Answer what is no request, once those before it are answered, and end the connection."""
        self._deaf = True
        self.parser = self.scope = None  # type: ignore[assignment] # what was read of a head may be large
        self.url, self.headers = b"", _NO_TRAILERS  # type: ignore[assignment]
        self._time_head(None)
        waiting = len(self.pipeline)
        self.pipeline.clear()
        if self._busy and (waiting or self._stage is not _Stage.BODY or self.cycle.response_started):
            return  # on_response_complete ends it
        path = ""
        call = RequestRecord(choose_id(), route="other", outcome=error.code)
        if self._stage is not _Stage.BODY:
            call.finish("http", str(error.status.value), {})
        elif self._busy:  # its app counts it
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            path = self.cycle.scope["path"]
            call = self.cycle.scope["state"].get("record", call)
        else:  # the message has its answer
            self._linger()
            return
        self._wire.write(self._answer(error, call, path))
        self._linger()

    def _answer(self, error: RequestError, call: RequestRecord, path: str) -> bytes:
        body = error_response(error, {"path": path, "state": {"record": call}}).body
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            (REQUEST_ID.lower().encode(), call.request_id.encode()),
            *COMMON_HEADERS,
        ]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        return STATUS_LINE[error.status] + lines + b"\r\n" + body

    def _make_place(self) -> None:
        if self._all_lingering:
            next(iter(self._all_lingering))._wire.abort()
            return
        others = [one for one in self.connections if isinstance(one, BoundedConnection) and one is not self]
        idle = [one for one in others if not (one._busy or one._wire.is_closing())]
        if idle:
            min(idle, key=lambda one: one._idle_since)._wire.close()
        else:
            words = f"each of {self.most} connections has a request in progress"
            self._refuse(RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", words))

    # What nobody reads

    def _linger(self) -> None:
        self._deaf = self.lingering = True
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        if self.cycle is not None:
            self.cycle.body = bytearray()
        self._all_lingering[self] = None
        if len(self._all_lingering) > LINGERING:
            next(iter(self._all_lingering))._wire.abort()
        if self._wire.can_write_eof():
            self._wire.write_eof()
        self.flow.resume_reading()
        self._start_dropping()

    def _start_dropping(self) -> None:
        self._dropped = 0
        seconds = LINGER_PAUSE if self._stopping else LINGER_SECONDS
        self._dropping.start(LINGER_PAUSE, LEAST_RATE, self.loop.time() + seconds)

    def _drop(self, size: int) -> None:
        self._dropped += size
        if self._dropped > LINGER_BYTES:
            self._wire.abort()

    def _count_written(self) -> float:
        unsent = self._wire.get_write_buffer_size()
        return -unsent if unsent else math.inf
