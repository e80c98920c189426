"""Clients in a process of their own, so that they do not hold this one's interpreter lock."""

import asyncio
import http.client
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from http import HTTPStatus
from multiprocessing import get_context
from typing import Any

import grpc

from benchmarks.steps.turns import AT_ONCE, Turn
from load_tests.payloads import MODEL_INFER, OWN_CONNECTION
from load_tests.verdict import LoadError

Connect = Callable[[int, bytes, int], None]


@asynccontextmanager
async def clients(
    connect: Connect, ask_all: Callable[[], None], port: int, request: bytes, images: int
) -> AsyncIterator[Turn]:
    """Start a process and `connect` it to a port of this machine. Each turn is a call of `ask_all` there.

    `request` has so many images. There is a connection for each request of a turn.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), connect, (port, request, AT_ONCE // images)) as pool:

        async def turn() -> None:
            await asyncio.get_running_loop().run_in_executor(pool, ask_all)

        yield turn


class _State:
    """What `connect` leaves for `ask_all`."""

    connections: list[socket.socket]
    calls: list[Any]
    request: bytes


def connect_http(port: int, request: bytes, count: int) -> None:
    """Open connections. `request` is a whole one, with its head."""
    _State.connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    _State.request = request


def ask_all_http() -> None:
    """Send the request over each connection, then read the answers."""
    for connection in _State.connections:
        connection.sendall(_State.request)
    for connection in _State.connections:
        _read_answer(connection)


def connect_grpc(port: int, request: bytes, count: int) -> None:
    """Open channels with connections of their own. `request` is a message of ModelInfer."""
    channels = [grpc.insecure_channel(f"127.0.0.1:{port}", OWN_CONNECTION) for _ in range(count)]
    _State.calls = [channel.unary_unary(MODEL_INFER) for channel in channels]
    _State.request = request


def ask_all_grpc() -> None:
    """Call the method over each channel, then wait for the answers."""
    for answer in [call.future(_State.request) for call in _State.calls]:
        answer.result()


def _read_answer(connection: socket.socket) -> None:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    answer.read()
    if answer.status != HTTPStatus.OK:
        raise LoadError(f"expected the status 200, got {answer.status}")
