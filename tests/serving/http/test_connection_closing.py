"""The end of HTTP connections: a refusal arrives while the client is still sending, and every connection ends."""

import asyncio
import contextlib
import http.client
import queue
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import httpx
import pytest
import requests
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.http import connection_limits
from tests.server import needs_curl
from tests.serving.http.connection_server import (
    Listening,
    ask,
    head,
    listening,
    read_all,
    send_for_ever,
)
from tests.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.usefixtures("nothing_fails")

UNREAD = 8_000_000
"""Bytes of a body, more than the sockets hold."""


def by_http_client(url: str, **headers: str) -> int:
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=PATIENCE)
    connection.request("POST", f"/{path}", bytes(UNREAD), headers)
    status = connection.getresponse().status
    connection.close()
    return status


def by_http_client_that_closes(url: str) -> int:
    return by_http_client(url, Connection="close")


def by_urllib(url: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(urllib.request.Request(url, bytes(UNREAD)), timeout=PATIENCE)
    raised.value.close()
    return raised.value.code


def by_requests(url: str) -> int:
    return requests.post(url, bytes(UNREAD), timeout=PATIENCE).status_code


def by_httpx(url: str) -> int:
    return httpx.post(url, content=bytes(UNREAD), timeout=PATIENCE).status_code


def by_curl(url: str, *options: str) -> int:
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--data-binary", "@-", *options, url]
    done = subprocess.run(command, input=bytes(UNREAD), capture_output=True, check=False, timeout=PATIENCE)
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
    bounded: Listening, client: Callable[[str], int], path: str
) -> None:
    assert [client(f"http://127.0.0.1:{bounded.port}{path}") for _ in range(5)] == [413] * 5


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
            yield ports.get(timeout=PATIENCE)
        finally:
            loop.call_soon_threadsafe(ended.set)
            thread.join(PATIENCE)


def test_a_refusal_arrives_over_a_slow_link(bounded: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.UNREAD", 90_000)
    with far_away(bounded.port, 0.01) as port:
        assert [by_http_client(f"http://127.0.0.1:{port}/close") for _ in range(20)] == [413] * 20


def test_a_refusal_arrives_while_the_server_stops() -> None:
    with listening() as running, running.connect() as client:
        client.sendall(b"POST /refuse HTTP/1.1\r\nHost: a\r\nContent-Length: 8000000\r\n\r\n")
        client.sendall(bytes(1000))
        wait_until(lambda: running.server.server_state.total_requests == 1, "the request has come")
        running.server.should_exit = True
        wait_until(lambda: not running.server.servers[0].sockets, "the port is closed")
        client.sendall(bytes(UNREAD - 1000))
        assert read_all(client).startswith(b"HTTP/1.1 413 ")


def test_a_lingering_connection_ends_if_no_bytes_arrive(bounded: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "LINGER_PAUSE", 0.05)
    with bounded.connect() as client:
        client.sendall(head("/close", Content_Length="1000") + b"some")
        assert read_all(client).endswith(b"refused")
        bounded.wait_until_closed()


@pytest.mark.parametrize("path", ["/refuse", "/close"])
def test_dropped_bytes_are_limited(bounded: Listening, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(connection_limits, "LINGER_BYTES", 100_000)
    with bounded.connect() as client:
        client.sendall(head(path, Content_Length="10000000000"))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_for_ever(client, bytes(100_000))


@pytest.mark.parametrize("path", ["/refuse", "/close"])
@pytest.mark.parametrize(("seconds", "piece"), [(0.1, bytes(10_000)), (1000, b"x")])
def test_dropping_is_limited_in_time_and_ends_earlier_for_a_trickle(
    bounded: Listening, monkeypatch: pytest.MonkeyPatch, path: str, seconds: float, piece: bytes
) -> None:
    monkeypatch.setattr(connection_limits, "LINGER_SECONDS", seconds)
    monkeypatch.setattr(connection_limits, "LINGER_PAUSE", 0.05)
    with bounded.connect() as client:
        client.sendall(head(path, Content_Length="10000000000"))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_for_ever(client, piece, 0.01)


def test_the_number_of_lingering_connections_is_limited(bounded: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "LINGERING", 2)
    with contextlib.ExitStack() as open_connections:
        for _ in range(6):
            client = open_connections.enter_context(bounded.connect())
            client.sendall(head("/close", Content_Length="1000"))
            assert read_all(client).endswith(b"refused")
        wait_until(lambda: len(bounded.server.server_state.connections) == 2, "the older ones are closed")
    bounded.wait_until_closed()


def test_the_connection_of_an_unread_body_serves_the_next_request(bounded: Listening) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", bounded.port, timeout=PATIENCE)
    connection.connect()
    first = connection.sock
    for path, status in (("/refuse", 413), ("/refuse", 413), ("/", 200), ("/refuse", 413), ("/", 200)):
        connection.request("POST", path, bytes(UNREAD))
        answer = connection.getresponse()
        answer.read()
        assert (answer.status, connection.sock is first) == (status, True)
    connection.close()


def test_an_unread_body_that_stalls_ends_its_connection(bounded: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "LINGER_PAUSE", 0.05)
    assert ask(bounded, head("/refuse", Content_Length="1000") + b"some").endswith(b"refused")


def test_an_unread_answer_ends_its_connection(bounded: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "WRITE_PAUSE", 0.1)
    with bounded.connect() as client:
        client.sendall(head("/large", "GET"))
        assert client.recv(1)
        bounded.wait_until_closed()


def test_unread_pipelined_answers_end_their_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "WRITE_PAUSE", 0.1)
    with listening() as running, running.connect() as client:
        client.sendall(head("/large", "GET") * 3)
        assert client.recv(1)
        running.wait_until_closed()


def test_an_answer_that_is_read_slowly_arrives(bounded: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "WRITE_PAUSE", 1)
    with bounded.connect() as client:
        client.sendall(head("/large", "GET", Connection="close"))
        came = 0
        while part := client.recv(100_000):
            came += len(part)
            time.sleep(0.004)
    assert came > 50_000_000


@pytest.mark.parametrize("requests_before", [0, 2])
def test_a_client_that_closes_only_its_sending_side_gets_its_answers(
    monkeypatch: pytest.MonkeyPatch, requests_before: int
) -> None:
    monkeypatch.setattr(connection_limits, "HALF_CLOSE", PATIENCE)

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
        assert gone.acquire(timeout=PATIENCE)
        monkeypatch.setattr(connection_limits, "HALF_CLOSE", -1)
        for waiting in (0, 2):
            with running.connect() as client:
                client.sendall((head(Content_Length="4") + b"body") * (1 + waiting))
            assert gone.acquire(timeout=PATIENCE)
        running.wait_until_closed()
