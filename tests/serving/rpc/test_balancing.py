"""A client that balances by itself reaches servers that start later, as pods do after a scale-up."""

import socket
import sys
import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from open_inference.grpc import service

from chestct.engine import Engine, Scores
from tests.name_server import NameServer
from tests.serving.rpc.server import Model, ask, labels, png

NAME = "chestct-grpc.test"
AGE = 2
"""Seconds after which a server ends a connection."""
CALLS = 40
OPTIONS = [
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.enable_http_proxy", 0),  # NO_PROXY does not name this server
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.dns_min_time_between_resolutions_ms", 100),  # by default 30 s, which would only lengthen the test
]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, where each of 127.0.0.0/8 is loopback")


class CountingEngine:
    """An engine that counts the images that it scores."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.largest_batch = engine.largest_batch
        self.images = 0

    def infer(self, pixels: NDArray[np.uint8]) -> Scores:
        self.images += len(pixels)
        return self._engine.infer(pixels)

    infer_alone = infer


@pytest.fixture
def names() -> Iterator[NameServer]:
    server = NameServer("127.0.0.1")
    yield server
    server.close()


def free_port() -> int:
    """A port that is free on both addresses."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        other.bind(("127.0.0.2", port))
    return port


def call(stub: service.GRPCInferenceServiceStub) -> None:
    """One call, which must be answered rightly."""
    assert labels(stub.ModelInfer(ask(png(1)), timeout=300)) == ["large_cell_carcinoma"]


def test_a_server_that_starts_later_gets_its_share_and_no_call_is_lost(model: Model, names: NameServer) -> None:
    first, second = CountingEngine(model.engine), CountingEngine(model.engine)
    port = free_port()
    settings = {"grpc_port": port, "grpc_connection_age": AGE}
    target = f"dns://127.0.0.1:{names.port}/{NAME}:{port}"
    with (
        model.serve(first, grpc_host="127.0.0.1", **settings),
        grpc.insecure_channel(target, options=OPTIONS) as channel,
    ):
        stub = service.GRPCInferenceServiceStub(channel)
        for _ in range(CALLS):
            call(stub)
        with model.serve(second, grpc_host="127.0.0.2", **settings):
            warm = second.images
            names.addresses.append("127.0.0.2")
            deadline = time.monotonic() + 300
            while second.images == warm:
                assert time.monotonic() < deadline, "the open channel never reaches the second server"
                call(stub)
            before = first.images, second.images
            for _ in range(CALLS):
                call(stub)
            shares = first.images - before[0], second.images - before[1]
    assert sum(shares) == CALLS
    assert min(shares) >= CALLS // 4
