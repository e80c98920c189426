"""Reads request bodies within the limits of size, memory and time, and watches the client after that."""

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
"""Most occurrences of each mark in a JSON body. Every value follows one of them, so they limit values and depth.

The pixels of four images of 256 x 256 need as many commas and, if nested, as many brackets. Base64 has none of them.
Parsing blocks the event loop. A body within the limits takes at most 0.17 s (20 MB of numbers of 4,300 digits; 0.09 s
for four nested images) and 38 MB (300,000 lists of one number). 15 MB of brackets alone took 10 s and 1.3 GB.
"""
MAX_WIDE_JSON: Final = 1_000_000
"""Most bytes of a JSON body that is not plain ASCII. One emoji makes each character of a text take four bytes."""

RAW_MEMORY: Final = 1.0
"""Most bytes of memory per byte of a body that is a file. These factors are a worker's VmHWM with bodies of 19 MB."""
FORM_MEMORY: Final = 2.0
"""The same for a form: the body, and the files cut from it."""
TENSORS_MEMORY: Final = 3.75
"""The same for the Open Inference Protocol's JSON: the body, its text twice, and the decoded file. Binary data: 3."""
BENTOML_MEMORY: Final = 4.75
"""The same for BentoML's JSON: as TENSORS_MEMORY, and one copy."""

T = TypeVar("T")


async def read_body(request: Request, settings: Settings, memory: float = RAW_MEMORY) -> bytes:
    """The request's body. It is refused as soon as it is known to be compressed, too large, or too slow.

    `memory`: bytes of memory that each byte takes until the request is answered. An announced length is reserved before
    the first byte is read. Raises RequestError, and Overloaded if memory is short.
    """
    check_encoding(request.headers.getlist("Content-Encoding"))
    check_encoding(request.headers.getlist("Transfer-Encoding"))
    limit = settings.max_body_bytes
    record: RequestRecord = request.state.record
    announced = request.headers.get("Content-Length", "")
    if announced.isdecimal():
        length = int(announced.lstrip("0") or "0")  # Python refuses more than 4,300 digits, and counts leading zeros
        if length > limit:
            raise too_large(limit, f"{length} bytes")
        record.reserve_bytes(math.ceil(length * memory))
        memory = 0
    body = await _receive(request, record, limit, memory)
    record.memory.keep(record)
    if not body:
        raise bad_request("empty_body", "expected an image in the request's body, got an empty body")
    return body


async def _receive(request: Request, record: RequestRecord, limit: int, memory: float) -> bytes:
    """Read the body. Ends early if it exceeds `limit` bytes, stalls, trickles or is evicted."""
    now = asyncio.get_running_loop().time
    begun = now()
    whole = io.BytesIO()
    size = 0
    try:
        async with asyncio.timeout_at(begun + LONGEST_PAUSE) as patience:

            def stop() -> None:
                if not patience.expired():
                    patience.reschedule(begun)

            record.stop_receiving = stop
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
                record.reserve_bytes(math.ceil(len(part) * memory))
                if len(part) == size and not more:
                    return part
                whole.write(part)
                if part:
                    patience.reschedule(LONGEST_PAUSE + min(now(), begun + size / LEAST_RATE))
    except TimeoutError:
        record.reserve_bytes(0)  # raises Overloaded if the request was evicted
        raise _too_slow() from None
    except asyncio.CancelledError:
        if record.remaining > 0:
            raise
        raise _too_slow() from None  # the limit of ErrorBoundary
    finally:
        record.stop_receiving = None
    return whole.getvalue()


def _too_slow() -> RequestError:
    expected = f"at least {LEAST_RATE} bytes a second, no pause of {LONGEST_PAUSE:g} seconds, and its end in time"
    words = f"the body came too slowly: expected {expected}"
    return RequestError(HTTPStatus.REQUEST_TIMEOUT, "body_timeout", words, {"Connection": "close"})


def check_encoding(headers: Iterable[str]) -> None:
    """Raises RequestError if the values of an encoding header name a compression."""
    for coding in ",".join(headers).split(","):
        if coding.strip().lower() not in ("", "identity", "chunked"):
            raise RequestError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "unsupported_encoding",
                f"expected content that is not compressed or encoded, got {coding.strip()[:64]}",
            )


def check_json(body: bytes, length: int) -> None:
    """Check that JSON in the first `length` bytes is parsed in little time and memory. Raises RequestError."""
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
    """The Content-Type without parameters in lower case, or an empty string."""
    return request.headers.get("Content-Type", "").partition(";")[0].strip().lower()


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, which is cancelled if the client hangs up. No engine time is spent on a lost client.

    The body must have been read. Raises ClientDisconnect.
    """
    task = asyncio.current_task()
    assert task is not None
    hung_up = False

    def stop(gone: asyncio.Future[Any]) -> None:
        nonlocal hung_up
        if not gone.cancelled():
            hung_up = True
            task.cancel()

    gone = asyncio.ensure_future(request.receive())
    gone.add_done_callback(stop)
    try:
        return await work
    except asyncio.CancelledError:
        if hung_up and not task.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        gone.remove_done_callback(stop)
        gone.cancel()
