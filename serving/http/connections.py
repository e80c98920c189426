"""HTTP connections with limits on slow heads, unread bodies and unread answers.

uvicorn waits without a limit for a request's head, and for a client that does not read its answer. `install` makes it
serve each connection by `BoundedConnection`, which limits both.
"""

import asyncio
import resource
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, ClassVar, Final

import httptools
from uvicorn import config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from serving.http import connection_limits as limits
from serving.http.connection_closing import ClosingConnection, Stage
from serving.http.errors import RequestError, error_response
from serving.http.request_recording import COMMON_HEADERS, REQUEST_ID
from serving.telemetry.request_record import LEAST_RATE, RequestRecord, choose_id
from serving.telemetry.tracing import UNKNOWN_ROUTE

_NO_TRAILERS: Final[deque[tuple[bytes, bytes]]] = deque(maxlen=0)
"""Replaces a request's headers after the head: uvicorn would append trailers to them."""


def install() -> None:
    """Make BoundedConnection the default of uvicorn servers that start later in this process.

    A connection takes an open file. Many systems allow a process 1,024, and more on demand. Connections get half.
    """
    config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedConnection.__name__}"
    most, at_most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= most < 2 * limits.CONNECTIONS:  # below 0: without a limit
        most = 2 * limits.CONNECTIONS if at_most < 0 else min(2 * limits.CONNECTIONS, at_most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, at_most))
        BoundedConnection.most = most // 2


class BoundedConnection(ClosingConnection):
    """One HTTP connection. It limits everything except the body of the current request: serving.http.body does that."""

    most: ClassVar[int] = limits.CONNECTIONS
    """Most open connections of this process."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access_log = False  # serving.telemetry.request_record logs each request
        self.ws_protocol_class = None  # upgrades are ignored: the request is answered as HTTP/1.1
        self.parser = _Parser(self)
        self.repeated_head = False
        """Whether the parser is reading `head_without_upgrade`, whose callbacks are to be ignored."""
        self._progressed = False
        """Whether the latest bytes ended a head or a message, or belonged to a body."""
        self._unparsed = 0
        """Bytes since the last progress."""
        self._pieces = 0
        """Pieces of the latest request's body."""
        self._body_bytes = 0
        """Bytes of these pieces, with the lengths of chunks."""
        self._refusal: RequestError | None = None
        """The reason why a callback of the parser stopped it."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._idle_since = 0.0
        """Time (the event loop's clock) when the latest request was complete or answered."""
        self.on_lost: Callable[[], None] = lambda: None
        """Called when the connection has ended."""

    # Called by the event loop, the parser and uvicorn

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._await_head()
        if len(self.connections) > self.most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._time_head(None)
        self.on_lost()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._drop(len(data))
            return
        self._progressed = False
        self._unparsed += len(data)
        super().data_received(data)
        if self._progressed:
            self._unparsed = 0
        if not self._deaf and (self._unparsed > limits.HEAD_BYTES or self._has_too_many_headers()):
            self._refuse(limits.HEAD_TOO_LARGE)
        self._body_bytes += len(data)
        if not self._deaf and self._pieces > limits.PIECES and self._pieces * limits.LEAST_PIECE > self._body_bytes:
            self._refuse(limits.PIECES_TOO_SMALL)
        if self._deaf:
            return
        if self._draining:
            self._drop(len(data))
        elif self._head_timer is None and self.timeout_keep_alive_task is None and not self._busy:
            self._await_head()

    def eof_received(self) -> bool:  # type: ignore[override] # uvicorn ends the connection
        """Whether the connection stays open until its requests are answered.

        A client that hangs up and a client that only closes its sending side look the same. The time tells them apart:
        the second kind closes directly after its request.
        """
        late = self.loop.time() - self._idle_since > limits.HALF_CLOSE
        if late or not self._busy or self._deaf or self._stage is not Stage.START:
            return False
        self.shutdown()
        return True

    def head_without_upgrade(self) -> bytes:
        """A head with only those lines of the latest request that its body needs to be parsed."""
        framing = (header for header in self.scope["headers"] if header[0] in (b"content-length", b"transfer-encoding"))
        return b"".join((b"POST / HTTP/1.1\r\n", *(b"%s: %s\r\n" % header for header in framing), b"\r\n"))

    def on_message_begin(self) -> None:
        if self.repeated_head:
            return
        self._stage = Stage.HEAD
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self.repeated_head:
            return
        if self._has_too_many_headers() or (
            self._unparsed > limits.HEAD_BYTES and self._measure_head() > limits.HEAD_BYTES
        ):
            self._refusal = limits.HEAD_TOO_LARGE
        if self._refusal is not None or len(self.pipeline) >= limits.PIPELINED:
            raise ValueError
        self._progressed = True
        self._pieces = self._body_bytes = 0
        self._time_head(None)
        self._unset_keepalive_if_required()
        if self.expect_100_continue and self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False
        super().on_headers_complete()  # raises for a target without a path
        self._stage = Stage.BODY
        if self.expect_100_continue:
            self._close_unless_continued(self.cycle)
        self.headers = _NO_TRAILERS  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        self._progressed = True
        self._pieces += 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():  # the body follows
            return
        self._progressed = True
        self._stage = Stage.START
        self._idle_since = self.loop.time()
        super().on_message_complete()
        if self._draining:
            self._draining = False
            self._dropping.stop()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._idle_since = self.loop.time()
        if self._wire.get_write_buffer_size():
            self._writing.start(limits.WRITE_PAUSE, LEAST_RATE)
        if self.lingering or self._wire.is_closing() or (self._busy and not self._deaf):
            return
        if self._deaf:
            self.close()
        elif self._stage is Stage.BODY:
            self._unset_keepalive_if_required()
            self._draining = True
            self._start_dropping()
        elif self._stage is Stage.HEAD:
            self._unset_keepalive_if_required()
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal or limits.NOT_HTTP)

    # Heads

    def _await_head(self) -> None:
        self._time_head(self.loop.call_later(limits.HEAD_SECONDS, self._end_late_head))

    def _has_too_many_headers(self) -> bool:
        return self._stage is Stage.HEAD and len(self.headers) > limits.HEADERS

    def _measure_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _time_head(self, timer: asyncio.TimerHandle | None) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._head_timer = timer

    def _end_late_head(self) -> None:
        if self._stage is Stage.START and not self._unparsed:
            self._wire.close()
        else:
            words = f"expected the whole head of a request within {limits.HEAD_SECONDS:g} seconds"
            self._refuse(RequestError(HTTPStatus.REQUEST_TIMEOUT, "head_timeout", words))

    def _close_unless_continued(self, cycle: RequestResponseCycle) -> None:
        """Close the connection after the answer unless the app read the body, which sends 100 Continue.

        Without 100 Continue a client may send its body all the same, or its next request. They look alike.
        """
        keep_alive = cycle.keep_alive
        receive = cycle.receive

        async def receive_and_continue() -> Any:
            cycle.keep_alive = keep_alive and not self._stopping
            return await receive()

        cycle.keep_alive = False
        cycle.receive = receive_and_continue  # type: ignore[method-assign]

    def _refuse(self, error: RequestError) -> None:
        """Answer an invalid request, and end the connection.

        If another request is in progress, that one is answered and no other.
        """
        self._deaf = True
        self.parser = self.scope = None  # type: ignore[assignment] # frees the head, which may be large
        self.url, self.headers = b"", _NO_TRAILERS  # type: ignore[assignment]
        self._time_head(None)
        waiting = len(self.pipeline)
        self.pipeline.clear()
        if self._busy and (waiting or self._stage is not Stage.BODY or self.cycle.response_started):
            return  # on_response_complete ends the connection
        path = ""
        record = RequestRecord(choose_id(), route=UNKNOWN_ROUTE, outcome=error.code)
        if self._stage is not Stage.BODY:
            record.finish(str(error.status.value), {})
        elif self._busy:  # its app finishes the record
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            path = self.cycle.scope["path"]
            record = self.cycle.scope["state"].get("record", record)
        else:  # the message is already answered
            self._linger()
            return
        self._wire.write(self._answer(error, record, path))
        self._linger()

    def _answer(self, error: RequestError, record: RequestRecord, path: str) -> bytes:
        body = error_response(error, {"path": path, "state": {"record": record}}).body
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            (REQUEST_ID.lower().encode(), record.request_id.encode()),
            *((name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()),
            *COMMON_HEADERS,
        ]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        return STATUS_LINE[error.status] + lines + b"\r\n" + body

    def _make_room(self) -> None:
        if self._all_lingering:
            next(iter(self._all_lingering))._wire.abort()
            return
        others = [one for one in self.connections if isinstance(one, BoundedConnection) and one is not self]
        idle = [one for one in others if not (one._busy or one._wire.is_closing())]
        if idle:
            min(idle, key=lambda one: one._idle_since)._wire.close()
        else:
            words = f"each of {self.most} connections has a request in progress"
            self._refuse(RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", words, {"Retry-After": "2"}))


class _Parser(httptools.HttpRequestParser):
    """Parses a request with the header `Upgrade` like any other. Java's HttpClient and `curl --http2` send that header.

    After such a head, httptools calls `on_message_complete` and stops, because it expects another protocol. So this
    class feeds it a head without `Upgrade`, and then the body.
    """

    def __init__(self, connection: "BoundedConnection") -> None:
        super().__init__(connection)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self._connection = connection

    def feed_data(self, data: bytes) -> None:  # type: ignore[override] # uvicorn has bytes
        while True:
            try:
                super().feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._connection.repeated_head = True
                super().feed_data(self._connection.head_without_upgrade())
                self._connection.repeated_head = False
            else:
                return
