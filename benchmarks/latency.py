"""`python -m benchmarks.latency`: measures what the queue and the protocols add to decoding and inference.

Serves the newest model of the store, sends one request at a time over one connection for each protocol, and does the
same work in this process. The three take turns, so other load on the machine affects all of them alike.
"""

import argparse
import socket
import sys
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import grpc
import numpy as np
from open_inference.grpc import service

from chestct import store
from chestct.card import ModelCard
from chestct.engine import Engine
from chestct.image import decode
from load_tests import payloads, wire
from load_tests.images import phantom
from load_tests.server import serve
from load_tests.verdict import LoadError, command
from serving.inference.classifier import load_engine
from serving.settings import Settings

ROUNDS: Final = 300
WARM_UP: Final = 20


def measure(calls: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Return the milliseconds of each call in each round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(WARM_UP + ROUNDS):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if turn >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - started))
    return times


@command("latency", store.NoModel)
def main() -> int:
    """Print the table. Return the exit code: 0, or 2 if there is nothing to measure."""
    settings = Settings.read()
    model = store.find(settings.model)
    card = model.read_card()
    with serve() as server:
        times = measure(_calls(server.url, server.grpc, load_engine(model.graph, card, settings), card))
    bare = np.median(times["decode + infer"])
    print(f"{'milliseconds':16}{'median':>8}{'p99':>8}{'added':>8}")
    for name, values in times.items():
        print(f"{name:16}{np.median(values):8.2f}{np.quantile(values, 0.99):8.2f}{np.median(values) - bare:8.2f}")
    return 0


def _calls(url: str, address: str, engine: Engine, card: ModelCard) -> dict[str, Callable[[], object]]:
    """Return the calls to compare, by name, each with the same image."""
    data = phantom()
    host, port = urlsplit(url).netloc.split(":")
    post = wire.post("/v1/predict", data, {"Host": host, "Content-Type": "image/png"})
    connection = socket.create_connection((host, int(port)))
    answers = connection.makefile("rb")
    stub = service.GRPCInferenceServiceStub(grpc.insecure_channel(address))
    request = payloads.image_message(data)

    def ask_http() -> None:
        """Send the request by hand: http.client needs longer to read the headers than the service to write them."""
        connection.sendall(post)
        if b" 200 " not in (status := answers.readline()):
            raise LoadError(f"expected the status 200, got {status.decode().strip() or 'none'}")
        headers = iter(answers.readline, b"\r\n")
        answers.read(sum(int(line.split(b":")[1]) for line in headers if line.lower().startswith(b"content-length:")))

    return {
        "decode + infer": lambda: engine.infer(decode(data, card.input).pixels[np.newaxis]),
        "HTTP": ask_http,
        "gRPC": lambda: stub.ModelInfer(request),
    }


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__).parse_args()
    sys.exit(main())
