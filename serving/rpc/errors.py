"""Errors as gRPC statuses. A status message is `code: message`: the code is for programs, the message for people."""

import math
from typing import Any, Final, NoReturn

from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from chestct.invalid_image import InvalidImage
from serving.api_keys import Forbidden, Unauthenticated
from serving.open_inference import UnknownModel
from serving.rpc.connections import Context
from serving.rpc.message_reader import TooSlow
from serving.telemetry.request_record import LONGEST_MESSAGE
from serving.tensors import InvalidRequest
from serving.unavailable import Closed, Overloaded


class DeadlinePassed(Exception):
    """The call's deadline passed before its answer."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code: Final = code


_STATUSES: Final[dict[type[Any], StatusCode]] = {
    Unauthenticated: StatusCode.UNAUTHENTICATED,
    Forbidden: StatusCode.PERMISSION_DENIED,
    UnknownModel: StatusCode.NOT_FOUND,
    InvalidRequest: StatusCode.INVALID_ARGUMENT,
    InvalidImage: StatusCode.INVALID_ARGUMENT,
    TooSlow: StatusCode.RESOURCE_EXHAUSTED,
    Overloaded: StatusCode.RESOURCE_EXHAUSTED,
    Closed: StatusCode.UNAVAILABLE,
    DeadlinePassed: StatusCode.DEADLINE_EXCEEDED,
}
EXPECTED: Final = tuple(_STATUSES)
"""Errors that have a status and a `code` of their own. Any other one is a failure of the service."""


def status_of(error: Exception) -> StatusCode:
    """Status of an EXPECTED error."""
    return next(status for kind, status in _STATUSES.items() if isinstance(error, kind))


async def abort(context: Context, status: StatusCode, code: str, message: str) -> NoReturn:
    """End the call with this status."""
    # A byte may become three in a header, and a header that is too long becomes another error.
    await context.abort(status, f"{code}: {message}".encode()[:LONGEST_MESSAGE].decode(errors="ignore"))


async def abort_for(context: Context, error: Any) -> NoReturn:
    """End the call with the status of an EXPECTED error. Overloaded adds the time to wait to the trailing metadata."""
    if isinstance(error, Overloaded):
        context.set_trailing_metadata((*(context.trailing_metadata() or ()), *_retry_info(error)))
    await abort(context, status_of(error), error.code, str(error))


def _retry_info(error: Overloaded) -> tuple[tuple[str, str | bytes], ...]:
    """Trailing metadata with the time to wait: for people and proxies, gRPC's retry policy, and programs."""
    details = status_pb2.Status(code=StatusCode.RESOURCE_EXHAUSTED.value[0], message=f"{error.code}: {error}")
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromNanoseconds(math.ceil(error.retry_after * 1e9))
    details.details.add().Pack(info)
    return (
        ("retry-after", str(max(1, math.ceil(error.retry_after)))),
        ("grpc-retry-pushback-ms", str(math.ceil(error.retry_after * 1000))),
        ("grpc-status-details-bin", details.SerializeToString()),
    )
