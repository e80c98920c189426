"""ASGI middleware that every HTTP route shares: the request's record, admission, its key, its time limit and errors."""

import asyncio
import contextlib
import logging
import math
import re
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api_keys import Forbidden, Keys, Unauthenticated
from serving.http.errors import (
    CLIENT_GONE,
    ClientLate,
    RequestError,
    bad_request,
    code_of,
    describe,
    error_response,
    from_bare,
    is_bare,
)
from serving.inference.classifier import Classifier
from serving.memory_budget import MemoryBudget
from serving.settings import Settings
from serving.telemetry.request_record import RequestRecord, choose_id
from serving.unavailable import Closed, Overloaded

REQUEST_ID: Final = "X-Request-ID"
TIMEOUT: Final = "X-Request-Timeout"
"""Seconds after which the client no longer waits."""

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
        "Cache-Control": "no-cache",  # after an upgrade no browser may mix modules of two versions of the page
    }
).raw
_ANSWERING: Final = tuple(
    (re.compile(re.sub("{[a-z]+}", "[^/]+", route)), route, scope)
    for route, scope in (
        ("/v1/predict", "v1"),
        ("/v1/predict/batch", "v1"),
        ("/v2/models/{name}/infer", "v2"),
        ("/v2/models/{name}/versions/{version}/infer", "v2"),
    )
)
"""Routes that put images into the queue, as patterns of their paths, and the scope of their keys."""
_NOTHING: Final = Response(status_code=HTTPStatus.NOT_FOUND)

_log = logging.getLogger(__name__)


class RequestRecording:
    """Around the whole service, BentoML's own routes too: the request's id, the common headers, metrics and log.

    Headers are read without the blanks around them, and what was refused otherwise than in our form is refused in it.
    """

    def __init__(
        self, app: ASGIApp, memory: MemoryBudget | None = None, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        """Bodies are counted in `memory`, without a bound by default.

        While `stopping` an answer ends its connection, so that none is left with a request when the port closes.
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
        call = RequestRecord(choose_id(headers.get(REQUEST_ID)), memory=self._memory)
        scope.setdefault("state", {})["call"] = call
        status = 0
        replaced = False

        async def send_with_headers(message: Message) -> None:
            nonlocal status, replaced
            if replaced:
                return
            if message["type"] == "http.response.start":
                if is_bare(message):
                    answer = from_bare(message, scope)
                    call.outcome = answer.code
                    await error_response(answer, scope)(scope, receive, send_with_headers)
                    replaced = True
                    return
                status = message["status"]
                answered = MutableHeaders(scope=message)
                answered[REQUEST_ID] = call.request_id
                answered.raw.extend(COMMON_HEADERS)
                if self._stopping():
                    answered["Connection"] = "close"
            await send(message)

        # Starlette's expressions for paths take one with a line break at its end for the one without.
        app = _NOTHING if "\n" in scope["path"] else self._app
        try:
            await app(scope, receive, send_with_headers)
        except asyncio.CancelledError:  # at a stop that lasts too long
            status = status or HTTPStatus.SERVICE_UNAVAILABLE
            raise
        except Exception:
            _log.exception("request %s failed", call.request_id, extra={"request_id": call.request_id})
            if status:  # the answer is on its way and can't be taken back: the server closes the connection
                raise
            await error_response(describe(Exception()), scope)(scope, receive, send_with_headers)
        finally:
            status = status or CLIENT_GONE  # as Starlette ends a file's answer then
            if status >= HTTPStatus.BAD_REQUEST and call.outcome == "answered":
                call.outcome = code_of(status)
            call.route = call.route or _route_name(scope)
            call.finish("http", str(int(status)), headers, scope)


class AdmissionControl:
    """Before BentoML's stack and the routes: refuses unread what asks for an answer while there is no place for it.

    A refusal is to cost next to nothing, since under an overload there are more of them than answers. What is wrong
    with the request besides, the key too, is left for its route to say. Needs RequestRecording around it.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, keys: Keys | None, classifier: Callable[[], Classifier | None]
    ):
        self._app = app
        self._settings = settings
        self._keys = keys
        self._classifier = classifier

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            for path, name, key_scope in _ANSWERING:
                if path.fullmatch(scope["path"]) and (overloaded := self._overloaded(scope, key_scope)):
                    call: RequestRecord = scope["state"]["call"]
                    call.route = name
                    answer = describe(overloaded)
                    call.outcome = answer.code
                    await error_response(answer, scope)(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    def _overloaded(self, scope: Scope, key_scope: str) -> Overloaded | None:
        call: RequestRecord = scope["state"]["call"]
        headers = Headers(scope=scope)
        classifier = self._classifier()
        try:
            if classifier is not None:
                call.set_deadline(_patience(headers), self._settings.request_timeout)
                classifier.check_room(call.deadline)
        except Overloaded as overloaded:
            with contextlib.suppress(Unauthenticated, Forbidden):
                if self._keys is not None:
                    call.key = self._keys.check(headers.get("Authorization"), key_scope)
                return overloaded
        except (Closed, RequestError):
            pass
        return None


class ErrorBoundary:
    """Around routes of ours: the time limit, and errors as answers. Needs RequestRecording around it."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call: RequestRecord = scope["state"]["call"]
        clock = asyncio.get_running_loop().time
        begun = False

        async def send_within_limit(message: Message) -> None:
            nonlocal begun
            if not begun and not limit.expired():
                limit.reschedule(clock() + self._settings.request_timeout)  # it is in time: now the client is to read
            begun = True
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body") and not limit.expired():
                limit.reschedule(None)

        try:
            call.set_deadline(_patience(Headers(scope=scope)), self._settings.request_timeout)
            async with asyncio.timeout(call.remaining) as limit:
                await self._app(scope, receive, send_within_limit)
        except ClientDisconnect:
            call.outcome = "client_gone"
            if not begun:
                await Response(status_code=CLIENT_GONE)(scope, receive, send)
        except Exception as error:
            late = call.hurried and isinstance(error, TimeoutError) and not begun
            answer = describe(ClientLate() if late else error)
            call.outcome = answer.code
            if begun:  # the answer is on its way and can't be taken back: the server closes the connection
                raise
            if answer.status == HTTPStatus.INTERNAL_SERVER_ERROR:
                _log.exception("request %s failed", call.request_id, extra={"request_id": call.request_id})
            await error_response(answer, scope)(scope, receive, send)


class RequireApiKey:
    """Around a route that answers only who holds a key for `scope`."""

    def __init__(self, app: ASGIApp, keys: Keys, scope: str) -> None:
        self._app = app
        self._keys = keys
        self._scope = scope

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: RequestRecord = scope["state"]["call"]
        call.key = self._keys.check(Headers(scope=scope).get("Authorization"), self._scope)
        await self._app(scope, receive, send)


def require_api_key(routes: Sequence[Route], keys: Keys | None, scope: str) -> Sequence[Route]:
    """The routes, which then answer only who holds a key for `scope`, where the service has keys."""
    if keys is not None:
        for route in routes:
            route.app = RequireApiKey(route.app, keys, scope)
    return routes


def _patience(headers: Headers) -> float:
    """Seconds that the client waits. Raises RequestError."""
    text = headers.get(TIMEOUT)
    if text is None:
        return math.inf
    expected = f"{TIMEOUT}: expected seconds above 0, such as 2.5, got {text[:32]!r}"
    if not re.fullmatch(r"-?[0-9]{1,9}(\.[0-9]{1,9})?", text):
        raise bad_request("invalid_timeout", expected)
    if (seconds := float(text)) <= 0:
        raise bad_request("deadline_exceeded", expected)
    return seconds


def _route_name(scope: Scope) -> str:
    """Ours have it as their name; those of BentoML are known by their path, which has no parameters."""
    route = scope.get("route")
    if not isinstance(route, Route):
        return "other"
    return route.name if route.name.startswith("/") else route.path
