"""Clients in a process of their own, so that they do not hold this one's interpreter lock.

It talks over a pipe. A pool would have locks in the system, which stay behind if this process is killed.
"""

import asyncio
import contextlib
import http.client
import os
import socket
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import grpc

from benchmarks.steps.turns import AT_ONCE, Turn
from chestct.processes import die_with_parent
from load_tests.payloads import MODEL_INFER, OWN_CONNECTION
from load_tests.verdict import LoadError

Connect = Callable[[int, bytes, int], None]


@contextlib.asynccontextmanager
async def clients(
    connect: Connect, ask_all: Callable[[], None], port: int, request: bytes, images: int
) -> AsyncIterator[Turn]:
    """Start a process and `connect` it to a port of this machine. Each turn is a call of `ask_all` there.

    `request` has so many images. There is a connection for each request of a turn.
    """
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_take_turns, args=(os.getpid(), there))
    process.start()
    try:
        here.send((connect, ask_all, port, request, AT_ONCE // images))

        async def turn() -> None:
            here.send(None)
            if wrong := await asyncio.to_thread(here.recv):
                raise LoadError(wrong)

        yield turn
    finally:
        process.kill()
        process.join()


def _take_turns(parent: int, pipe: Connection) -> None:
    """Connect as the first message says. Then answer each message with the error of a turn, or with no words."""
    die_with_parent(parent)
    with contextlib.suppress(EOFError):  # the parent's pipe ends before the parent does
        connect, ask_all, *details = pipe.recv()
        connect(*details)
        while True:
            pipe.recv()
            try:
                ask_all()
            except (OSError, http.client.HTTPException, grpc.RpcError, LoadError) as error:
                pipe.send(str(error) or type(error).__name__)
            else:
                pipe.send("")


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
