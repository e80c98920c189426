"""The HTTP edge: /v1, /metrics and the page. Everything a request can get wrong is answered with one error schema."""

import asyncio
import json
import logging
import math
import time
import uuid
from collections.abc import AsyncGenerator, Coroutine
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar

from python_multipart.multipart import parse_options_header
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chestct.image import InvalidImage
from chestct.prediction import RULES, WARNINGS, Prediction
from serving import metrics
from serving.batcher import Closed, Overloaded
from serving.classifier import Classifier
from serving.settings import Settings

PAGE: Final = Path(__file__).with_name("page")
IMAGE_TYPES: Final = ("image/png", "image/jpeg", "image/jpg", "application/octet-stream")
MULTIPART: Final = "multipart/form-data"
REQUEST_ID: Final = "X-Request-ID"

_LONGEST_ID: Final = 128
_FORM_SLACK: Final = 64 * 1024
"""What a multipart body holds beside its images: boundaries and headers of its parts."""
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # after an upgrade no browser may mix modules of two versions of the page
}

_CLIENT_GONE: Final = 499
"""For the metrics: the client hung up before the answer (nginx' number for it)."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


class RequestError(Exception):
    """The request can't be answered; `code` names the reason for programs, the message says it for people."""

    def __init__(self, status: HTTPStatus, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers


def create_app(settings: Settings) -> Starlette:
    """The routes, each with its name in the metrics.

    They answer 503 until `app.state.classifier` holds a Classifier that is ready.
    """
    v1 = Router(
        [
            Route("/predict", _predict, methods=["POST"], name="/v1/predict"),
            Route("/predict/batch", _predict_batch, methods=["POST"], name="/v1/predict/batch"),
            Route("/model", _model, methods=["GET"], name="/v1/model"),
        ],
        redirect_slashes=False,
    )
    routes: list[BaseRoute] = [
        Mount("/v1", v1),
        Route("/metrics", _metrics, name="/metrics"),
        Route("/", _index, name="/"),
        Mount("/page", StaticFiles(directory=PAGE)),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(_Edge, settings=settings)],
        exception_handlers={HTTPException: _http_exception},
    )
    app.state.classifier = None
    return app


class _Edge:
    """Around every route: the request's id, the common headers, the time limit, errors as answers, metrics."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = _request_id(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update({REQUEST_ID: request_id, **_HEADERS})
            await send(message)

        try:
            async with asyncio.timeout(self._settings.request_timeout):
                await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            await Response(status_code=_CLIENT_GONE)(scope, receive, send_with_headers)
        except Exception as error:
            if status:  # the answer is on its way and can't be taken back
                raise
            answer = _describe(error)
            if answer.status == HTTPStatus.INTERNAL_SERVER_ERROR:
                _log.exception("request %s failed", request_id)
            await _error_response(answer, request_id)(scope, receive, send_with_headers)
        finally:
            route = scope.get("route")
            name = route.name if isinstance(route, Route) else "other"
            seconds = time.perf_counter() - started
            metrics.REQUESTS.labels("http", name, status).inc()
            metrics.REQUEST_SECONDS.labels("http", name).observe(seconds)
            _log.info("%s %s %d %.1f ms request_id=%s", scope["method"], name, status, 1000 * seconds, request_id)


async def _predict(request: Request) -> Response:
    explain = _explain(request)
    classifier = _classifier(request)
    image = await _image(request, classifier.settings)
    prediction = await _while_connected(
        request, classifier.classify(image, request_id=request.state.request_id, explain=explain)
    )
    return Response(_json(prediction), media_type="application/json")


async def _predict_batch(request: Request) -> Response:
    explain = _explain(request)
    classifier = _classifier(request)
    settings = classifier.settings
    media_type = _media_type(request)
    body = await _body(request, settings.max_body_bytes)
    if media_type != MULTIPART:
        raise _unsupported((MULTIPART,), media_type)
    images = await _form_files(request.headers, body, "images", settings.max_images)
    request_id = request.state.request_id
    outcomes = await _while_connected(request, classifier.classify_many(images, request_id=request_id, explain=explain))
    if all(isinstance(outcome, Overloaded) for outcome in outcomes):
        raise outcomes[0]  # type: ignore[misc] # mypy does not narrow through all()
    parts = [
        _json(outcome) if isinstance(outcome, Prediction) else json.dumps(_error(_describe(outcome), request_id))
        for outcome in outcomes
    ]
    head = json.dumps({"request_id": request_id, "disclaimer": classifier.card.disclaimer})
    return Response(f'{head[:-1]}, "outcomes": [{", ".join(parts)}]}}', media_type="application/json")


async def _model(request: Request) -> Response:
    classifier = _classifier(request)
    return JSONResponse(
        {
            "model": classifier.tag,
            **classifier.card.model_dump(mode="json"),
            "rules": {rule.name: rule.words for rule in RULES},
            "warnings": WARNINGS,
        }
    )


async def _metrics(_: Request) -> Response:
    # Reads every worker's files, so not in the event loop.
    text = await asyncio.to_thread(metrics.exposition)
    return Response(text, headers={"Content-Type": metrics.CONTENT_TYPE})


async def _index(_: Request) -> Response:
    return FileResponse(PAGE / "index.html")


def _request_id(headers: Headers) -> str:
    """The client's own where it is short and printable, else a new one."""
    wanted = headers.get(REQUEST_ID, "")
    return wanted if 0 < len(wanted) <= _LONGEST_ID and wanted.isascii() and wanted.isprintable() else uuid.uuid4().hex


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
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


def _classifier(request: Request) -> Classifier:
    classifier: Classifier | None = request.app.state.classifier
    if classifier is None or not classifier.ready:
        raise Closed("the model is loading or the service is stopping")
    return classifier


def _json(prediction: Prediction) -> str:
    extras = {"heatmaps", "preview"} if prediction.preview is None else None
    return prediction.model_dump_json(exclude=extras)


def _explain(request: Request) -> bool:
    query = request.query_params
    unknown = sorted(set(query) - {"explain"})
    if unknown:
        raise _bad_request("invalid_query", f"expected no query parameter but explain, got {', '.join(unknown)}")
    values = query.getlist("explain")
    if not values:
        return False
    if len(values) > 1 or values[0] not in ("true", "false"):
        raise _bad_request("invalid_query", f"explain: expected true or false, got {', '.join(values)!r}")
    return values[0] == "true"


async def _image(request: Request, settings: Settings) -> bytes:
    """The one encoded image of a raw or multipart body."""
    media_type = _media_type(request)
    if media_type not in (*IMAGE_TYPES, MULTIPART, ""):
        raise _unsupported((*IMAGE_TYPES, MULTIPART), media_type)
    body = await _body(request, settings.max_body_bytes)
    if media_type != MULTIPART:
        return body
    (image,) = await _form_files(request.headers, body, "image", 1)
    return image


async def _body(request: Request, limit: int) -> bytes:
    """The body, refused as soon as it is known to be larger than `limit` bytes."""
    announced = request.headers.get("Content-Length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit, f"{announced} bytes")
    parts = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _too_large(limit, "more")
        parts.append(part)
    if not size:
        raise _bad_request("empty_body", "expected an image in the request's body, got an empty body")
    return b"".join(parts)


class _InMemoryParser(MultiPartParser):
    """The body is bounded and in memory already, so no part of it goes to a file."""

    spool_max_size = 0  # SpooledTemporaryFile's word for no limit


async def _form_files(headers: Headers, body: bytes, name: str, at_most: int) -> list[bytes]:
    """The bytes of the form's files, which must all be named `name`."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = _InMemoryParser(headers, stream(), max_files=at_most + 1, max_fields=8, max_part_size=_FORM_SLACK)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise _bad_request("invalid_form", f"expected {_wanted(name, at_most)}: {error.message}") from None
    try:
        items = form.multi_items()
        for field, value in items:
            if field != name:
                raise _bad_request("invalid_form", f"expected {_wanted(name, at_most)}, got a field {field!r}")
            if not isinstance(value, UploadFile):
                raise _bad_request("invalid_form", f"expected the field {name!r} to be a file, got text")
        if not 1 <= len(items) <= at_most:
            raise _bad_request("invalid_form", f"expected {_wanted(name, at_most)}, got {len(items)} files")
        return [await file.read() for _, file in items if isinstance(file, UploadFile)]
    finally:
        await form.close()


def _wanted(name: str, at_most: int) -> str:
    return f"one file in the field {name!r}" if at_most == 1 else f"1 to {at_most} files in the field {name!r}"


def _media_type(request: Request) -> str:
    media_type, _ = parse_options_header(request.headers.get("Content-Type", ""))
    return media_type.decode("latin-1").lower()


def _bad_request(code: str, message: str) -> RequestError:
    return RequestError(HTTPStatus.BAD_REQUEST, code, message)


def _too_large(limit: int, got: str) -> RequestError:
    return RequestError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large", f"expected a body of at most {limit} bytes, got {got}"
    )


def _unsupported(expected: tuple[str, ...], got: str) -> RequestError:
    return RequestError(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        f"expected Content-Type to be {' or '.join(expected)}, got {got or 'none'}",
    )


def _describe(error: Exception) -> RequestError:
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
        case Overloaded():
            wait = {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
            return RequestError(HTTPStatus.TOO_MANY_REQUESTS, "overloaded", str(error), wait)
        case Closed():
            return RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "not_ready", str(error), {"Retry-After": "2"})
        case TimeoutError():
            message = "the answer took longer than this service allows"
            return RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "timeout", message, {"Retry-After": "2"})
        case _:
            return RequestError(
                HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", "the service failed, its log says why"
            )
    return RequestError(status, error.code, error.message)


def _error(error: RequestError, request_id: str) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": error.message, "request_id": request_id}}


def _error_response(error: RequestError, request_id: str) -> Response:
    return JSONResponse(_error(error, request_id), error.status, error.headers)


async def _http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own: no such route, or not with this method."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    code = {404: "not_found", 405: "method_not_allowed"}.get(status, "invalid_request")
    headers = dict(error.headers or {})
    expected = f", expected {headers['Allow']}" if "Allow" in headers else ""
    message = f"{request.method} {request.url.path}: {status.phrase}{expected}"
    return _error_response(RequestError(status, code, message, headers), request.state.request_id)
