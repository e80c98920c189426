"""A request's body: read within the limits, refused where it is too large, its client watched once it is read."""

import asyncio
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any, Final, TypeVar

from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from serving.call import Call
from serving.errors import RequestError, bad_request, too_large
from serving.settings import Settings

MAX_JSON_COMMAS: Final = 300_000
"""In a JSON body: each stands for a value that takes the event loop half a microsecond, in which it answers nobody.
Pixels of four images at 256 have fewer; files in base64 have none."""

T = TypeVar("T")


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


def media_type(request: Request) -> str:
    """The Content-Type without its parameters, in lower case; empty where there is none."""
    named, _ = parse_options_header(request.headers.get("Content-Type", ""))
    return named.decode("latin-1").lower()


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
