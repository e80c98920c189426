"""Connections of a real server: a refusal arrives while the client is still sending, and every connection ends."""

import asyncio
import contextlib
import http.client
import json
import logging
import queue
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import NamedTuple

import httpx
import pytest
import requests
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.http import connection_limits
from serving.http.connections import BoundedConnection
from serving.http.request_recording import RequestRecording
from tests.server import ROOT, needs_curl

UNREAD = 8_000_000
"""Bytes of a body, more than the sockets hold."""
SECONDS = 20
"""Seconds after which a test fails."""


class Listening(NamedTuple):
    port: int
    server: uvicorn.Server

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), SECONDS)

    def wait_until_closed(self) -> None:
        until(lambda: not self.server.server_state.connections)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """/refuse and /close answer 413 without reading, and /close ends the connection. /large answers with 50 MB.

    Other paths answer with the size of the body.
    """
    path = scope["path"]
    if path in ("/refuse", "/close"):
        answer = Response("refused", 413, {"Connection": "close"} if path == "/close" else None)
    elif path == "/large":
        answer = Response(bytes(50_000_000))
    else:
        try:
            answer = Response(str(len(await Request(scope, receive).body())))
        except ClientDisconnect:
            return
    await answer(scope, receive, send)


@contextlib.contextmanager
def listening(served: ASGIApp = app) -> Iterator[Listening]:
    config = uvicorn.Config(served, port=0, http=BoundedConnection, lifespan="off", log_config=None, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield Listening(server.servers[0].sockets[0].getsockname()[1], server)
    finally:
        server.should_exit = True
        thread.join(SECONDS)
        assert not thread.is_alive()


@pytest.fixture(autouse=True)
def nothing_fails(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check that neither the event loop nor uvicorn logged an error."""
    yield
    assert not [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]


@pytest.fixture(scope="module")
def server() -> Iterator[Listening]:
    with listening() as running:
        yield running


def by_http_client(url: str, **headers: str) -> int:
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=SECONDS)
    connection.request("POST", f"/{path}", bytes(UNREAD), headers)
    status = connection.getresponse().status
    connection.close()
    return status


def by_http_client_that_closes(url: str) -> int:
    return by_http_client(url, Connection="close")


def by_urllib(url: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(urllib.request.Request(url, bytes(UNREAD)), timeout=SECONDS)
    raised.value.close()
    return raised.value.code


def by_requests(url: str) -> int:
    return requests.post(url, bytes(UNREAD), timeout=SECONDS).status_code


def by_httpx(url: str) -> int:
    return httpx.post(url, content=bytes(UNREAD), timeout=SECONDS).status_code


def by_curl(url: str, *options: str) -> int:
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--data-binary", "@-", *options, url]
    done = subprocess.run(command, input=bytes(UNREAD), capture_output=True, check=False, timeout=SECONDS)
    return int(done.stdout)


def by_curl_that_does_not_ask(url: str) -> int:
    return by_curl(url, "-H", "Expect:")


def by_curl_1_0(url: str) -> int:
    return by_curl(url, "--http1.0")


@pytest.mark.parametrize("path", ["/refuse", "/close"])
@pytest.mark.parametrize(
    "client",
    [
        by_http_client,
        by_http_client_that_closes,
        by_urllib,
        by_requests,
        by_httpx,
        pytest.param(by_curl, marks=needs_curl),
        pytest.param(by_curl_that_does_not_ask, marks=needs_curl),
        pytest.param(by_curl_1_0, marks=needs_curl),
    ],
)
def test_a_refusal_arrives_while_the_client_is_still_sending(
    server: Listening, client: Callable[[str], int], path: str
) -> None:
    assert [client(f"http://127.0.0.1:{server.port}{path}") for _ in range(5)] == [413] * 5


@contextlib.contextmanager
def far_away(port: int, seconds: float) -> Iterator[int]:
    """The port of a link to this port that delays each byte."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        now = asyncio.get_running_loop().time
        on_its_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                at, data = await on_its_way.get()
                await asyncio.sleep(at - now())
                if not data:
                    return
                writer.write(data)
                await writer.drain()

        delivery = asyncio.create_task(deliver())
        while data := await reader.read(65536):
            on_its_way.put_nowait((now() + seconds, data))
        on_its_way.put_nowait((now() + seconds, b""))
        await delivery
        writer.write_eof()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(carry(reader, there[1]), carry(there[0], writer))
        except (OSError, asyncio.CancelledError):  # whoever resets one end resets the other
            pass
        finally:
            for end in (writer, there[1]):
                end.transport.abort()

    ports: queue.SimpleQueue[int] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    ended = asyncio.Event()

    async def relay() -> None:
        async with await asyncio.start_server(connected, "127.0.0.1", 0) as listening:
            ports.put(listening.sockets[0].getsockname()[1])
            await ended.wait()

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        thread = threading.Thread(target=lambda: runner.run(relay()))
        thread.start()
        try:
            yield ports.get(timeout=SECONDS)
        finally:
            loop.call_soon_threadsafe(ended.set)
            thread.join(SECONDS)


def test_a_refusal_arrives_over_a_slow_link(server: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.UNREAD", 90_000)
    with far_away(server.port, 0.01) as port:
        assert [by_http_client(f"http://127.0.0.1:{port}/close") for _ in range(20)] == [413] * 20


def test_a_refusal_arrives_while_the_server_stops() -> None:
    with listening() as running, running.connect() as client:
        client.sendall(b"POST /refuse HTTP/1.1\r\nHost: a\r\nContent-Length: 8000000\r\n\r\n")
        client.sendall(bytes(1000))
        until(lambda: running.server.server_state.total_requests == 1)
        running.server.should_exit = True
        until(lambda: not running.server.servers[0].sockets)
        client.sendall(bytes(UNREAD - 1000))
        assert read_all(client).startswith(b"HTTP/1.1 413 ")


def read_all(client: socket.socket) -> bytes:
    """All bytes until the server closes."""
    came = b""
    while part := client.recv(65536):
        came += part
    return came


def read_answer(client: socket.socket) -> http.client.HTTPResponse:
    answer = http.client.HTTPResponse(client)
    answer.begin()
    answer.read()
    return answer


def ask(server: Listening, *parts: bytes, pause: float = 0) -> bytes:
    with server.connect() as client:
        for part in parts:
            client.sendall(part)
            time.sleep(pause)
        return read_all(client)


def send_for_ever(client: socket.socket, data: bytes, pause: float = 0) -> None:
    while True:
        client.sendall(data)
        time.sleep(pause)


def error_of(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"x-request-id: " in head
    assert b"content-security-policy: " in head
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def head(path: str = "/", method: str = "POST", **headers: str) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: a",
        *(f"{name.replace('_', '-')}: {headers[name]}" for name in headers),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def test_a_lingering_connection_ends_if_no_bytes_arrive(server: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "LINGER_PAUSE", 0.05)
    with server.connect() as client:
        client.sendall(head("/close", Content_Length="1000") + b"some")
        assert read_all(client).endswith(b"refused")
        server.wait_until_closed()


@pytest.mark.parametrize("path", ["/refuse", "/close"])
def test_dropped_bytes_are_limited(server: Listening, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(connection_limits, "LINGER_BYTES", 100_000)
    with server.connect() as client:
        client.sendall(head(path, Content_Length="10000000000"))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_for_ever(client, bytes(100_000))


@pytest.mark.parametrize("path", ["/refuse", "/close"])
@pytest.mark.parametrize(("seconds", "piece"), [(0.1, bytes(10_000)), (1000, b"x")])
def test_dropping_is_limited_in_time_and_ends_earlier_for_a_trickle(
    server: Listening, monkeypatch: pytest.MonkeyPatch, path: str, seconds: float, piece: bytes
) -> None:
    monkeypatch.setattr(connection_limits, "LINGER_SECONDS", seconds)
    monkeypatch.setattr(connection_limits, "LINGER_PAUSE", 0.05)
    with server.connect() as client:
        client.sendall(head(path, Content_Length="10000000000"))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_for_ever(client, piece, 0.01)


def test_the_number_of_lingering_connections_is_limited(server: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "LINGERING", 2)
    with contextlib.ExitStack() as open_connections:
        for _ in range(6):
            client = open_connections.enter_context(server.connect())
            client.sendall(head("/close", Content_Length="1000"))
            assert read_all(client).endswith(b"refused")
        until(lambda: len(server.server.server_state.connections) == 2)
    server.wait_until_closed()


def test_the_connection_of_an_unread_body_serves_the_next_request(server: Listening) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
    connection.connect()
    first = connection.sock
    for path, status in (("/refuse", 413), ("/refuse", 413), ("/", 200), ("/refuse", 413), ("/", 200)):
        connection.request("POST", path, bytes(UNREAD))
        answer = connection.getresponse()
        answer.read()
        assert (answer.status, connection.sock is first) == (status, True)
    connection.close()


def test_an_unread_body_that_stalls_ends_its_connection(server: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "LINGER_PAUSE", 0.05)
    assert ask(server, head("/refuse", Content_Length="1000") + b"some").endswith(b"refused")


def test_a_refused_request_with_expect_gets_no_100_continue(server: Listening) -> None:
    with server.connect() as client:
        client.sendall(head("/refuse", Content_Length="1000", Expect="100-continue"))
        answer = client.recv(65536)
        client.shutdown(socket.SHUT_WR)
        answer += read_all(client)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer
    assert b"100 Continue" not in answer


def test_a_request_with_expect_keeps_its_connection_after_100_continue(server: Listening) -> None:
    with server.connect() as client:
        for _ in range(2):
            client.sendall(head(Content_Length="4", Expect="100-continue"))
            told = b"HTTP/1.1 100 Continue\r\n\r\n"
            assert client.recv(len(told), socket.MSG_WAITALL) == told
            client.sendall(b"body")
            answer = read_answer(client)
            assert (answer.status, answer.getheader("Connection")) == (200, None)


def test_http_1_0_gets_no_100_continue(server: Listening) -> None:
    request = head(Content_Length="4", Expect="100-continue").replace(b"HTTP/1.1", b"HTTP/1.0") + b"body"
    answer = ask(server, request)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"4")


@pytest.mark.parametrize("before", [b"", head(method="GET")])
def test_a_silent_connection_is_closed(server: Listening, monkeypatch: pytest.MonkeyPatch, before: bytes) -> None:
    monkeypatch.setattr(connection_limits, "HEAD_SECONDS", 0.5)
    with listening() as running:
        running.server.config.timeout_keep_alive = 0.1  # type: ignore[assignment] # seconds
        answer = ask(running, before)
    assert answer.count(b"HTTP/1.1") == (1 if before else 0)


@pytest.mark.parametrize("before", [b"", head(method="GET")])
@pytest.mark.parametrize("sent", [b"POST / HT", b"POST / HTTP/1.1\r\nHost: a\r\n", b"\r\n"])
def test_an_incomplete_head_is_refused_with_408(
    server: Listening, monkeypatch: pytest.MonkeyPatch, before: bytes, sent: bytes
) -> None:
    monkeypatch.setattr(connection_limits, "HEAD_SECONDS", 0.5)
    with server.connect() as client:
        if before:
            client.sendall(before)
            assert read_answer(client).status == 200
        client.sendall(sent)
        assert error_of(read_all(client)) == (408, "head_timeout")


def test_a_head_that_trickles_is_refused(server: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "HEAD_SECONDS", 0.5)
    parts = [b"POST / HTTP/1.1\r\n", *[b"a: b\r\n"] * 200]
    assert error_of(ask(server, *parts, pause=0.01)) == (408, "head_timeout")


@pytest.mark.parametrize("size", [1_000, 40_000])
def test_a_head_that_is_too_large_is_refused_however_it_is_split(server: Listening, size: int) -> None:
    whole = head(method="GET", Big="x" * 40_000)
    parts = [whole[start : start + size] for start in range(0, len(whole), size)]
    assert error_of(ask(server, *parts)) == (431, "head_too_large")
    many = head(method="GET", **{f"x{number}": "1" for number in range(10_000)})
    assert error_of(ask(server, many)) == (431, "head_too_large")


@pytest.mark.parametrize("lines", [200, 4_000, 37_000])
@pytest.mark.parametrize("end", [b"", b"\r\n"])
def test_a_head_of_many_small_lines_is_refused_and_not_kept(server: Listening, lines: int, end: bytes) -> None:
    sent = head(method="GET")[:-2] + b"ab:cd\r\n" * lines + end
    tracemalloc.start()
    try:
        with server.connect() as client:
            client.sendall(sent)
            assert error_of(read_all(client)) == (431, "head_too_large")
            assert tracemalloc.get_traced_memory()[0] < 2_000_000
    finally:
        tracemalloc.stop()


def test_bytes_outside_head_and_body_are_limited_too(server: Listening) -> None:
    assert error_of(ask(server, *[b"\r\n" * 10_000] * 4)) == (431, "head_too_large")
    trailers = [head(Transfer_Encoding="chunked") + b"1\r\nx\r\n0\r\n", *[b"trailer: " + b"x" * 9_000 + b"\r\n"] * 5]
    assert error_of(ask(server, *trailers, pause=0.01)) == (431, "head_too_large")


def test_trailers_are_not_added_to_the_headers() -> None:
    seen: list[list[bytes]] = []

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        seen.append([name for name, _ in scope["headers"]])
        await Response()(scope, receive, send)

    with listening(note) as running:
        body = b"1\r\nx\r\n0\r\nAuthorization: Bearer key\r\n\r\n"
        ask(running, head(Transfer_Encoding="chunked", Connection="close") + body)
    assert seen == [[b"host", b"transfer-encoding", b"connection"]]


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nno header\r\n\r\n",
        b"\x16\x03\x01\x02",
        b"CONNECT x:1 HTTP/1.1\r\n\r\n",
        b"GET http://x HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        *(
            b"POST / HTTP/1.1\r\nContent-Length: %s\r\n\r\nx" % size
            for size in (b"x", b"+1", b"-1", 400 * b"9", b"1, 2")
        ),
    ],
)
def test_bytes_that_are_not_http_are_refused_with_400(server: Listening, sent: bytes) -> None:
    assert error_of(ask(server, sent)) == (400, "invalid_request")


def test_a_body_with_invalid_chunks_is_refused_with_400(server: Listening) -> None:
    assert error_of(ask(server, head(Transfer_Encoding="chunked"), b"no length\r\n", pause=0.05)) == (
        400,
        "invalid_request",
    )


def test_a_body_in_endless_small_chunks_is_not_parsed(server: Listening) -> None:
    small = b"1\r\nx\r\n" * 20_000
    assert error_of(ask(server, head(Transfer_Encoding="chunked") + small)) == (400, "invalid_request")
    with server.connect() as client:
        client.sendall(head("/refuse", Transfer_Encoding="chunked") + b"1\r\nx\r\n")
        assert read_answer(client).status == 413
        client.sendall(small)
        assert client.recv(1) == b""


def test_a_body_in_many_chunks_is_read(server: Listening) -> None:
    chunks = (b"20\r\n" + bytes(32) + b"\r\n") * 20_000 + b"0\r\n\r\n"
    assert ask(server, head(Transfer_Encoding="chunked", Connection="close") + chunks).endswith(b"\r\n640000")


@pytest.mark.parametrize("pause", [0, 0.1])
def test_a_broken_body_is_counted_once_and_answered_in_its_route_s_error_form(
    caplog: pytest.LogCaptureFixture, pause: float
) -> None:
    with (
        caplog.at_level(logging.INFO, logger="serving.telemetry.request_record"),
        listening(RequestRecording(app)) as running,
    ):
        answer = ask(running, head("/v2/models/x/infer", Transfer_Encoding="chunked"), b"no length\r\n", pause=pause)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"].startswith("invalid_request: ")
    assert len([record for record in caplog.records if record.name == "serving.telemetry.request_record"]) == 1


@pytest.mark.parametrize("bad", [b"nonsense\r\n\r\n", head(method="GET", Big="x" * 40_000)])
def test_requests_before_an_invalid_one_are_answered(server: Listening, bad: bytes) -> None:
    answer = ask(server, head(Content_Length="4") + b"body" + bad)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") == 1


def test_pipelined_requests_are_answered_in_order_and_limited(server: Listening) -> None:
    def requests_of(*sizes: int) -> bytes:
        return b"".join(head(Content_Length=str(size)) + bytes(size) for size in sizes)

    with server.connect() as client:
        client.sendall(requests_of(1, 22, 333))
        came = b""
        while came.count(b"HTTP/1.1 200") < 3 or not came.endswith(b"333"):
            came += client.recv(65536)
        assert came.index(b"\r\n\r\n1") < came.index(b"\r\n\r\n22") < came.index(b"\r\n\r\n333")
    answer = ask(server, requests_of(*range(2 * connection_limits.PIPELINED)))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") <= connection_limits.PIPELINED + 1


def test_an_unread_answer_ends_its_connection(server: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "WRITE_PAUSE", 0.1)
    with server.connect() as client:
        client.sendall(head("/large", "GET"))
        assert client.recv(1)
        server.wait_until_closed()


def test_unread_pipelined_answers_end_their_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "WRITE_PAUSE", 0.1)
    with listening() as running, running.connect() as client:
        client.sendall(head("/large", "GET") * 3)
        assert client.recv(1)
        running.wait_until_closed()


def test_an_answer_that_is_read_slowly_arrives(server: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "WRITE_PAUSE", 1)
    with server.connect() as client:
        client.sendall(head("/large", "GET", Connection="close"))
        came = 0
        while part := client.recv(100_000):
            came += len(part)
            time.sleep(0.004)
    assert came > 50_000_000


def test_beyond_the_limit_the_connection_that_is_idle_longest_is_closed(
    server: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.wait_until_closed()
    monkeypatch.setattr(BoundedConnection, "most", 2)
    with server.connect() as first, server.connect() as second:
        until(lambda: len(server.server.server_state.connections) == 2)
        second.sendall(head(Content_Length="4"))
        with server.connect() as third:
            assert first.recv(1) == b""
            third.sendall(head(Content_Length="4"))
            with server.connect() as fourth:
                assert error_of(read_all(fourth)) == (503, "overloaded")
            for client in (second, third):
                client.sendall(b"body")
                assert read_answer(client).status == 200


@pytest.mark.parametrize("requests_before", [0, 2])
def test_a_client_that_closes_only_its_sending_side_gets_its_answers(
    monkeypatch: pytest.MonkeyPatch, requests_before: int
) -> None:
    monkeypatch.setattr(connection_limits, "HALF_CLOSE", SECONDS)

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        gone = asyncio.ensure_future(receive())
        done, _ = await asyncio.wait([gone], timeout=0.2)
        gone.cancel()
        await Response("gone" if done else "answer")(scope, receive, send)

    with listening(slow) as running, running.connect() as client:
        client.sendall((head(Content_Length="4") + b"body") * requests_before + head(method="GET"))
        client.shutdown(socket.SHUT_WR)
        answer = read_all(client)
        assert answer.count(b"\r\n\r\nanswer") == requests_before + 1
        assert answer.count(b"connection: close") == 1
        running.wait_until_closed()


def test_a_client_that_closes_later_or_during_a_request_has_hung_up(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = threading.Semaphore(0)

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.release()

    with listening(note) as running:
        with running.connect() as client:
            client.sendall(head(Content_Length="4") + b"bo")
        assert gone.acquire(timeout=SECONDS)
        monkeypatch.setattr(connection_limits, "HALF_CLOSE", -1)
        for waiting in (0, 2):
            with running.connect() as client:
                client.sendall((head(Content_Length="4") + b"body") * (1 + waiting))
            assert gone.acquire(timeout=SECONDS)
        running.wait_until_closed()


@pytest.mark.parametrize("cut", [0, 5, 10_000])
@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
def test_an_upgrade_is_ignored_and_the_request_s_body_is_read(server: Listening, protocol: str, cut: int) -> None:
    asking = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": protocol, "HTTP2-Settings": "AAMAAABkAAQ"}
    requests_of = [
        head(Content_Length="4", **asking) + b"body",
        head(method="GET", **asking),
        head(Transfer_Encoding="chunked", **asking) + b"3\r\nabc\r\n5\r\ndefgh\r\n0\r\n\r\n",
        head("/refuse", Content_Length="4", **asking) + b"body",
        head(Content_Length="2", Connection="close") + b"ab",
    ]
    sent = b"".join(requests_of)
    at = len(requests_of[0]) - cut
    parts = [sent] if at < 0 else [sent[:at], sent[at:]]
    answers = ask(server, *parts, pause=0.05).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200", b"200", b"200", b"413", b"200"]
    assert [answer.partition(b"\r\n\r\n")[2] for answer in answers] == [b"4", b"0", b"8", b"refused", b"2"]


def test_the_limit_of_open_files_is_raised_and_half_is_for_connections() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 1000));"
        "from serving.http import connections; connections.install();"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], connections.BoundedConnection.most)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=300)
    assert done.stdout.split() == [b"1000", b"500"]
