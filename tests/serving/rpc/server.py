"""A gRPC server with the tiny model in its own thread, and requests for its tests."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from open_inference.grpc import protocol, service

from chestct.card import ModelCard
from chestct.engine import Engine
from chestct.image import encode_png
from chestct.store import GRAPH
from serving import rpc
from serving.api_keys import Keys
from serving.inference.classifier import Classifier
from serving.memory_budget import MemoryBudget
from serving.settings import Settings
from serving.tensors import unpack_bytes
from tests.graphs import tiny_model, tiny_picture
from tests.serving.gated_engine import SECONDS, GatedEngine

TAG = "chestct:abc"
SIZE = 32


class Server:
    """A server in an event loop in its own thread, and a channel to it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, engine: Any, card: ModelCard, settings: Settings) -> None:
        self._loop = loop
        self.classifier = Classifier(engine, card, TAG, settings)
        self.memory = MemoryBudget(settings.max_bytes_in_flight)
        keys = Keys(settings.api_keys_file) if settings.api_keys_file else None
        self.rpc = self.run(rpc.start(self.classifier, keys, self.memory))
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.rpc.port}")
        self.stub = service.GRPCInferenceServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(300)

    def warm_up(self) -> None:
        self.run(self.classifier.warm_up())
        self.run(self.rpc.update_health())

    def health_of(self, name: str) -> Any:
        return self.health.Check(health_pb2.HealthCheckRequest(service=name)).status

    def close(self) -> None:
        self.channel.close()
        self.run(self.rpc.stop(0))
        self.run(self.classifier.close())


class Model:
    def __init__(self, folder: Path) -> None:
        self.card: ModelCard = tiny_model(folder, size=SIZE)
        self.engine = Engine(folder / GRAPH, threads=1)

    @contextmanager
    def serve(self, engine: Any = None, *, warm: bool = True, **settings: Any) -> Iterator[Server]:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            server = Server(
                loop,
                engine or self.engine,
                self.card,
                Settings(**{"grpc_host": "127.0.0.1", "grpc_port": 0, **settings}),
            )
            try:
                if warm:
                    server.warm_up()
                yield server
            finally:
                server.close()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


def png(label: int) -> bytes:
    return encode_png(tiny_picture(label)[:, :, 0])


def ask(*images: bytes, **fields: Any) -> protocol.ModelInferRequest:
    tensor = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [len(images)],
        "contents": {"bytes_contents": images},
    }
    return protocol.ModelInferRequest(**{"model_name": "chestct", "inputs": [tensor], **fields})


def labels(answer: protocol.ModelInferResponse) -> list[str]:
    position = [output.name for output in answer.outputs].index("label")
    return [element.decode() for element in unpack_bytes(answer.raw_output_contents[position])]


def occupy(server: Server, gate: GatedEngine) -> Any:
    """A call with its image in the server's engine until the gate opens."""
    gate.close()
    running = server.stub.ModelInfer.future(ask(png(1)), timeout=SECONDS)
    assert gate.entered.wait(SECONDS)
    return running


def refusal(call: Any, request: Any, **options: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, **{"timeout": 300, **options})
    return caught.value


def is_full(server: Server) -> bool:
    """Whether the server refuses a call because its queue is full."""
    return refusal(server.stub.ModelInfer, ask(b"bad")).code() is StatusCode.RESOURCE_EXHAUSTED
