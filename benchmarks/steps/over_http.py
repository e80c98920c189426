"""Requests to an ASGI app: to the app itself, and over connections of the service's own kind."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import NamedTuple

import uvicorn
from starlette.types import ASGIApp, Message

from benchmarks.steps import clients
from benchmarks.steps.turns import Turn, together
from load_tests import wire
from load_tests.verdict import LoadError
from serving.http.connections import BoundedConnection
from serving.settings import Settings
from serving.telemetry.request_record import RequestRecord


class Request(NamedTuple):
    """A request over HTTP."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    images: int = 1


def to_app(app: ASGIApp, request: Request) -> Turn:
    """Requests that no server passes on. Each has a record already, for an app that needs one."""
    headers = {"Host": "chestct", **request.headers, "Content-Length": str(len(request.body))}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "server": ("127.0.0.1", 3000),
        "client": ("127.0.0.1", 50000),
        "root_path": "",
        "method": "POST",
        "path": request.path,
        "raw_path": request.path.encode(),
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }

    async def ask() -> None:
        parts: list[Message] = [{"type": "http.request", "body": request.body, "more_body": False}]
        sent: list[Message] = []

        async def receive() -> Message:
            return parts.pop() if parts else await asyncio.Event().wait()  # type: ignore[return-value] # never

        async def send(message: Message) -> None:
            sent.append(message)

        record = RequestRecord("0" * 32, deadline=time.monotonic() + Settings.model_fields["request_timeout"].default)
        await app({**scope, "state": {"record": record}}, receive, send)
        if sent[0]["status"] != HTTPStatus.OK:
            raise LoadError(f"{request.path}: expected the status 200, got {sent[0]['status']}")

    return together(ask, request.images)


@asynccontextmanager
async def to_server(app: ASGIApp, request: Request) -> AsyncIterator[Turn]:
    """Requests over connections from another process to a server in this thread."""
    config = uvicorn.Config(
        app,
        port=0,
        http=BoundedConnection,
        lifespan="off",
        log_config=None,
        server_header=False,
        timeout_keep_alive=3600,  # the other measurements have their turns meanwhile
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    post = wire.post(request.path, request.body, request.headers)
    try:
        async with clients.clients(clients.connect_http, clients.ask_all_http, port, post, request.images) as turn:
            yield turn
    finally:
        server.should_exit = True
        await serving
