"""Errors as answers over HTTP: their status, code and message, in the form of the route that was asked."""

import math
from http import HTTPStatus
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from chestct.image import InvalidImage
from serving.batcher import Closed, Overloaded
from serving.call import LONGEST_MESSAGE
from serving.keys import Forbidden, Unauthenticated

_OF_CURL: Final = "application/x-www-form-urlencoded"
OIP: Final = "/v2"
"""Below it an error has the Open Inference Protocol's form."""


class RequestError(Exception):
    """The request can't be answered; `code` names the reason for programs, the message says it for people."""

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


def error_response(error: RequestError, scope: Scope) -> Response:
    if f"{scope['path']}/".startswith(f"{OIP}/"):
        return JSONResponse({"error": f"{error.code}: {error.message}"}, error.status, error.headers)
    return JSONResponse(error_body(error, scope["state"]["call"].request_id), error.status, error.headers)


async def http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own: no such route, or not with this method."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    code = {404: "not_found", 405: "method_not_allowed"}.get(status, "invalid_request")
    headers = dict(error.headers or {})
    expected = f", expected {headers['Allow']}" if "Allow" in headers else ""
    message = f"{request.method} {request.url.path}: {status.phrase}{expected}"
    return error_response(RequestError(status, code, message, headers), request.scope)
