"""HTTP connections: limits on heads, pipelines and bodies in pieces, and their refusals."""

import json
import logging
import select
import socket
import subprocess
import sys
import tracemalloc

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.http import connection_limits
from serving.http.connections import BoundedConnection
from serving.http.request_recording import RequestRecording
from tests.server import ROOT
from tests.serving.http.connection_server import (
    Listening,
    app,
    ask,
    error_of,
    head,
    listening,
    read_all,
    read_answer,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("nothing_fails")


def test_a_refused_request_with_expect_gets_no_100_continue(bounded: Listening) -> None:
    with bounded.connect() as client:
        client.sendall(head("/refuse", Content_Length="1000", Expect="100-continue"))
        answer = client.recv(65536)
        client.shutdown(socket.SHUT_WR)
        answer += read_all(client)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer
    assert b"100 Continue" not in answer


def test_a_request_with_expect_keeps_its_connection_after_100_continue(bounded: Listening) -> None:
    with bounded.connect() as client:
        for _ in range(2):
            client.sendall(head(Content_Length="4", Expect="100-continue"))
            told = b"HTTP/1.1 100 Continue\r\n\r\n"
            assert client.recv(len(told), socket.MSG_WAITALL) == told
            client.sendall(b"body")
            answer = read_answer(client)
            assert (answer.status, answer.getheader("Connection")) == (200, None)


def test_http_1_0_gets_no_100_continue(bounded: Listening) -> None:
    request = head(Content_Length="4", Expect="100-continue").replace(b"HTTP/1.1", b"HTTP/1.0") + b"body"
    answer = ask(bounded, request)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"4")


@pytest.mark.parametrize("before", [b"", head(method="GET")])
def test_a_silent_connection_is_closed(monkeypatch: pytest.MonkeyPatch, before: bytes) -> None:
    monkeypatch.setattr(connection_limits, "HEAD_SECONDS", 0.5)
    with listening() as running:
        running.server.config.timeout_keep_alive = 0.1  # type: ignore[assignment] # seconds
        answer = ask(running, before)
    assert answer.count(b"HTTP/1.1") == (1 if before else 0)


@pytest.mark.parametrize("before", [b"", head(method="GET")])
@pytest.mark.parametrize("sent", [b"POST / HT", b"POST / HTTP/1.1\r\nHost: a\r\n", b"\r\n"])
def test_an_incomplete_head_is_refused_with_408(
    bounded: Listening, monkeypatch: pytest.MonkeyPatch, before: bytes, sent: bytes
) -> None:
    monkeypatch.setattr(connection_limits, "HEAD_SECONDS", 0.5)
    with bounded.connect() as client:
        if before:
            client.sendall(before)
            assert read_answer(client).status == 200
        client.sendall(sent)
        assert error_of(read_all(client)) == (408, "head_timeout")


def test_a_head_that_trickles_is_refused(bounded: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "HEAD_SECONDS", 0.5)
    with bounded.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\n")
        while not select.select([client], [], [], 0.01)[0]:
            client.sendall(b"a: b\r\n")
        assert error_of(read_all(client)) == (408, "head_timeout")


@pytest.mark.parametrize("size", [1_000, 40_000])
def test_a_head_that_is_too_large_is_refused_however_it_is_split(bounded: Listening, size: int) -> None:
    whole = head(method="GET", Big="x" * 40_000)
    parts = [whole[start : start + size] for start in range(0, len(whole), size)]
    assert error_of(ask(bounded, *parts)) == (431, "head_too_large")
    many = head(method="GET", **{f"x{number}": "1" for number in range(10_000)})
    assert error_of(ask(bounded, many)) == (431, "head_too_large")


@pytest.mark.parametrize("lines", [200, 4_000, 37_000])
@pytest.mark.parametrize("end", [b"", b"\r\n"])
def test_a_head_of_many_small_lines_is_refused_and_not_kept(bounded: Listening, lines: int, end: bytes) -> None:
    sent = head(method="GET")[:-2] + b"ab:cd\r\n" * lines + end
    tracemalloc.start()
    try:
        with bounded.connect() as client:
            client.sendall(sent)
            assert error_of(read_all(client)) == (431, "head_too_large")
            assert tracemalloc.get_traced_memory()[0] < 2_000_000
    finally:
        tracemalloc.stop()


def test_bytes_outside_head_and_body_are_limited_too(bounded: Listening) -> None:
    assert error_of(ask(bounded, *[b"\r\n" * 10_000] * 4)) == (431, "head_too_large")
    trailers = [head(Transfer_Encoding="chunked") + b"1\r\nx\r\n0\r\n", *[b"trailer: " + b"x" * 9_000 + b"\r\n"] * 5]
    assert error_of(ask(bounded, *trailers, pause=0.01)) == (431, "head_too_large")


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
def test_bytes_that_are_not_http_are_refused_with_400(bounded: Listening, sent: bytes) -> None:
    assert error_of(ask(bounded, sent)) == (400, "invalid_request")


def test_a_body_with_invalid_chunks_is_refused_with_400(bounded: Listening) -> None:
    assert error_of(ask(bounded, head(Transfer_Encoding="chunked"), b"no length\r\n", pause=0.05)) == (
        400,
        "invalid_request",
    )


def test_a_body_in_endless_small_chunks_is_not_parsed(bounded: Listening) -> None:
    small = b"1\r\nx\r\n" * 20_000
    assert error_of(ask(bounded, head(Transfer_Encoding="chunked") + small)) == (400, "invalid_request")
    with bounded.connect() as client:
        client.sendall(head("/refuse", Transfer_Encoding="chunked") + b"1\r\nx\r\n")
        assert read_answer(client).status == 413
        client.sendall(small)
        assert client.recv(1) == b""


def test_a_body_in_many_chunks_is_read(bounded: Listening) -> None:
    chunks = (b"20\r\n" + bytes(32) + b"\r\n") * 20_000 + b"0\r\n\r\n"
    assert ask(bounded, head(Transfer_Encoding="chunked", Connection="close") + chunks).endswith(b"\r\n640000")


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
def test_requests_before_an_invalid_one_are_answered(bounded: Listening, bad: bytes) -> None:
    answer = ask(bounded, head(Content_Length="4") + b"body" + bad)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") == 1


def test_pipelined_requests_are_answered_in_order_and_limited(bounded: Listening) -> None:
    def requests_of(*sizes: int) -> bytes:
        return b"".join(head(Content_Length=str(size)) + bytes(size) for size in sizes)

    with bounded.connect() as client:
        client.sendall(requests_of(1, 22, 333))
        came = b""
        while came.count(b"HTTP/1.1 200") < 3 or not came.endswith(b"333"):
            came += client.recv(65536)
        assert came.index(b"\r\n\r\n1") < came.index(b"\r\n\r\n22") < came.index(b"\r\n\r\n333")
    answer = ask(bounded, requests_of(*range(2 * connection_limits.PIPELINED)))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") <= connection_limits.PIPELINED + 1


def test_beyond_the_limit_the_connection_that_is_idle_longest_is_closed(
    bounded: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounded.wait_until_closed()
    monkeypatch.setattr(BoundedConnection, "most", 2)
    with bounded.connect() as first, bounded.connect() as second:
        wait_until(lambda: len(bounded.server.server_state.connections) == 2, "both are connected")
        second.sendall(head(Content_Length="4"))
        with bounded.connect() as third:
            assert first.recv(1) == b""
            third.sendall(head(Content_Length="4"))
            with bounded.connect() as fourth:
                refused = read_all(fourth)
                assert error_of(refused) == (503, "overloaded")
                assert b"\r\nretry-after: 2\r\n" in refused
            for client in (second, third):
                client.sendall(b"body")
                assert read_answer(client).status == 200


@pytest.mark.parametrize("cut", [0, 5, 10_000])
@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
def test_an_upgrade_is_ignored_and_the_request_s_body_is_read(bounded: Listening, protocol: str, cut: int) -> None:
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
    answers = ask(bounded, *parts, pause=0.05).split(b"HTTP/1.1 ")[1:]
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
