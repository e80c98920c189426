"""The gRPC edge: the Open Inference Protocol, health and reflection. The only module that knows grpc.

It runs in the event loop of whoever starts it, so HTTP and gRPC feed one queue.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from open_inference.grpc import protocol, service

import chestct
from chestct.image import InvalidImage
from serving import oip
from serving.batcher import Closed, Overloaded
from serving.call import LONGEST_MESSAGE, Call, choose_id
from serving.classifier import Classifier
from serving.keys import Forbidden, Keys, Unauthenticated
from serving.memory_budget import MemoryBudget
from serving.settings import Settings

SERVICE: Final = protocol.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
REQUEST_ID: Final = "x-request-id"
"""Metadata of the call; it comes back as trailing metadata, which costs no message of its own."""

_OVERALL: Final = ""
_OPEN: Final = frozenset({"ServerLive", "ServerReady"})
_ANSWERING: Final = "ModelInfer"
"""What puts images into the queue."""

_SAY_SO: Final = 0.1
"""Seconds in which the watches of the health wake up and tell."""
_MOST_FIELDS: Final = 256
"""Of a message, those inside its fields left out; a request of every output has some twenty."""

_log = logging.getLogger(__name__)

_CALL: Final[ContextVar[Call]] = ContextVar("call")
"""Of the task that answers it."""

_Context = grpc.aio.ServicerContext[Any, Any]
_Handler = Any
"""grpc.RpcMethodHandler, which is generic only in the type stubs."""


class RpcServer:
    """A started gRPC server."""

    def __init__(self, server: grpc.aio.Server, classifier: Classifier, health_servicer: "_Health", port: int) -> None:
        self._server = server
        self._classifier = classifier
        self._health = health_servicer
        self.port = port
        """The port it listens on, also where the settings asked for any free one (0)."""

    async def announce(self) -> None:
        """Tell those who ask about health whether the classifier is ready now: SERVING or NOT_SERVING."""
        await _set_health(self._health, self._classifier.ready)

    async def stop(self, grace: float) -> None:
        """Say NOT_SERVING, take no new calls, and give the running ones `grace` seconds before they are cancelled.

        Who watches the health is told and let go at once.
        """
        await _set_health(self._health, False)
        await self._health.end()
        await self._server.stop(grace)


async def start(
    classifier: Classifier,
    settings: Settings,
    keys: Keys | None = None,
    load: AbstractContextManager[None] | None = None,
    memory: MemoryBudget | None = None,
) -> RpcServer:
    """Listen on the settings' gRPC address in this event loop; with `keys`, SERVICE answers only who holds one.

    Each call of SERVICE is answered within `load`, which serving.spread.Load counts, and its message is counted in
    `memory`, by default one of the settings' size.
    A classifier that is not ready yet is served as NOT_SERVING; after its warm-up call `announce`. Several processes
    may share the port (SO_REUSEPORT). Raises RuntimeError where the port can't be bound.
    """
    memory = memory or MemoryBudget(settings.max_bytes_in_flight)
    server = grpc.aio.server(
        interceptors=[_Edge(classifier, keys, load or nullcontext(), memory)],
        options=[
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", settings.max_body_bytes),
        ],
    )
    service.add_GRPCInferenceServiceServicer_to_server(_Inference(classifier), server)  # type: ignore[no-untyped-call]
    health_servicer = _Health()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    address = f"{settings.grpc_host}:{settings.grpc_port}"
    if settings.grpc_certificate and settings.grpc_certificate_key:
        pair = (settings.grpc_certificate_key.read_bytes(), settings.grpc_certificate.read_bytes())
        port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    else:
        port = server.add_insecure_port(address)
    started = RpcServer(server, classifier, health_servicer, port)
    await started.announce()
    await server.start()
    return started


async def _set_health(servicer: "_Health", ready: bool) -> None:
    status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
    for name in (_OVERALL, SERVICE):
        await servicer.set(name, status)


class _Health(health.aio.HealthServicer):  # type: ignore[misc] # it has no types
    """The health service; `end` lets go of those who watch it."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[asyncio.Task[Any]] = set()
        self._ended = False

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: _Context) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._watches.add(task)
        try:
            await super().Watch(request, context)
        except asyncio.CancelledError:
            if not self._ended:
                raise
            await context.abort(StatusCode.UNAVAILABLE, "not_ready: the service is stopping")
        finally:
            self._watches.discard(task)

    async def end(self) -> None:
        """By itself no watch ends, so that each stop of the server would take all its grace."""
        if self._watches:
            await asyncio.sleep(_SAY_SO)
        self._ended = True
        for watch in self._watches:
            watch.cancel()


class _Edge(grpc.aio.ServerInterceptor):
    """Makes each call of SERVICE a Call and finishes it; names of other services, which a scan may invent, pass by."""

    def __init__(
        self, classifier: Classifier, keys: Keys | None, load: AbstractContextManager[None], memory: MemoryBudget
    ) -> None:
        """With `keys` SERVICE asks for one, but where it tells of its health."""
        self._classifier = classifier
        self._keys = keys
        self._load = load
        self._memory = memory

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(f"/{SERVICE}/"):
            return handler
        name = method.removeprefix(f"/{SERVICE}/")
        answer: Any = handler.unary_unary

        async def counted(message: bytes, context: _Context) -> Any:
            with self._load:
                return await recorded(message, context)

        async def recorded(message: bytes, context: _Context) -> Any:
            metadata = dict(context.invocation_metadata() or ())
            call = Call(choose_id(metadata.get(REQUEST_ID)), route=method, memory=self._memory)
            left = context.time_remaining()
            limit = self._classifier.settings.request_timeout
            call.deadline = call.started + min(limit, math.inf if left is None else left)
            _CALL.set(call)
            context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
            code = StatusCode.CANCELLED
            try:
                if left is not None and left <= 0:
                    await _abort(context, StatusCode.DEADLINE_EXCEEDED, "deadline_exceeded", "it had passed on arrival")
                if name not in _OPEN:
                    await self._check_key(metadata.get("authorization"), context)
                if name == _ANSWERING:
                    await self._check_room(call, len(message), context)
                if _has_many_fields(message):
                    words = f"expected a message of {name} with at most {_MOST_FIELDS} fields, got more"
                    await _abort(context, StatusCode.INVALID_ARGUMENT, oip.InvalidRequest.code, words)
                try:
                    request = handler.request_deserializer(message)
                except DecodeError:
                    words = f"expected a message of {name}, got {len(message)} bytes that are none"
                    await _abort(context, StatusCode.INVALID_ARGUMENT, oip.InvalidRequest.code, words)
                response = await answer(request, context)
                code = StatusCode.OK
            except grpc.aio.AbortError:
                code = context.code()
                raise
            except asyncio.CancelledError:  # by the client, or by grpc at the client's deadline
                if call.remaining <= 0:
                    code = StatusCode.DEADLINE_EXCEEDED
                call.outcome = code.name.lower()
                raise
            finally:
                call.finish("grpc", code.name, metadata)
            return response

        # Without a deserializer: an overloaded service is not to parse what it refuses.
        return grpc.unary_unary_rpc_method_handler(counted, None, handler.response_serializer)

    async def _check_room(self, call: Call, size: int, context: _Context) -> None:
        try:
            self._classifier.check_room(call.deadline)
            call.reserve_bytes(size)
            self._memory.keep(call)
        except Overloaded as error:
            await _overloaded(error, call, context)
        except Closed:
            pass  # ModelInfer says so

    async def _check_key(self, authorization: str | bytes | None, context: _Context) -> None:
        if self._keys is None:
            return
        try:
            _CALL.get().key = self._keys.check(authorization if isinstance(authorization, str) else None, "grpc")
        except Unauthenticated as refused:
            await _abort(context, StatusCode.UNAUTHENTICATED, refused.code, str(refused))
        except Forbidden as refused:
            await _abort(context, StatusCode.PERMISSION_DENIED, refused.code, str(refused))


class _Inference(service.GRPCInferenceServiceServicer):
    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    async def ServerLive(self, request: protocol.ServerLiveRequest, context: _Context) -> protocol.ServerLiveResponse:
        return protocol.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: protocol.ServerReadyRequest, context: _Context
    ) -> protocol.ServerReadyResponse:
        return protocol.ServerReadyResponse(ready=self._classifier.ready)

    async def ModelReady(self, request: protocol.ModelReadyRequest, context: _Context) -> protocol.ModelReadyResponse:
        await self._find(request.name, request.version, context)
        return protocol.ModelReadyResponse(ready=self._classifier.ready)

    async def ServerMetadata(
        self, request: protocol.ServerMetadataRequest, context: _Context
    ) -> protocol.ServerMetadataResponse:
        return protocol.ServerMetadataResponse(name=oip.SERVER, version=chestct.__version__)

    async def ModelMetadata(
        self, request: protocol.ModelMetadataRequest, context: _Context
    ) -> protocol.ModelMetadataResponse:
        await self._find(request.name, request.version, context)
        return protocol.ModelMetadataResponse(**oip.metadata(self._classifier.card, self._classifier.tag).model_dump())

    async def ModelInfer(self, request: protocol.ModelInferRequest, context: _Context) -> protocol.ModelInferResponse:
        call = _CALL.get()
        call.request_id = choose_id(dict(context.invocation_metadata() or ()).get(REQUEST_ID), request.id)
        context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
        await self._find(request.model_name, request.model_version, context)
        if not self._classifier.accepting:
            await _abort(
                context, StatusCode.UNAVAILABLE, "not_ready", "the model is loading or the service is stopping"
            )
        try:
            async with asyncio.timeout(call.remaining):
                question = oip.read(self._classifier, _to_request(request))
                tensors = await oip.infer(self._classifier, question, call)
        except (oip.InvalidRequest, InvalidImage) as error:
            await _abort(context, StatusCode.INVALID_ARGUMENT, error.code, str(error))
        except Overloaded as error:
            await _overloaded(error, call, context)
        except Closed as error:
            await _abort(context, StatusCode.UNAVAILABLE, "not_ready", str(error))
        except TimeoutError:
            limit = self._classifier.settings.request_timeout
            words = f"no answer within the call's deadline or the service's {limit} seconds"
            await _abort(context, StatusCode.DEADLINE_EXCEEDED, "deadline_exceeded", words)
        except Exception:  # noqa: BLE001 - whatever it is, the caller gets a status and no internals
            _log.exception("request %s failed", call.request_id)
            words = f"request {call.request_id} failed, see the log"
            await _abort(context, StatusCode.INTERNAL, "internal_error", words)
        return self._to_response(request, tensors)

    async def _find(self, name: str, version: str, context: _Context) -> None:
        try:
            oip.find(self._classifier.card, self._classifier.tag, name, version)
        except oip.UnknownModel as error:
            await _abort(context, StatusCode.NOT_FOUND, error.code, str(error))

    def _to_response(
        self, request: protocol.ModelInferRequest, tensors: tuple[oip.Tensor, ...]
    ) -> protocol.ModelInferResponse:
        card, tag = self._classifier.card, self._classifier.tag
        return protocol.ModelInferResponse(
            model_name=card.name,
            model_version=oip.version(tag),
            id=request.id,
            parameters={"disclaimer": protocol.InferParameter(string_param=card.disclaimer)},
            outputs=[{"name": t.name, "datatype": t.datatype, "shape": t.shape} for t in tensors],
            raw_output_contents=[tensor.raw() for tensor in tensors],
        )


def _has_many_fields(message: bytes) -> bool:
    """Whether a message in protobuf's wire format has more than _MOST_FIELDS fields.

    Looked at unparsed: an empty tensor is two bytes here and 90 once it is an object, so that the largest body would
    fill the memory of a pod.
    """
    at = 0
    for _ in range(_MOST_FIELDS):
        if at >= len(message):
            return False
        tag, at = _read_varint(message, at)
        match tag & 7:
            case 0:
                _, at = _read_varint(message, at)
            case 1:
                at += 8
            case 2:
                size, at = _read_varint(message, at)
                at += size
            case 5:
                at += 4
            case _:
                return False  # no field: the parser says so
    return at < len(message)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of at most ten bytes with seven bits each, lowest first, and where it ends."""
    value = 0
    for shift, byte in enumerate(message[at : at + 10]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, at + shift + 1
    return value, len(message)


def _to_request(request: protocol.ModelInferRequest) -> oip.Request:
    """Raises oip.InvalidRequest where the raw contents don't fit the inputs."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise oip.InvalidRequest(
            f"raw_input_contents: expected one for each of the {len(request.inputs)} inputs, got {len(raw)}"
        )
    if raw and any(tensor.HasField("contents") for tensor in request.inputs):
        raise oip.InvalidRequest("inputs: expected either raw_input_contents or contents, got both")
    described: list[Any] = [request, *request.inputs, *request.outputs]
    for part in described:
        oip.check_parameters(part.parameters)
    return oip.Request(
        inputs=tuple(
            oip.Input(
                name=tensor.name,
                datatype=tensor.datatype,
                shape=tuple(tensor.shape),
                data=raw[index] if raw else _contents(tensor),
            )
            for index, tensor in enumerate(request.inputs)
        ),
        outputs=tuple(output.name for output in request.outputs),
        window=oip.read_window(
            {name: getattr(p, p.WhichOneof("parameter_choice") or "", None) for name, p in request.parameters.items()}
        ),
    )


def _contents(tensor: protocol.ModelInferRequest.InferInputTensor) -> Any:
    contents = tensor.contents
    return contents.bytes_contents if tensor.datatype == "BYTES" else contents.uint_contents


async def _abort(context: _Context, status: StatusCode, code: str, message: str) -> NoReturn:
    _CALL.get().outcome = code
    await context.abort(status, f"{code}: {message}"[:LONGEST_MESSAGE])


async def _overloaded(error: Overloaded, call: Call, context: _Context) -> NoReturn:
    context.set_trailing_metadata(((REQUEST_ID, call.request_id), *_retry_info(error)))
    await _abort(context, StatusCode.RESOURCE_EXHAUSTED, "overloaded", str(error))


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
