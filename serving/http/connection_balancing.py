"""Balances HTTP connections over the workers. A crowded worker closes a connection, so its client opens a new one.

The workers share one listening socket. The worker that wakes first may accept a whole burst of connections. If they
were kept alive, they would stay with it while another worker is idle. A new connection goes to a worker that is free.
"""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.worker_load import WorkerLoad


class ConnectionBalancing:
    """ASGI middleware around the whole service: counts this worker's requests, and closes connections if crowded."""

    def __init__(self, app: ASGIApp, load: WorkerLoad) -> None:
        self._app = app
        self._load = load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_and_balance(message: Message) -> None:
            if message["type"] == "http.response.start" and self._load.is_crowded():
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        with self._load:
            await self._app(scope, receive, send_and_balance)
