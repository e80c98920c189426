"""ASGI middleware around the whole service: the request record, common headers, metrics and one log line."""

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http.errors import CLIENT_GONE, code_of, describe, read_foreign_error, send_error
from serving.memory_budget import MemoryBudget
from serving.telemetry.request_record import RequestRecord, choose_id
from serving.telemetry.tracing import UNKNOWN_ROUTE

REQUEST_ID: Final = "X-Request-ID"
COMMON_HEADERS: Final = Headers(
    {
        "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",  # otherwise a browser could mix page modules of two versions after an upgrade
    }
).raw
_NOT_FOUND: Final = Response(status_code=HTTPStatus.NOT_FOUND)

_log = logging.getLogger(__name__)


class RequestRecording:
    """Creates the request record, and finishes it when the answer ends. BentoML's own routes are included.

    Request headers lose the blanks around their values. Errors in another form than ours are replaced by ours.
    """

    def __init__(
        self, app: ASGIApp, memory: MemoryBudget | None = None, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        """`memory` counts the bytes of request bodies; the default budget has no limit.

        While `stopping` returns true, each answer closes its connection. So no connection has an unanswered request
        when the port closes.
        """
        self._app = app
        self._memory = memory or MemoryBudget()
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["headers"] = [(name, value.strip(b" \t")) for name, value in scope["headers"]]
        headers = Headers(scope=scope)
        record = RequestRecord(choose_id(headers.get(REQUEST_ID)), memory=self._memory)
        scope.setdefault("state", {})["record"] = record
        status = 0
        replaced = False

        async def send_with_headers(message: Message) -> None:
            nonlocal status, replaced
            if replaced:
                return
            if message["type"] == "http.response.start":
                if error := read_foreign_error(message, scope):
                    await send_error(error, scope, receive, send_with_headers)
                    replaced = True
                    return
                status = message["status"]
                answered = MutableHeaders(scope=message)
                answered[REQUEST_ID] = record.request_id
                answered.raw.extend(COMMON_HEADERS)
                if self._stopping():
                    answered["Connection"] = "close"
            await send(message)

        # Starlette's path patterns also match a path with a line break at its end.
        app = _NOT_FOUND if "\n" in scope["path"] else self._app
        try:
            await app(scope, receive, send_with_headers)
        except asyncio.CancelledError:  # the service stopped, and this request took too long
            status = status or HTTPStatus.SERVICE_UNAVAILABLE
            raise
        except Exception:
            _log.exception("request %s failed", record.request_id, extra={"request_id": record.request_id})
            if status:  # the answer has begun and can't be replaced: the server closes the connection
                raise
            await send_error(describe(Exception()), scope, receive, send_with_headers)
        finally:
            status = status or CLIENT_GONE  # Starlette sends no status if the client left before a file's answer
            if status >= HTTPStatus.BAD_REQUEST and record.outcome == "answered":
                record.outcome = code_of(status)
            record.route = record.route or _route_name(scope)
            record.finish(str(int(status)), headers, scope)


def _route_name(scope: Scope) -> str:
    """The route's name for metrics: our routes have one; BentoML's paths have no parameters and serve as names."""
    route = scope.get("route")
    if not isinstance(route, Route):
        return UNKNOWN_ROUTE
    return route.name if route.name.startswith("/") else route.path
