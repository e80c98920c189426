"""What every HTTP route shares: the request's id, the common headers, its record, limits, errors as answers."""

import asyncio
import contextlib
import logging
import math
import re
from collections.abc import Callable, Coroutine, Sequence
from http import HTTPStatus
from typing import Any, Final, TypeVar

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chestct.image import InvalidImage
from serving.batcher import Closed, Overloaded
from serving.call import LONGEST_MESSAGE, Call, choose_id
from serving.classifier import Classifier
from serving.keys import Forbidden, Keys, Unauthenticated
from serving.settings import Settings

REQUEST_ID: Final = "X-Request-ID"
TIMEOUT: Final = "X-Request-Timeout"
"""Seconds after which the client no longer waits."""
OIP: Final = "/v2"
"""Below it an error has the Open Inference Protocol's form."""

_HEADERS: Final = Headers(
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
MAX_JSON_COMMAS: Final = 300_000
"""In a JSON body: each stands for a value that takes the event loop half a microsecond, in which it answers nobody.
Pixels of four images at 256 have fewer; files in base64 have none."""

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
_CLIENT_GONE: Final = 499
"""For the metrics: the client hung up before the answer (nginx' number for it)."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


class RequestError(Exception):
    """The request can't be answered; `code` names the reason for programs, the message says it for people."""

    def __init__(self, status: HTTPStatus, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        message = message[:LONGEST_MESSAGE]
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers


class Recorded:
    """Around the whole service, BentoML's own routes too: the request's id, the common headers, metrics and log."""

    def __init__(self, app: ASGIApp, stopping: Callable[[], bool] = lambda: False) -> None:
        """While `stopping` an answer ends its connection, so that none is left with a request when the port closes."""
        self._app = app
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        call = Call(choose_id(headers.get(REQUEST_ID)))
        scope.setdefault("state", {})["call"] = call
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = MutableHeaders(scope=message)
                answered[REQUEST_ID] = call.request_id
                answered.raw.extend(_HEADERS)
                if self._stopping():
                    answered["Connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            call.route = call.route or _route_name(scope)
            call.finish("http", str(status), headers)


class Door:
    """Before BentoML's stack and the routes: refuses unread what asks for an answer while there is no place for it.

    A refusal is to cost next to nothing, since under an overload there are more of them than answers. What is wrong
    with the request besides, the key too, is left for its route to say. Needs Recorded around it.
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
                    call: Call = scope["state"]["call"]
                    call.route = name
                    answer = describe(overloaded)
                    call.outcome = answer.code
                    await _error_response(answer, scope)(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    def _overloaded(self, scope: Scope, key_scope: str) -> Overloaded | None:
        call: Call = scope["state"]["call"]
        headers = Headers(scope=scope)
        classifier = self._classifier()
        try:
            if classifier is not None:
                classifier.check_room(call.started + min(_patience(headers), self._settings.request_timeout))
        except Overloaded as overloaded:
            with contextlib.suppress(Unauthenticated, Forbidden):
                if self._keys is not None:
                    call.key = self._keys.check(headers.get("Authorization"), key_scope)
                return overloaded
        except (Closed, RequestError):
            pass
        return None


class Edge:
    """Around routes of ours: the time limit, and errors as answers. Needs Recorded around it."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call: Call = scope["state"]["call"]
        begun = False

        async def send_and_note(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            limit = min(_patience(Headers(scope=scope)), self._settings.request_timeout)
            call.deadline = call.started + limit
            async with asyncio.timeout(call.remaining):
                await self._app(scope, receive, send_and_note)
        except ClientDisconnect:
            call.outcome = "client_gone"
            await Response(status_code=_CLIENT_GONE)(scope, receive, send)
        except Exception as error:
            answer = describe(error)
            call.outcome = answer.code
            if begun:  # the answer is on its way and can't be taken back
                raise
            if answer.status == HTTPStatus.INTERNAL_SERVER_ERROR:
                _log.exception("request %s failed", call.request_id)
            await _error_response(answer, scope)(scope, receive, send)


class Keyed:
    """Around a route that answers only who holds a key for `scope`."""

    def __init__(self, app: ASGIApp, keys: Keys, scope: str) -> None:
        self._app = app
        self._keys = keys
        self._scope = scope

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: Call = scope["state"]["call"]
        call.key = self._keys.check(Headers(scope=scope).get("Authorization"), self._scope)
        await self._app(scope, receive, send)


def keyed(routes: Sequence[Route], keys: Keys | None, scope: str) -> Sequence[Route]:
    """The routes, which then answer only who holds a key for `scope`, where the service has keys."""
    if keys is not None:
        for route in routes:
            route.app = Keyed(route.app, keys, scope)
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


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result; it is cancelled when the client hangs up, so that no engine time goes to nobody.

    The body must have been read. Raises starlette's ClientDisconnect.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


def ready_classifier(request: Request) -> Classifier:
    """Raises Closed until the model is warm, and once the service has stopped."""
    classifier: Classifier | None = request.app.state.classifier
    if classifier is None or not classifier.accepting:
        raise Closed("the model is loading or the service is stopping")
    return classifier


def check_ready(classifier: Classifier) -> None:
    """Raises Closed where a probe is to learn that the service is told to stop."""
    if not classifier.ready:
        raise Closed("the service is stopping")


async def read_body(request: Request, settings: Settings) -> bytes:
    """The body, refused as soon as it is known to be too large, alone or with those of other requests.

    Raises RequestError and Overloaded.
    """
    limit = settings.max_body_bytes
    call: Call = request.state.call
    announced = request.headers.get("Content-Length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large(limit, f"{announced} bytes")
    parts = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise too_large(limit, "more")
        call.hold(len(part), settings.max_bytes_in_flight)
        parts.append(part)
    if not size:
        raise bad_request("empty_body", "expected an image in the request's body, got an empty body")
    return b"".join(parts)


def check_json(body: bytes, length: int) -> None:
    """Refuse so many values in the first `length` bytes, JSON, that parsing them would hold up everybody else."""
    if (commas := body.count(b",", 0, length)) > MAX_JSON_COMMAS:
        raise RequestError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "json_too_large",
            f"expected JSON with at most {MAX_JSON_COMMAS} commas, got {commas}; send pixels as binary tensor data or "
            "over gRPC, images as files in base64",
        )


def bad_request(code: str, message: str) -> RequestError:
    return RequestError(HTTPStatus.BAD_REQUEST, code, message)


def too_large(limit: int, got: str) -> RequestError:
    return RequestError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large", f"expected a body of at most {limit} bytes, got {got}"
    )


def unsupported(expected: tuple[str, ...], got: str) -> RequestError:
    return RequestError(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        f"expected Content-Type to be {' or '.join(expected)}, got {got or 'none'}",
    )


def media_type(request: Request) -> str:
    """The Content-Type without its parameters, in lower case; empty where there is none."""
    named, _ = parse_options_header(request.headers.get("Content-Type", ""))
    return named.decode("latin-1").lower()


def describe(error: Exception) -> RequestError:
    """Any error as what the client is told of it."""
    match error:
        case RequestError():
            return error
        case InvalidImage(code="empty_image"):
            status = HTTPStatus.BAD_REQUEST
        case InvalidImage(code="image_too_large"):
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        case InvalidImage():
            status = HTTPStatus.UNPROCESSABLE_ENTITY
        case Unauthenticated():
            challenge = {"WWW-Authenticate": error.challenge}
            return RequestError(HTTPStatus.UNAUTHORIZED, error.code, str(error), challenge)
        case Forbidden():
            challenge = {"WWW-Authenticate": error.challenge}
            return RequestError(HTTPStatus.FORBIDDEN, error.code, str(error), challenge)
        case Overloaded():
            wait = {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
            return RequestError(HTTPStatus.TOO_MANY_REQUESTS, "overloaded", str(error), wait)
        case Closed():
            return RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "not_ready", str(error), {"Retry-After": "2"})
        case TimeoutError():
            message = "the answer took longer than the request or this service allows"
            return RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "deadline_exceeded", message, {"Retry-After": "2"})
        case _:
            return RequestError(
                HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", "the service failed, its log says why"
            )
    return RequestError(status, error.code, error.message)


def error_body(error: RequestError, request_id: str) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": error.message, "request_id": request_id}}


async def http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own: no such route, or not with this method."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    code = {404: "not_found", 405: "method_not_allowed"}.get(status, "invalid_request")
    headers = dict(error.headers or {})
    expected = f", expected {headers['Allow']}" if "Allow" in headers else ""
    message = f"{request.method} {request.url.path}: {status.phrase}{expected}"
    return _error_response(RequestError(status, code, message, headers), request.scope)


def _error_response(error: RequestError, scope: Scope) -> Response:
    if f"{scope['path']}/".startswith(f"{OIP}/"):
        return JSONResponse({"error": f"{error.code}: {error.message}"}, error.status, error.headers)
    return JSONResponse(error_body(error, scope["state"]["call"].request_id), error.status, error.headers)
