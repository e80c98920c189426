"""Errors as HTTP answers: status, code and message, in the form of the requested route."""

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from chestct.invalid_image import InvalidImage
from serving.api_keys import Forbidden, Unauthenticated
from serving.telemetry.request_record import LONGEST_MESSAGE
from serving.unavailable import Closed, Overloaded

_OF_CURL: Final = "application/x-www-form-urlencoded"
"""Content-Type of `curl --data-binary`, unless -H names another."""
CLIENT_GONE: Final = 499
"""Status in the metrics for a client that hung up before the answer (nginx' number)."""
_CODES: Final = {
    404: "not_found",
    405: "method_not_allowed",
    416: "invalid_range",
    CLIENT_GONE: "client_gone",
    503: "not_ready",
}
OIP: Final = "/v2"
"""Path below which errors have the Open Inference Protocol's form."""


class RequestError(Exception):
    """A request that can't be answered. `code` is the reason for programs, `message` for people."""

    def __init__(self, status: HTTPStatus, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        message = message[:LONGEST_MESSAGE]
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers


def bad_request(code: str, message: str) -> RequestError:
    return RequestError(HTTPStatus.BAD_REQUEST, code, message)


def too_large(limit: int, got: str) -> RequestError:
    return RequestError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large", f"expected a body of at most {limit} bytes, got {got}"
    )


def unsupported(expected: tuple[str, ...], got: str) -> RequestError:
    hint = "; curl --data-binary sends that unless -H names another" if got == _OF_CURL else ""
    return RequestError(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        f"expected Content-Type to be {' or '.join(expected)}, got {got[:64] or 'none'}{hint}",
    )


def describe_problems(problems: Sequence[Mapping[str, Any]], at_most: int) -> str:
    """The first of the problems that pydantic found in a body: the place of each, and what is wrong there."""
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in problems[:at_most])


def describe(error: Exception) -> RequestError:
    """The error that the client gets for any exception."""
    match error:
        case RequestError():
            return error
        case InvalidImage(code="empty_image"):
            status = HTTPStatus.BAD_REQUEST
        case InvalidImage(code="image_too_large"):
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        case InvalidImage():
            status = HTTPStatus.UNPROCESSABLE_ENTITY
        case Unauthenticated() | Forbidden():
            status = HTTPStatus.FORBIDDEN if isinstance(error, Forbidden) else HTTPStatus.UNAUTHORIZED
            return RequestError(status, error.code, str(error), {"WWW-Authenticate": error.challenge})
        case Overloaded():
            wait = {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
            return RequestError(HTTPStatus.TOO_MANY_REQUESTS, "overloaded", str(error), wait)
        case Closed():
            return RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "not_ready", str(error), {"Retry-After": "2"})
        case TimeoutError():
            message = "the answer took longer than this service allows"
            return RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "deadline_exceeded", message, {"Retry-After": "2"})
        case _:
            return RequestError(
                HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", "the service failed, its log says why"
            )
    return RequestError(status, error.code, error.message)


def error_body(error: RequestError, request_id: str) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": error.message, "request_id": request_id}}


def error_response(error: RequestError, scope: Scope) -> Response:
    if f"{scope['path']}/".startswith(f"{OIP}/"):
        return JSONResponse({"error": f"{error.code}: {error.message}"}, error.status, error.headers)
    return JSONResponse(error_body(error, scope["state"]["record"].request_id), error.status, error.headers)


async def send_error(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the error, and make its code the outcome of the request record."""
    scope["state"]["record"].outcome = error.code
    await error_response(error, scope)(scope, receive, send)


def read_foreign_error(answer: Message, scope: Scope) -> RequestError | None:
    """The error in the start of an answer of Starlette or BentoML. None if it is no error, or in our form already.

    They answer in plain text, or with a redirect if the path ends with a slash too many.
    """
    status = answer["status"]
    headers = Headers(raw=answer["headers"])
    if headers.get("Content-Type", "").startswith("application/json"):
        return None
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return describe(Exception())
    if status == HTTPStatus.TEMPORARY_REDIRECT:
        status = HTTPStatus.NOT_FOUND
    elif not 400 <= status < CLIENT_GONE:
        return None
    status = HTTPStatus(status)
    code = code_of(status)
    kept = {name: headers[name] for name in ("Allow", "Content-Range") if name in headers}
    expected = f", expected {kept['Allow']}" if "Allow" in kept else ""
    return RequestError(status, code, f"{scope['method']} {scope['path']}: {status.phrase}{expected}", kept)


def code_of(status: int) -> str:
    """The code for a status whose answer has no code of its own."""
    if code := _CODES.get(status):
        return code
    return "invalid_request" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "internal_error"
