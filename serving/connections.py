"""HTTP connections that end: half-sent heads, bodies nobody reads, answers nobody takes, and the lingering close.

uvicorn waits for ever for a request's head, and for a client that does not read its answer. And what it closes with
unread bytes before it, Linux resets, so that a client that is still sending may lose the refusal it was sent (RFC 9112,
9.6). `install` has uvicorn serve each connection by `BoundedConnection`, which bounds all of these.
"""

import asyncio
import json
from collections import deque
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, ClassVar, Final, cast

from uvicorn import config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from serving.call import Call, choose_id
from serving.errors import RequestError, error_body
from serving.middleware import COMMON_HEADERS, REQUEST_ID

HEAD_SECONDS: Final = 10.0
"""From a connection's start, or from a head's first byte, to the head's end."""
HEAD_BYTES: Final = 32 * 1024
"""Of a head, and of what is neither head nor body: trailers, ends of chunks, empty lines."""
PIPELINED: Final = 32
"""Requests that wait behind the one that is answered, on one connection."""
LINGER_SECONDS: Final = 30.0
"""In which the rest of a body that nobody reads is dropped."""
LINGER_PAUSE: Final = 5.0
"""Without a byte of it, then it is given up. When the service stops it has no longer than this."""
LINGER_BYTES: Final = 1 << 30
"""Dropped at most; it takes about a second of a core."""
LINGERING: Final = 512
"""Connections, per worker, that are open for that alone; beyond, the oldest of them ends."""
WRITE_PAUSE: Final = 10.0
"""Seconds in which a client must take LEAST_TAKEN bytes of its answer, or what is left of it."""
LEAST_TAKEN: Final = 80_000
CONNECTIONS: Final = 2048
"""Open at once, per worker; beyond, the one that idles longest ends."""


def install() -> None:
    """Make it the connection of each server that starts later in this process and is not told otherwise."""
    config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedConnection.__name__}"


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
    """One connection. What is read for a request in progress is left to serving.body; all else is bounded here."""

    _all_lingering: ClassVar[dict["BoundedConnection", None]] = {}
    """The oldest first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ws_protocol_class = None  # an upgrade is not taken: the request is answered as HTTP/1.1
        self.lingering = False
        """Whether all is answered, and the connection is open only until its client has stopped sending."""
        self._wire: asyncio.Transport
        self._stage = _Stage.START
        self._moved = False
        """Whether of the bytes that came last some ended a head or a message, or were a body's."""
        self._unparsed = 0
        """Bytes that came since that was so."""
        self._deaf = False
        """Whether what comes is dropped unparsed."""
        self._refusal: RequestError | None = None
        """Why a callback of the parser refused."""
        self._draining = False
        """Whether the rest of a message is dropped that was answered before it was read, to go on with the next."""
        self._dropped = 0
        self._dropped_before = 0
        """At the last look at it."""
        self._drop_until = 0.0
        self._unsent = 0
        """Bytes that the client had not taken at the last look at it."""
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._idle_since = 0.0
        self._stopping = False

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # What the event loop and uvicorn call

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        self._wire = transport
        super().connection_made(cast("asyncio.Transport", _Transport(self, transport)))
        self._idle_since = self.loop.time()
        self._await_head()
        if len(self.connections) > CONNECTIONS:
            self._make_place()

    def connection_lost(self, exc: Exception | None) -> None:
        self._time_reading(None)
        self._stop_watching_writes()
        self._all_lingering.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._drop(len(data))
            return
        self._moved = False
        super().data_received(data)
        self._unparsed = 0 if self._moved else self._unparsed + len(data)
        if self._unparsed > HEAD_BYTES:
            self._refuse(_head_too_large())
        if self._draining:
            self._drop(len(data))
        elif self._read_timer is None and self.timeout_keep_alive_task is None and not self._busy:
            self._await_head()

    def on_message_begin(self) -> None:
        self._stage = _Stage.HEAD
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:
            self._refusal = _head_too_large()
            raise ValueError
        if len(self.pipeline) >= PIPELINED:
            words = f"expected at most {PIPELINED} requests that wait behind another one on a connection, got more"
            self._refusal = RequestError(HTTPStatus.BAD_REQUEST, "invalid_request", words)
            raise ValueError
        self._moved = True
        self._time_reading(None)
        self._unset_keepalive_if_required()
        if self.expect_100_continue and self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False
        super().on_headers_complete()  # raises for a target without a path
        self._stage = _Stage.BODY
        if self.expect_100_continue:
            self._close_unless_continued(self.cycle)
        self.headers = deque(maxlen=0)  # type: ignore[assignment] # trailers are no headers

    def on_body(self, body: bytes) -> None:
        self._moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._moved = True
        self._stage = _Stage.START
        super().on_message_complete()
        if self._draining:
            self._draining = False
            self._time_reading(None)
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._idle_since = self.loop.time()
        if self._wire.get_write_buffer_size():
            self._watch_writes()
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
        words = "expected a request in HTTP/1.1"
        self._refuse(self._refusal or RequestError(HTTPStatus.BAD_REQUEST, "invalid_request", words))

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: it is no fault of the service's."""

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writes()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching_writes()

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
            self._drop_until = min(self._drop_until, self.loop.time() + LINGER_PAUSE)
        elif self._draining:
            self._linger()
        elif self._busy:
            super().shutdown()
        else:
            self._wire.close()

    # Heads

    def _await_head(self) -> None:
        self._time_reading(self.loop.call_later(HEAD_SECONDS, self._end_late_head))

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
        self._time_reading(None)
        waiting = len(self.pipeline)
        self.pipeline.clear()
        if self._busy and (waiting or self._stage is not _Stage.BODY or self.cycle.response_started):
            return  # on_response_complete ends it
        if self._stage is _Stage.BODY:
            if not self._busy:  # the message has its answer
                self._linger()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        call = Call(choose_id(), route="other", outcome=error.code)
        self._wire.write(self._answer(error, call.request_id))
        call.finish("http", str(error.status.value), {})
        self._linger()

    def _answer(self, error: RequestError, request_id: str) -> bytes:
        body = json.dumps(error_body(error, request_id)).encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            (REQUEST_ID.lower().encode(), request_id.encode()),
            *COMMON_HEADERS,
        ]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        return STATUS_LINE[error.status] + lines + b"\r\n" + body

    def _make_place(self) -> None:
        others = [one for one in self.connections if isinstance(one, BoundedConnection) and one is not self]
        for one in self._all_lingering:
            one._wire.abort()
            return
        idle = [one for one in others if not (one._busy or one._wire.is_closing())]
        if idle:
            min(idle, key=lambda one: one._idle_since)._wire.close()
        else:
            words = f"all of {CONNECTIONS} connections have a request in progress"
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
        self._dropped = self._dropped_before = 0
        self._drop_until = self.loop.time() + (LINGER_PAUSE if self._stopping else LINGER_SECONDS)
        self._time_reading(self.loop.call_later(LINGER_PAUSE, self._look_at_dropped))

    def _drop(self, size: int) -> None:
        self._dropped += size
        if self._dropped > LINGER_BYTES:
            self._wire.abort()

    def _look_at_dropped(self) -> None:
        if self._dropped == self._dropped_before or self.loop.time() >= self._drop_until:
            self._wire.abort()
        else:
            self._dropped_before = self._dropped
            self._time_reading(self.loop.call_later(LINGER_PAUSE, self._look_at_dropped))

    def _time_reading(self, timer: asyncio.TimerHandle | None) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
        self._read_timer = timer

    # What nobody takes

    def _watch_writes(self) -> None:
        self._stop_watching_writes()
        self._unsent = self._wire.get_write_buffer_size()
        self._write_timer = self.loop.call_later(WRITE_PAUSE, self._look_at_writes)

    def _look_at_writes(self) -> None:
        left = self._wire.get_write_buffer_size()
        if left and left > self._unsent - LEAST_TAKEN:
            self._wire.abort()
        elif left:
            self._watch_writes()
        else:
            self._write_timer = None

    def _stop_watching_writes(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def _head_too_large() -> RequestError:
    words = f"expected a request's line and headers in at most {HEAD_BYTES} bytes, got more"
    return RequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large", words)
