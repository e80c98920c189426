"""A real server whose connections are bounded, and raw requests to it."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.http.connections import BoundedConnection
from tests.waiting import PATIENCE, wait_until


class Listening(NamedTuple):
    port: int
    server: uvicorn.Server

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE)

    def wait_until_closed(self) -> None:
        wait_until(lambda: not self.server.server_state.connections, "every connection is closed")


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
        wait_until(lambda: server.started, "the server listens")
        yield Listening(server.servers[0].sockets[0].getsockname()[1], server)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


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
