"""The route for BentoML's own clients: `classify`, behind `ClassifyBoundary`.

BentoML's batcher joins the lists of many requests into one. So each item carries its request's record, `classify` never
raises, and each item has its own outcome, in order. Errors in the body, the JSON or the base64 are refused before the
batcher.
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
from serving.http.errors import RequestError, bad_request, describe, describe_problems, error_body, unsupported
from serving.http.require_api_key import RequireApiKey
from serving.inference.classifier import Classifier
from serving.settings import Settings
from serving.telemetry.request_record import RequestRecord
from serving.unavailable import Closed, Overloaded

ROUTE: Final = "/classify"
SCOPE: Final = "classify"
MEDIA_TYPE: Final = "application/json"

_RECORD: Final[ContextVar[RequestRecord]] = ContextVar("record")
"""The record of the request whose body is being parsed."""

_log = logging.getLogger(__name__)


class Item(NamedTuple):
    data: bytes
    """The encoded image."""
    record: RequestRecord


def _parse(value: object) -> Item:
    if isinstance(value, Item):  # BentoML copies the type and runs each validator twice
        return value
    if not isinstance(value, str):
        raise ValueError(f"expected an image file in base64, got {type(value).__name__}")
    try:
        data = base64.b64decode(value, validate=True)
    except ValueError as error:
        raise ValueError(f"expected an image file in base64, got {value[:32]!r}: {error}") from None
    return Item(data, _RECORD.get())


Base64Image = Annotated[
    Item,
    PlainValidator(_parse),
    PlainSerializer(lambda item: base64.b64encode(item.data).decode("ascii"), return_type=str),
    WithJsonSchema(
        {"type": "string", "contentEncoding": "base64", "description": "A PNG, JPEG or DICOM file in base64."}
    ),
]
"""An image as text. It is not a file field, because BentoML's server would fetch a URL in one."""


async def classify(classifier: Classifier, items: Sequence[Item]) -> list[dict[str, Any]]:
    """A prediction or an error for each item as JSON, in order. Never raises: that would fail every request."""

    async def of_one_request(record: RequestRecord, images: list[bytes]) -> list[dict[str, Any]]:
        outcomes: Sequence[Prediction | Exception]
        if record.remaining <= 0:  # it waited too long in BentoML's batcher
            return [_body(TimeoutError(), record.request_id)] * len(images)
        record.work = asyncio.ensure_future(classifier.classify_many(images, record))
        try:
            outcomes = await record.work
        except (Closed, TimeoutError) as error:
            outcomes = [error] * len(images)
        except Exception as error:  # noqa: BLE001 - any error is this request's alone
            _log.exception("request %s failed", record.request_id, extra={"request_id": record.request_id})
            outcomes = [error] * len(images)
        except asyncio.CancelledError:
            if not record.abandoned:
                raise
            outcomes = [TimeoutError()] * len(images)
        return [_body(outcome, record.request_id) for outcome in outcomes]

    requests = [
        of_one_request(record, [item.data for item in group])
        for record, group in groupby(items, lambda item: item.record)
    ]
    return [outcome for outcomes in await asyncio.gather(*requests) for outcome in outcomes]


def _body(outcome: Prediction | Exception, request_id: str) -> dict[str, Any]:
    if isinstance(outcome, Prediction):
        return outcome.model_dump(mode="json", exclude={"heatmaps", "preview"})
    return error_body(describe(outcome), request_id)


class ClassifyBoundary:
    """ASGI middleware in front of BentoML: limits ROUTE's bodies and requests, and answers errors in our form."""

    def __init__(self, app: ASGIApp, settings: Settings, keys: Keys | None = None) -> None:
        """With `keys`, ROUTE requires an API key."""
        self._app = app
        self._settings = settings
        self._bounded = ErrorBoundary(RequireApiKey(self._answer, keys, SCOPE) if keys else self._answer, settings)
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = self._app
        if scope["type"] == "http" and scope["path"] == ROUTE:
            scope["state"]["record"].route = ROUTE
            app = self._bounded
        await app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        record: RequestRecord = request.state.record
        if request.method != "POST":
            raise RequestError(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", "expected POST", {"Allow": "POST"})
        if (kind := media_type(request)) != MEDIA_TYPE:
            raise unsupported((MEDIA_TYPE,), kind)
        if self._running >= self._settings.queue_size:  # BentoML's own queue has no limit
            raise Overloaded(1)
        self._running += 1
        try:
            body = await read_body(request, self._settings, BENTOML_MEMORY)
            check_json(body, len(body))
            _RECORD.set(record)
            answer = await while_connected(request, self._ask(scope, body, receive))
            if record.remaining <= 0:  # the deadline passed for its images one by one
                raise TimeoutError
        finally:
            record.abandon()
            self._running -= 1
        for message in answer:
            await send(message)

    async def _ask(self, scope: Scope, body: bytes, receive: Receive) -> list[Message]:
        """BentoML's complete answer, so that a deadline or a lost client never interrupts an answer that has begun.

        Raises RequestError if BentoML refuses the request, and TimeoutError.
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
            problems = json.loads(b"".join(part.get("body", b"") for part in answer))["detail"]
            raise bad_request("invalid_request", describe_problems(problems, 8))
        if status == HTTPStatus.SERVICE_UNAVAILABLE:  # the request waited too long in BentoML's batcher
            raise TimeoutError
        if status != HTTPStatus.OK:
            raise RuntimeError(f"BentoML answered {status}")
        return answer


def log_only_failures() -> None:
    """Keep invalid requests out of BentoML's log of exceptions: the request's own line reports them."""
    logging.getLogger("bentoml._internal.server.http_app").addFilter(_is_failure)


def _is_failure(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    refused = isinstance(error, ValidationError)
    status = getattr(error, "error_code", HTTPStatus.INTERNAL_SERVER_ERROR)  # BentoML's exceptions have one
    return not refused and status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.SERVICE_UNAVAILABLE
