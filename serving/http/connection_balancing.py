"""Spreads HTTP connections over the workers: one that is crowded ends a connection, so that its client opens another.

The workers share one listening socket, and of a burst of connections the worker that wakes first may take all; kept
alive, they would stay there while another worker idles. A new one goes to whoever is free to take it.
"""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.worker_load import WorkerLoad


class ConnectionBalancing:
    """ASGI middleware around the whole service: counts its requests, and ends connections while it is crowded."""

    def __init__(self, app: ASGIApp, load: WorkerLoad) -> None:
        self._app = app
        self._load = load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_and_spread(message: Message) -> None:
            if message["type"] == "http.response.start" and self._load.is_crowded():
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        with self._load:
            await self._app(scope, receive, send_and_spread)
