"""A request's body: read within the limits or refused as too large or too slow, its client watched once it is read."""

import asyncio
import io
import math
from collections.abc import Coroutine, Iterable
from http import HTTPStatus
from typing import Any, Final, TypeVar

from starlette.requests import ClientDisconnect, Request

from serving.http.errors import RequestError, bad_request, too_large
from serving.settings import Settings
from serving.telemetry.request_record import LEAST_RATE, LONGEST_PAUSE, RequestRecord

MAX_JSON: Final = {b",": 300_000, b"[": 300_000, b":": 10_000}
"""How often each may stand in a JSON body. Every value follows one of them, so they bound the number of values and the
depth. Pixels of four images of 256 x 256 have as many commas and, nested, as many brackets; base64 has none of them.

What they let pass takes the event loop, which answers nobody meanwhile, 0.17 s at most (20 MB of numbers of 4,300
digits; 0.09 s for four pictures, nested), and 38 MB for as long (300,000 lists of one number). A body of 15 MB of
brackets alone took 10 s and 1.3 GB.
"""
MAX_WIDE_JSON: Final = 1_000_000
"""Bytes of a JSON body that is not plain ASCII: of a text with one emoji each character takes four bytes."""

RAW_MEMORY: Final = 1.0
"""Bytes that a byte of a body takes at most, by a worker's VmHWM with bodies of 19 MB. Of a file: itself."""
FORM_MEMORY: Final = 2.0
"""Of a form: itself and the files cut from it."""
TENSORS_MEMORY: Final = 3.75
"""Of the Open Inference Protocol as JSON: itself, its text twice, the decoded file. Binary tensor data takes 3."""
BENTOML_MEMORY: Final = 4.75
"""Of BentoML's JSON: the same, and a copy."""

T = TypeVar("T")


async def read_body(request: Request, settings: Settings, memory: float = RAW_MEMORY) -> bytes:
    """The body, refused as soon as it is known to be compressed, too large, alone or with those of others, or to stall.

    `memory`: bytes that each of its bytes takes until the request is answered. A length that is announced is counted
    before the first byte is read. Raises RequestError and Overloaded.
    """
    check_encoding(request.headers.getlist("Content-Encoding"))
    check_encoding(request.headers.getlist("Transfer-Encoding"))
    limit = settings.max_body_bytes
    call: RequestRecord = request.state.record
    announced = request.headers.get("Content-Length", "")
    if announced.isdecimal():
        if int(announced) > limit:
            raise too_large(limit, f"{announced} bytes")
        call.reserve_bytes(math.ceil(int(announced) * memory))
        memory = 0
    body = await _receive(request, call, limit, memory)
    call.memory.keep(call)
    if not body:
        raise bad_request("empty_body", "expected an image in the request's body, got an empty body")
    return body


async def _receive(request: Request, call: RequestRecord, limit: int, memory: float) -> bytes:
    """Ends where the body is larger than `limit` bytes, stalls, trickles, or is evicted."""
    now = asyncio.get_running_loop().time
    begun = now()
    whole = io.BytesIO()
    size = 0
    try:
        async with asyncio.timeout_at(begun + LONGEST_PAUSE) as patience:

            def stop() -> None:
                if not patience.expired():
                    patience.reschedule(begun)

            call.stop_receiving = stop
            more = True
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                part: bytes = message.get("body", b"")
                more = message.get("more_body", False)
                size += len(part)
                if size > limit:
                    raise too_large(limit, "more")
                call.reserve_bytes(math.ceil(len(part) * memory))
                if len(part) == size and not more:
                    return part
                whole.write(part)
                if part:
                    patience.reschedule(LONGEST_PAUSE + min(now(), begun + size / LEAST_RATE))
    except TimeoutError:
        call.reserve_bytes(0)  # where it was evicted this says so
        raise _too_slow() from None
    except asyncio.CancelledError:
        if call.remaining > 0:
            raise
        raise _too_slow() from None  # ErrorBoundary's limit
    finally:
        call.stop_receiving = None
    return whole.getvalue()


def _too_slow() -> RequestError:
    expected = f"at least {LEAST_RATE} bytes a second, no pause of {LONGEST_PAUSE:g} seconds, and its end in time"
    words = f"the body came too slowly: expected {expected}"
    return RequestError(HTTPStatus.REQUEST_TIMEOUT, "body_timeout", words, {"Connection": "close"})


def check_encoding(headers: Iterable[str]) -> None:
    """Refuse what the values of an encoding's header say is compressed. Raises RequestError."""
    for coding in ",".join(headers).split(","):
        if coding.strip().lower() not in ("", "identity", "chunked"):
            raise RequestError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "unsupported_encoding",
                f"expected what is not compressed or encoded, got {coding.strip()[:64]}",
            )


def check_json(body: bytes, length: int) -> None:
    """Refuse what would hold up everybody else, or take a multiple of its size, as the first `length` bytes are parsed.

    Raises RequestError.
    """
    for mark, most in MAX_JSON.items():
        if (count := body.count(mark, 0, length)) > most:
            raise _json_too_large(
                f"with at most {most} of {mark.decode()!r}, got {count}; send pixels as binary tensor data or over "
                "gRPC, images as files in base64"
            )
    if length > MAX_WIDE_JSON and (body.find(b"\\u", 0, length) >= 0 or not body[:length].isascii()):
        raise _json_too_large(f"of at most {MAX_WIDE_JSON} bytes unless it is ASCII without \\u, got {length} bytes")


def _json_too_large(words: str) -> RequestError:
    return RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "json_too_large", f"expected JSON {words}")


def media_type(request: Request) -> str:
    """The Content-Type without its parameters, in lower case; empty where there is none."""
    return request.headers.get("Content-Type", "").partition(";")[0].strip().lower()


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
