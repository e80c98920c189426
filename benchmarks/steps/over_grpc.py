"""Calls of ModelInfer: to the method itself, with the interceptor around it, and over connections."""

import types
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc
from open_inference.grpc.service import add_GRPCInferenceServiceServicer_to_server

from benchmarks.steps import clients
from benchmarks.steps.turns import Turn, together
from load_tests.payloads import MODEL_INFER
from serving import rpc
from serving.inference.classifier import Classifier
from serving.memory_budget import MemoryBudget
from serving.rpc.connections import DeliveryTimeouts
from serving.rpc.inference import InferenceServicer
from serving.rpc.interceptor import RECORD, CallInterceptor
from serving.telemetry.request_record import RequestRecord


class _Context:
    """What the service asks of a call."""

    def __init__(self, message: bytes) -> None:
        self._message = message

    def peer(self) -> str:
        return "ipv4:127.0.0.1:50000"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("user-agent", "grpc-python-asyncio/1.85.0"),)

    def time_remaining(self) -> None:
        return None

    def set_trailing_metadata(self, metadata: object) -> None:
        pass

    async def read(self) -> bytes:
        return self._message


class _Details(NamedTuple):
    """What gRPC tells an interceptor."""

    method: str = MODEL_INFER
    invocation_metadata: tuple[()] = ()


def _handler(classifier: Classifier) -> Any:
    found: list[grpc.GenericRpcHandler] = []
    server = types.SimpleNamespace(
        add_generic_rpc_handlers=found.extend, add_registered_method_handlers=lambda *_: None
    )
    add_GRPCInferenceServiceServicer_to_server(InferenceServicer(classifier), server)  # type: ignore[no-untyped-call]
    return found[0].service(_Details())  # type: ignore[arg-type]


def to_method(classifier: Classifier, message: bytes, images: int) -> Turn:
    """Calls of the method alone: its message is parsed, and its answer becomes bytes."""
    handler, context = _handler(classifier), _Context(message)

    async def ask() -> None:
        record = RequestRecord("0" * 32)
        record.set_deadline(classifier.settings.request_timeout, classifier.settings.request_timeout)
        RECORD.set(record)
        handler.response_serializer(await handler.unary_unary(handler.request_deserializer(message), context))

    return together(ask, images)


async def to_interceptor(classifier: Classifier, message: bytes, images: int) -> Turn:
    """Calls of the method with everything of ours around it, without gRPC's server."""

    async def find(_: object) -> Any:
        return _handler(classifier)

    interceptor = CallInterceptor(classifier, None, MemoryBudget(), DeliveryTimeouts())
    handler = await interceptor.intercept_service(find, _Details())  # type: ignore[arg-type]

    async def ask() -> None:
        handler.response_serializer(await handler.stream_unary(None, _Context(message)))

    return together(ask, images)


@asynccontextmanager
async def to_server(classifier: Classifier, message: bytes, images: int) -> AsyncIterator[Turn]:
    """Calls over connections from another process to a server in this thread."""
    server = await rpc.start(classifier, None, MemoryBudget())
    try:
        async with clients.clients(clients.connect_grpc, clients.ask_all_grpc, server.port, message, images) as turn:
            yield turn
    finally:
        await server.stop(0)
