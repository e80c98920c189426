"""The private port: routes that the settings move there, or close on both ports."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from http import HTTPStatus
from typing import Final

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.http.bentoml_api import ROUTE
from serving.http.connections import BoundedConnection
from serving.http.error_boundary import ErrorBoundary
from serving.http.errors import RequestError
from serving.http.request_recording import RequestRecording
from serving.memory_budget import MemoryBudget
from serving.settings import Settings
from serving.telemetry.request_record import PROBES


class PrivatePort:
    """The server of the private port. `PortSeparation` gives it its app."""

    def __init__(self, settings: Settings, memory: MemoryBudget) -> None:
        self.settings: Final = settings
        self.memory: Final = memory
        self.exposure: Final = {
            "/metrics": settings.metrics,
            ROUTE: settings.bentoml_routes,
            "/schema.json": settings.bentoml_routes,
        }
        self.app: ASGIApp | None = None
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen in this event loop if any route is private. Several workers may share the port."""
        if "private" not in self.exposure.values():
            return
        assert self.app is not None
        listening = socket.socket(socket.AF_INET6 if ":" in self.settings.private_host else socket.AF_INET)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((self.settings.private_host, self.settings.private_port))
        config = uvicorn.Config(
            self.app,
            http=BoundedConnection,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve([listening]))

    async def stop(self) -> None:
        """Finish the running requests and close the port."""
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            await self._task


class PortSeparation:
    """ASGI middleware that answers 404 on each of the two ports for routes that the settings do not put there."""

    def __init__(self, app: ASGIApp, port: PrivatePort) -> None:
        self._app = app
        self._exposure = port.exposure
        self._not_found = ErrorBoundary(_not_found, port.settings)
        port.app = RequestRecording(self._private, port.memory)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hidden = scope["type"] == "http" and self._exposure.get(scope["path"], "open") != "open"
        await (self._not_found if hidden else self._app)(scope, receive, send)

    async def _private(self, scope: Scope, receive: Receive, send: Send) -> None:
        # BentoML's clients wait for the probe of the port that they use, so both ports have the probes.
        found = self._exposure.get(scope["path"], "private" if scope["path"] in PROBES else "") == "private"
        await (self._app if found else self._not_found)(scope, receive, send)


class _Server(uvicorn.Server):
    """A server that leaves signals to the service."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    raise RequestError(HTTPStatus.NOT_FOUND, "not_found", f"{scope['method']} {scope['path']}: Not Found")
