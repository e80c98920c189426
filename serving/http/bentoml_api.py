"""What BentoML's own clients call: `classify`, behind `ClassifyBoundary`.

BentoML's batcher joins the lists of many callers into one, so an item carries its caller's call, nothing raises
in `classify`, and each item has an outcome of its own, in order. What a caller can get wrong besides the images (body,
JSON, base64) is refused before the batcher.
"""

import asyncio
import base64
import json
import logging
from collections.abc import Sequence
from contextvars import ContextVar
from http import HTTPStatus
from itertools import groupby
from typing import Annotated, Any, Final, NamedTuple

from pydantic import PlainSerializer, PlainValidator, ValidationError, WithJsonSchema
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chestct.prediction import Prediction
from serving.api_keys import Keys
from serving.http.body import BENTOML_MEMORY, check_json, media_type, read_body, while_connected
from serving.http.error_boundary import ErrorBoundary
from serving.http.errors import RequestError, bad_request, describe, error_body, unsupported
from serving.http.require_api_key import RequireApiKey
from serving.inference.classifier import Classifier
from serving.settings import Settings
from serving.telemetry.request_record import RequestRecord
from serving.unavailable import Closed, Overloaded

ROUTE: Final = "/classify"
SCOPE: Final = "classify"
MEDIA_TYPE: Final = "application/json"

_CALL: Final[ContextVar[RequestRecord]] = ContextVar("call")
"""Whose body is being parsed."""

_log = logging.getLogger(__name__)


class Item(NamedTuple):
    data: bytes
    """The encoded image."""
    call: RequestRecord


def _parse(value: object) -> Item:
    if isinstance(value, Item):  # BentoML's copy of the type runs each validator twice
        return value
    if not isinstance(value, str):
        raise ValueError(f"expected an image file in base64, got {type(value).__name__}")
    try:
        data = base64.b64decode(value, validate=True)
    except ValueError as error:
        raise ValueError(f"expected an image file in base64, got {value[:32]!r}: {error}") from None
    return Item(data, _CALL.get())


Base64Image = Annotated[
    Item,
    PlainValidator(_parse),
    PlainSerializer(lambda item: base64.b64encode(item.data).decode("ascii"), return_type=str),
    WithJsonSchema(
        {"type": "string", "contentEncoding": "base64", "description": "A PNG, JPEG or DICOM file in base64."}
    ),
]
"""Text, and never a file field: where one of those holds a URL, BentoML's server fetches it."""


async def classify(classifier: Classifier, items: Sequence[Item]) -> list[dict[str, Any]]:
    """A prediction or an error for each item, in order, as JSON. Never raises: that would fail every caller."""

    async def of_one_caller(call: RequestRecord, images: list[bytes]) -> list[dict[str, Any]]:
        outcomes: Sequence[Prediction | Exception]
        if call.remaining <= 0:  # while it waited in BentoML's batcher
            return [_body(TimeoutError(), call.request_id)] * len(images)
        call.work = asyncio.ensure_future(classifier.classify_many(images, call))
        try:
            outcomes = await call.work
        except (Closed, TimeoutError) as error:
            outcomes = [error] * len(images)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this caller's alone
            _log.exception("request %s failed", call.request_id, extra={"request_id": call.request_id})
            outcomes = [error] * len(images)
        except asyncio.CancelledError:
            if not call.abandoned:
                raise
            outcomes = [TimeoutError()] * len(images)
        return [_body(outcome, call.request_id) for outcome in outcomes]

    callers = [
        of_one_caller(call, [item.data for item in group]) for call, group in groupby(items, lambda item: item.call)
    ]
    return [outcome for outcomes in await asyncio.gather(*callers) for outcome in outcomes]


def _body(outcome: Prediction | Exception, request_id: str) -> dict[str, Any]:
    if isinstance(outcome, Prediction):
        return outcome.model_dump(mode="json", exclude={"heatmaps", "preview"})
    return error_body(describe(outcome), request_id)


class ClassifyBoundary:
    """ASGI middleware before BentoML: bounds ROUTE's bodies and callers, and gives its errors our schema.

    So that /v1 and /v2 keep their error forms too, it answers for paths that the router would not give them.
    """

    def __init__(self, app: ASGIApp, settings: Settings, keys: Keys | None = None) -> None:
        """With `keys`, ROUTE answers only who holds one."""
        self._app = app
        self._settings = settings
        self._guard = ErrorBoundary(RequireApiKey(self._guarded, keys, SCOPE) if keys else self._guarded, settings)
        self._callers = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = self._app
        if scope["type"] == "http" and scope["path"] == ROUTE:
            scope["state"]["record"].route = ROUTE
            app = self._guard
        await app(scope, receive, send)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        call: RequestRecord = request.state.record
        if request.method != "POST":
            raise RequestError(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", "expected POST", {"Allow": "POST"})
        if (kind := media_type(request)) != MEDIA_TYPE:
            raise unsupported((MEDIA_TYPE,), kind)
        if self._callers >= self._settings.queue_size:  # BentoML's own queue has no bound
            raise Overloaded(1)
        self._callers += 1
        try:
            body = await read_body(request, self._settings, BENTOML_MEMORY)
            check_json(body, len(body))
            _CALL.set(call)
            answer = await while_connected(request, self._ask(scope, body, receive))
            if call.remaining <= 0:  # its images ran out of time one by one
                raise TimeoutError
        finally:
            call.abandon()
            self._callers -= 1
        for message in answer:
            await send(message)

    async def _ask(self, scope: Scope, body: bytes, receive: Receive) -> list[Message]:
        """BentoML's answer, whole: the deadline or a client that hangs up may end this, but not an answer half sent.

        Raises RequestError for what BentoML refuses, and TimeoutError.
        """
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        answer: list[Message] = []

        async def receive_again() -> Message:
            return messages.pop() if messages else await receive()

        async def keep(message: Message) -> None:
            answer.append(message)

        await self._app(scope, receive_again, keep)
        status = answer[0]["status"]
        if 400 <= status < 500:
            raise bad_request("invalid_request", _in_words(b"".join(part.get("body", b"") for part in answer)))
        if status == HTTPStatus.SERVICE_UNAVAILABLE:  # it waited too long in BentoML's batcher
            raise TimeoutError
        if status != HTTPStatus.OK:
            raise RuntimeError(f"BentoML answered {status}")
        return answer


def log_failures_alone() -> None:
    """Keep what a caller got wrong out of BentoML's log of exceptions: the request's line says it."""
    logging.getLogger("bentoml._internal.server.http_app").addFilter(_is_failure)


def _is_failure(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    refused = isinstance(error, ValidationError)
    status = getattr(error, "error_code", HTTPStatus.INTERNAL_SERVER_ERROR)  # BentoML's own have one
    return not refused and status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.SERVICE_UNAVAILABLE


def _in_words(refusal: bytes) -> str:
    """The problems that pydantic found, as BentoML answers them."""
    problems = json.loads(refusal)["detail"]
    return "; ".join(f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}" for problem in problems[:8])
