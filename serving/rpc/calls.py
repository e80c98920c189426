"""The record of the gRPC call that the current task answers, and the ways to end a call with an error."""

import math
from contextvars import ContextVar
from typing import Final, NoReturn

from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from open_inference.grpc import protocol

from serving.rpc.connections import Context
from serving.telemetry.request_record import LONGEST_MESSAGE, RequestRecord
from serving.unavailable import Overloaded

SERVICE: Final = protocol.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
REQUEST_ID: Final = "x-request-id"
"""Metadata of the call; it comes back as trailing metadata, which costs no message of its own."""

_CALL: Final[ContextVar[RequestRecord | None]] = ContextVar("call", default=None)
"""Of the task that answers it; none for health and reflection."""


def current_call() -> RequestRecord:
    """The call of SERVICE that this task answers."""
    call = _CALL.get()
    assert call is not None
    return call


def set_current_call(call: RequestRecord) -> None:
    """Make this the call that the current task answers."""
    _CALL.set(call)


async def abort(context: Context, status: StatusCode, code: str, message: str) -> NoReturn:
    """End the call with this status; `code` names the reason for programs, the message says it for people."""
    if call := _CALL.get():
        call.outcome = code
    # Each byte may become three in a header, and what is too long for one becomes another error.
    await context.abort(status, f"{code}: {message}".encode()[:LONGEST_MESSAGE].decode(errors="ignore"))


async def abort_overloaded(error: Overloaded, context: Context) -> NoReturn:
    """End the call with RESOURCE_EXHAUSTED and the time after which to come back."""
    call = _CALL.get()
    request_id = ((REQUEST_ID, call.request_id),) if call else ()
    context.set_trailing_metadata((*request_id, *_retry_info(error)))
    await abort(context, StatusCode.RESOURCE_EXHAUSTED, "overloaded", str(error))


def _retry_info(error: Overloaded) -> tuple[tuple[str, str | bytes], ...]:
    """Trailing metadata that says when to come back: to people and proxies, to gRPC's retry policy, to programs."""
    message = f"overloaded: {error}"
    details = status_pb2.Status(code=StatusCode.RESOURCE_EXHAUSTED.value[0], message=message)
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromNanoseconds(math.ceil(error.retry_after * 1e9))
    details.details.add().Pack(info)
    return (
        ("retry-after", str(max(1, math.ceil(error.retry_after)))),
        ("grpc-retry-pushback-ms", str(math.ceil(error.retry_after * 1000))),
        ("grpc-status-details-bin", details.SerializeToString()),
    )
