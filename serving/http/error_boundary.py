"""ASGI middleware around our own routes: their time limit, and exceptions as error answers."""

import asyncio
import logging
import math
import re
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http.errors import CLIENT_GONE, RequestError, bad_request, describe, send_error
from serving.settings import Settings
from serving.telemetry.request_record import CLIENT_LATE, RequestRecord

TIMEOUT: Final = "X-Request-Timeout"
"""Header: seconds after which the client no longer waits."""
_CLIENT_LATE: Final = RequestError(
    HTTPStatus.SERVICE_UNAVAILABLE, CLIENT_LATE, "the answer took longer than the request allows", {"Retry-After": "2"}
)

_log = logging.getLogger(__name__)


class ErrorBoundary:
    """Ends a request at its deadline, and answers exceptions in our error form. Needs RequestRecording around it."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record: RequestRecord = scope["state"]["record"]
        clock = asyncio.get_running_loop().time
        begun = False

        async def send_within_limit(message: Message) -> None:
            nonlocal begun
            if not begun and not limit.expired():
                # The answer is in time. From now on the limit is on the client, which has to read it.
                limit.reschedule(clock() + self._settings.request_timeout)
            begun = True
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body") and not limit.expired():
                limit.reschedule(None)

        try:
            record.set_deadline(read_patience(Headers(scope=scope)), self._settings.request_timeout)
            async with asyncio.timeout(record.remaining) as limit:
                await self._app(scope, receive, send_within_limit)
        except ClientDisconnect:
            record.outcome = "client_gone"
            if not begun:
                await Response(status_code=CLIENT_GONE)(scope, receive, send)
        except Exception as error:
            late = record.client_deadline and isinstance(error, TimeoutError) and not begun
            answer = _CLIENT_LATE if late else describe(error)
            if begun:  # the answer can't be replaced: the server closes the connection
                record.outcome = answer.code
                raise
            if answer.status == HTTPStatus.INTERNAL_SERVER_ERROR:
                _log.exception("request %s failed", record.request_id, extra={"request_id": record.request_id})
            await send_error(answer, scope, receive, send)


def read_patience(headers: Headers) -> float:
    """Seconds that the client waits, math.inf if it does not say. Raises RequestError."""
    text = headers.get(TIMEOUT)
    if text is None:
        return math.inf
    expected = f"{TIMEOUT}: expected seconds above 0, such as 2.5, got {text[:32]!r}"
    if not re.fullmatch(r"-?[0-9]{1,9}(\.[0-9]{1,9})?", text):
        raise bad_request("invalid_timeout", expected)
    if (seconds := float(text)) <= 0:
        raise bad_request("deadline_exceeded", expected)
    return seconds
