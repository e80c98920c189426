"""What every gRPC call passes before its method: the checks of its key, room, deadline and message, in this order."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode
from open_inference.grpc import protocol

from serving.api_keys import Keys
from serving.inference.classifier import Classifier
from serving.memory_budget import MemoryBudget
from serving.rpc import message_limits
from serving.rpc.connections import Context, DeliveryTimeouts
from serving.rpc.errors import EXPECTED, DeadlinePassed, abort, abort_for, status_of
from serving.rpc.message_reader import MessageReader, NoMessage, TooSlow
from serving.telemetry.request_record import RequestRecord, choose_id
from serving.telemetry.tracing import UNKNOWN_ROUTE
from serving.tensors import InvalidRequest
from serving.unavailable import Overloaded

SERVICE: Final = protocol.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
REQUEST_ID: Final = "x-request-id"
"""Metadata of the call. It comes back as trailing metadata, which needs no message of its own."""
MOST_STREAMS: Final = 100
"""Health watches and reflection streams at the same time."""

_KEYLESS: Final = frozenset({"ServerLive", "ServerReady"})
"""Methods that need no API key."""
_INFER: Final = "ModelInfer"
_OTHER_BYTES: Final = 16 * 1024 * 1024
"""Memory of messages without images. It is apart, so that images can't keep health checks out."""
_MOST_FIELDS: Final = 1000
"""Fields of a message on all levels, beside one for each image. A request for every output has some forty."""
_PIXEL_BYTES: Final = 2
"""Most bytes of a grey level's number in a message."""

RECORD: Final[ContextVar[RequestRecord]] = ContextVar("record")
"""Record of the call of SERVICE that this task answers."""
_log: Final = logging.getLogger(__name__)

_Handler = Any
"""grpc.RpcMethodHandler, which is generic only in the type stubs."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Checks each call before its message is read, and records each call of SERVICE.

    It makes every handler a handler of a message stream, because gRPC leaves the reading to those. On the wire both
    kinds are the same.
    """

    def __init__(
        self, classifier: Classifier, keys: Keys | None, memory: MemoryBudget, delivery: DeliveryTimeouts
    ) -> None:
        """With `keys`, calls of SERVICE need one of them, except for those in _KEYLESS."""
        self._classifier = classifier
        self._settings = classifier.settings
        self._keys = keys
        self._memory = memory
        self._other_memory = MemoryBudget(_OTHER_BYTES)
        self._delivery = delivery
        self._reader = MessageReader(self._settings.max_body_bytes)
        most_images, spec = self._settings.max_images, classifier.card.input
        pixels = spec.height * spec.width * spec.channels
        self._limits = message_limits.Limits(_MOST_FIELDS + most_images, most_images * pixels * _PIXEL_BYTES)
        self._streams = 0
        self._handlers: dict[str, _Handler] = {}
        self._unknown: _Handler = grpc.stream_unary_rpc_method_handler(self._refuse_unknown)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        method = handler_call_details.method
        if method not in self._handlers:
            handler = await continuation(handler_call_details)
            if handler is None:
                return self._unknown
            wrap = self._wrap_recorded if method.startswith(f"/{SERVICE}/") else self._wrap_unrecorded
            self._handlers[method] = wrap(method, handler)
        return self._handlers[method]

    def _wrap_recorded(self, method: str, handler: _Handler) -> _Handler:
        """Handler of a method of SERVICE."""
        name = method.removeprefix(f"/{SERVICE}/")
        layout = message_limits.read_layout(protocol.DESCRIPTOR.message_types_by_name[f"{name}Request"])
        parse = self._parser(name, handler, layout)
        memory = self._memory if name == _INFER else self._other_memory

        async def answer(_: Any, context: Context) -> Any:
            metadata = dict(context.invocation_metadata() or ())
            record = RequestRecord(choose_id(metadata.get(REQUEST_ID)), protocol="grpc", route=method, memory=memory)
            left = context.time_remaining()
            record.set_deadline(math.inf if left is None else left, self._settings.request_timeout)
            RECORD.set(record)
            context.set_trailing_metadata(((REQUEST_ID, record.request_id),))
            code = StatusCode.OK
            try:
                self._check(name, record, metadata.get("authorization"))
                if left is not None and left <= 0:
                    raise DeadlinePassed(record.late_code, "it had passed on arrival")
                # No variable holds the message: its memory must be free while the model works.
                response = await handler.unary_unary(parse(await self._reader.read(context, record)), context)
                self._expect_delivery(context, response)
            except asyncio.CancelledError:  # by the client, or by grpc at the client's deadline
                code, record.outcome = StatusCode.CANCELLED, "cancelled"
                if record.remaining <= 0:
                    code, record.outcome = StatusCode.DEADLINE_EXCEEDED, record.late_code
                raise
            except EXPECTED as error:
                code, record.outcome = status_of(error), error.code
                await abort_for(context, error)
            except Exception:  # noqa: BLE001 - whatever it is, the client gets a status and no internals
                code, record.outcome = StatusCode.INTERNAL, "internal_error"
                _log.exception("request %s failed", record.request_id, extra={"request_id": record.request_id})
                await abort(context, code, record.outcome, f"request {record.request_id} failed, see the log")
            finally:
                record.finish(code.name, metadata)
            return response

        return grpc.stream_unary_rpc_method_handler(answer, None, handler.response_serializer)

    def _check(self, name: str, record: RequestRecord, authorization: str | bytes | None) -> None:
        """Raise Unauthenticated or Forbidden without a key for the method `name`, and Closed or Overloaded."""
        if self._keys is not None and name not in _KEYLESS:
            record.key = self._keys.check(authorization if isinstance(authorization, str) else None, "grpc")
        if name == _INFER:
            self._classifier.check_room(record.deadline)

    def _wrap_unrecorded(self, method: str, handler: _Handler) -> _Handler:
        """Handler of a method of health or reflection. Such calls are in no metrics and no log."""
        parse = self._parser(method.rpartition("/")[2], handler, {})

        async def read(context: Context) -> Any:
            record = RequestRecord("", time.monotonic() + self._settings.request_timeout, memory=self._other_memory)
            try:
                return parse(await self._reader.read(context, record))
            finally:
                self._other_memory.release(record)

        async def answer(_: Any, context: Context) -> Any:
            async with _abort_on_error(context):
                response = await handler.unary_unary(await read(context), context)
                self._expect_delivery(context, response)
                return response

        async def watch(_: Any, context: Context) -> None:
            async with _abort_on_error(context), self._stream(context):
                await handler.unary_stream(await read(context), context)

        async def reflect(_: Any, context: Context) -> AsyncIterator[Any]:
            async def requests() -> AsyncIterator[Any]:
                with contextlib.suppress(NoMessage, TooSlow):  # the client asks for nothing more
                    while True:
                        yield await read(context)

            async with _abort_on_error(context), self._stream(context):
                async for response in handler.stream_stream(requests(), context):
                    with self._delivery.limit(context, response.ByteSize()):
                        yield response

        serializer = handler.response_serializer
        if handler.unary_unary:
            return grpc.stream_unary_rpc_method_handler(answer, None, serializer)
        return grpc.stream_stream_rpc_method_handler(watch if handler.unary_stream else reflect, None, serializer)

    def _expect_delivery(self, context: Context, response: Any) -> None:
        """Limit the time in which the client takes the response that this task sends last."""
        timer = self._delivery.start(context, response.ByteSize())
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda _: timer.cancel())

    @asynccontextmanager
    async def _stream(self, context: Context) -> AsyncIterator[None]:
        """Count one of the MOST_STREAMS."""
        if self._streams >= MOST_STREAMS:
            message = f"expected at most {MOST_STREAMS} watches of the health and reflections at the same time"
            await abort(context, StatusCode.RESOURCE_EXHAUSTED, Overloaded.code, message)
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    async def _refuse_unknown(self, _: Any, context: Context) -> NoReturn:
        record = RequestRecord(choose_id(), protocol="grpc", route=UNKNOWN_ROUTE, outcome="unknown_method")
        try:
            message = f"expected a method of {SERVICE}, of the health or of reflection"
            await abort(context, StatusCode.UNIMPLEMENTED, record.outcome, message)
        finally:
            record.finish(StatusCode.UNIMPLEMENTED.name, {})

    def _parser(self, name: str, handler: _Handler, layout: message_limits.Layout) -> Callable[[bytes], Any]:
        """The function that parses the bytes of a message. It raises InvalidRequest."""

        def parse(message: bytes) -> Any:
            try:
                message_limits.check_size(message, layout, self._limits)
                return handler.request_deserializer(message)
            except message_limits.TooMuch as error:
                raise InvalidRequest(f"expected a message of {name} with {error}") from None
            except (message_limits.NotProtobuf, DecodeError):
                got = f"{len(message)} bytes that are none"
                raise InvalidRequest(f"expected a message of {name}, got {got}") from None

        return parse


@asynccontextmanager
async def _abort_on_error(context: Context) -> AsyncIterator[None]:
    """End the call with the status of the EXPECTED error that the block raises."""
    try:
        yield
    except EXPECTED as error:
        await abort_for(context, error)
