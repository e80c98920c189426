"""What each call passes: its key, room, deadline and message are checked in this order, and its end is recorded."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode
from open_inference.grpc import protocol

from serving.api_keys import Forbidden, Keys, Unauthenticated
from serving.inference.classifier import Classifier
from serving.memory_budget import MemoryBudget
from serving.rpc import message_limits
from serving.rpc.calls import REQUEST_ID, SERVICE, abort, abort_overloaded, set_current_call
from serving.rpc.connections import Context, DeliveryTimeouts
from serving.rpc.message_reader import MessageReader, NoMessage, TooSlow
from serving.telemetry.request_record import RequestRecord, choose_id
from serving.tensors import InvalidRequest
from serving.unavailable import Closed, Overloaded

MOST_STREAMS: Final = 100
"""Watches of the health and reflections at the same time."""

_OPEN: Final = frozenset({"ServerLive", "ServerReady"})
_ANSWERING: Final = "ModelInfer"
"""What puts images into the queue."""
_OTHERS_BYTES: Final = 16 * 1024 * 1024
"""Memory of messages that hold no images: whether a worker is ready is told, too, while images take all of theirs."""
_MOST_FIELDS: Final = 1000
"""Of a message, on all levels together, and one more for each image; a request of every output has some forty."""
_PIXEL_BYTES: Final = 2
"""That the number of a grey level takes on the wire, at most."""
_UNKNOWN: Final = "other"
"""The route of all methods that are not served, since a scan may invent any number."""

_Handler = Any
"""grpc.RpcMethodHandler, which is generic only in the type stubs."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Checks a call before its message is read, and makes each call of SERVICE a RequestRecord.

    Every handler becomes one of a stream of messages: on the wire it is the same as of one, and gRPC leaves the
    reading to it.
    """

    def __init__(
        self,
        classifier: Classifier,
        keys: Keys | None,
        load: AbstractContextManager[None],
        memory: MemoryBudget,
        untaken: DeliveryTimeouts,
    ) -> None:
        """With `keys` SERVICE asks for one, but where it tells of its health."""
        self._classifier = classifier
        self._settings = classifier.settings
        self._keys = keys
        self._load = load
        self._memory = memory
        self._memory_of_others = MemoryBudget(_OTHERS_BYTES)
        self._untaken = untaken
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
            inference = method.startswith(f"/{SERVICE}/")
            self._handlers[method] = (
                self._answer_inference(method, handler) if inference else self._bound(method, handler)
            )
        return self._handlers[method]

    def _answer_inference(self, method: str, handler: _Handler) -> _Handler:
        name = method.removeprefix(f"/{SERVICE}/")
        layout = message_limits.read_layout(protocol.DESCRIPTOR.message_types_by_name[f"{name}Request"])
        parse = self._parser(name, handler, layout)
        answer: Any = handler.unary_unary

        async def counted(_: Any, context: Context) -> Any:
            with self._load:
                return await recorded(context)

        async def recorded(context: Context) -> Any:
            metadata = dict(context.invocation_metadata() or ())
            memory = self._memory if name == _ANSWERING else self._memory_of_others
            call = RequestRecord(choose_id(metadata.get(REQUEST_ID)), route=method, memory=memory)
            left = context.time_remaining()
            call.set_deadline(math.inf if left is None else left, self._settings.request_timeout)
            set_current_call(call)
            context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
            code = StatusCode.CANCELLED
            try:
                if name not in _OPEN:
                    await self._check_key(metadata.get("authorization"), call, context)
                if name == _ANSWERING:
                    await self._check_room(call, context)
                if left is not None and left <= 0:
                    await abort(context, StatusCode.DEADLINE_EXCEEDED, call.late, "it had passed on arrival")
                # In no variable, which would keep the message in memory while the call is answered.
                response = await answer(await self._read(context, call, parse), context)
                self._expect_taken(context, response)
                code = StatusCode.OK
            except grpc.aio.AbortError:
                code = context.code()
                raise
            except asyncio.CancelledError:  # by the client, or by grpc at the client's deadline
                call.outcome = "cancelled"
                if call.remaining <= 0:
                    code = StatusCode.DEADLINE_EXCEEDED
                    call.outcome = call.late
                raise
            except Exception:
                code = StatusCode.UNKNOWN  # which gRPC makes of it
                call.outcome = "internal_error"
                raise
            finally:
                call.finish("grpc", code.name, metadata)
            return response

        return grpc.stream_unary_rpc_method_handler(counted, None, handler.response_serializer)

    def _bound(self, method: str, handler: _Handler) -> _Handler:
        """The handler of a method of the health or of reflection."""
        parse = self._parser(method.rpartition("/")[2], handler, {})

        async def answer(_: Any, context: Context) -> Any:
            with self._uncounted() as call:
                request = await self._read(context, call, parse)
            response = await handler.unary_unary(request, context)
            self._expect_taken(context, response)
            return response

        async def watch(_: Any, context: Context) -> None:
            await self._take_stream(context)
            try:
                with self._uncounted() as call:
                    request = await self._read(context, call, parse)
                await handler.unary_stream(request, context)
            finally:
                self._streams -= 1

        async def reflect(_: Any, context: Context) -> AsyncIterator[Any]:
            async def requests() -> AsyncIterator[Any]:
                with contextlib.suppress(NoMessage, TooSlow):  # it asks for nothing more
                    while True:
                        with self._uncounted() as call:
                            yield parse(await self._reader.read(context, call))

            await self._take_stream(context)
            try:
                async for response in handler.stream_stream(requests(), context):
                    with self._untaken.expecting(context, response.ByteSize()):
                        yield response
            except InvalidRequest as error:
                await abort(context, StatusCode.INVALID_ARGUMENT, error.code, str(error))
            except Overloaded as error:
                await abort_overloaded(error, context)
            finally:
                self._streams -= 1

        serializer = handler.response_serializer
        if handler.unary_unary:
            return grpc.stream_unary_rpc_method_handler(answer, None, serializer)
        return grpc.stream_stream_rpc_method_handler(watch if handler.unary_stream else reflect, None, serializer)

    def _expect_taken(self, context: Context, response: Any) -> None:
        """What this task sends last."""
        taking = self._untaken.expect(context, response.ByteSize())
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda _: taking.cancel())

    async def _take_stream(self, context: Context) -> None:
        if self._streams >= MOST_STREAMS:
            words = f"expected at most {MOST_STREAMS} watches of the health and reflections at the same time"
            await abort(context, StatusCode.RESOURCE_EXHAUSTED, "overloaded", words)
        self._streams += 1

    async def _refuse_unknown(self, _: Any, context: Context) -> NoReturn:
        call = RequestRecord(choose_id(), route=_UNKNOWN)
        set_current_call(call)
        try:
            words = f"expected a method of {SERVICE}, of the health or of reflection"
            await abort(context, StatusCode.UNIMPLEMENTED, "unknown_method", words)
        finally:
            call.finish("grpc", StatusCode.UNIMPLEMENTED.name, {})

    async def _check_key(self, authorization: str | bytes | None, call: RequestRecord, context: Context) -> None:
        if self._keys is None:
            return
        try:
            call.key = self._keys.check(authorization if isinstance(authorization, str) else None, "grpc")
        except Unauthenticated as refused:
            await abort(context, StatusCode.UNAUTHENTICATED, refused.code, str(refused))
        except Forbidden as refused:
            await abort(context, StatusCode.PERMISSION_DENIED, refused.code, str(refused))

    async def _check_room(self, call: RequestRecord, context: Context) -> None:
        try:
            if not self._classifier.accepting:
                raise Closed("the model is loading or the service is stopping")
            self._classifier.check_room(call.deadline)
        except Overloaded as error:
            await abort_overloaded(error, context)
        except Closed as error:
            await abort(context, StatusCode.UNAVAILABLE, "not_ready", str(error))

    def _parser(self, name: str, handler: _Handler, layout: message_limits.Layout) -> Callable[[bytes], Any]:
        """What makes a message of its bytes. Raises InvalidRequest."""

        def parse(message: bytes) -> Any:
            try:
                message_limits.check_size(message, layout, self._limits)
                return handler.request_deserializer(message)
            except message_limits.TooMuch as error:
                raise InvalidRequest(f"expected a message of {name} with {error}") from None
            except (message_limits.NotProtobuf, DecodeError):
                words = f"expected a message of {name}, got {len(message)} bytes that are none"
                raise InvalidRequest(words) from None

        return parse

    @contextmanager
    def _uncounted(self) -> Iterator[RequestRecord]:
        """A call of the health or of reflection while its message is read; it is in no metrics and no log."""
        call = RequestRecord("", time.monotonic() + self._settings.request_timeout, memory=self._memory_of_others)
        try:
            yield call
        finally:
            self._memory_of_others.release(call)

    async def _read(self, context: Context, call: RequestRecord, parse: Callable[[bytes], Any]) -> Any:
        """The request of a call, whose bytes are counted until its end."""
        try:
            return parse(await self._reader.read(context, call))
        except TooSlow as error:
            await abort(context, StatusCode.RESOURCE_EXHAUSTED, error.code, str(error))
        except NoMessage:
            await abort(context, StatusCode.INVALID_ARGUMENT, InvalidRequest.code, "expected a message, got none")
        except InvalidRequest as error:
            await abort(context, StatusCode.INVALID_ARGUMENT, error.code, str(error))
        except Overloaded as error:
            await abort_overloaded(error, context)
