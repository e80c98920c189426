"""`python -m benchmarks.observability`: measures what metrics and the log cost the service in CPU time.

One process answers requests with its HTTP app and the real engine, in turns with and without metrics and log. Other
load on the machine therefore affects both alike.
"""

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np

from load_tests.images import phantom

ROUNDS: Final = 20
REQUESTS: Final = 60
AT_ONCE: Final = 8
MAX_COST: Final = 0.03
"""Aim: added CPU time, as a share of the time without metrics and log."""


@contextmanager
def silent() -> Iterator[None]:
    """Turn metrics and log off."""
    from prometheus_client import Counter, Gauge, Histogram

    nothing: Any = lambda *_, **__: None  # noqa: E731
    with (
        mock.patch.object(Counter, "inc", nothing),
        mock.patch.object(Gauge, "inc", nothing),
        mock.patch.object(Gauge, "dec", nothing),
        mock.patch.object(Histogram, "observe", nothing),
        mock.patch.object(logging.getLogger("serving.telemetry.request_record"), "disabled", True),
    ):
        yield


async def measure(output: int) -> tuple[list[float], list[float]]:
    """Return CPU seconds by round: with metrics and log, which goes to the descriptor `output`, and without them."""
    from chestct import store
    from serving.http.app import create_app
    from serving.http.request_recording import RequestRecording
    from serving.inference.classifier import Classifier, load_engine
    from serving.settings import Settings
    from serving.telemetry import log

    settings = Settings.read()
    model = store.find(settings.model)
    classifier = Classifier(load_engine(model, settings), model.read_card(), model.tag, settings)
    await classifier.warm_up()
    app = create_app(settings)
    app.state.classifier = classifier
    recorded = RequestRecording(app)
    image = phantom()
    log.take_over(output)
    headers = [(b"content-type", b"image/png")]
    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "root_path": "", "query_string": b""}

    async def ask() -> None:
        parts = [{"type": "http.request", "body": image, "more_body": False}]

        async def receive() -> dict[str, Any]:
            return parts.pop() if parts else await asyncio.Future()

        async def send(message: Any) -> None:
            assert message.get("status", 200) == 200

        await recorded({**scope, "headers": headers}, receive, send)

    async def turn() -> float:
        started = time.process_time()
        for _ in range(REQUESTS // AT_ONCE):
            await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
        return time.process_time() - started

    await turn()
    loud, quiet = [], []
    for _ in range(ROUNDS):
        loud.append(await turn())
        with silent():
            quiet.append(await turn())
    await classifier.close()
    return loud, quiet


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # as in a worker; set before prometheus_client is imported
        with (Path(folder) / "log").open("wb") as output:
            loud, quiet = asyncio.run(measure(output.fileno()))
    cost = float(np.median(np.array(loud) / np.array(quiet))) - 1
    requests = REQUESTS // AT_ONCE * AT_ONCE
    for name, values in (("with metrics and log", loud), ("without", quiet)):
        print(f"{name:24}{1000 * np.median(values) / requests:8.2f} ms of CPU a request")
    print(f"{'cost':24}{cost:8.1%}, at most {MAX_COST:.0%} is the aim")


if __name__ == "__main__":
    main()
