"""All protocols at once on one queue: each caller gets its own answer, and a broken image affects no other."""

import asyncio
import itertools
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import REGISTRY

from chestct.card import ModelCard
from chestct.engine import Engine, Scores
from chestct.image import decode
from chestct.store import CARD, GRAPH
from load_tests import images
from serving import rpc
from serving.http.app import create_app
from serving.http.request_recording import RequestRecording
from serving.inference.classifier import Classifier
from serving.memory_budget import MemoryBudget
from serving.settings import Settings
from tests.graphs import tiny_model
from tests.protocols import (
    BROKEN,
    PROTOCOLS,
    SECONDS,
    Answer,
    Ask,
    Refused,
    Sample,
    ask_all,
    ask_batch,
    connect,
    foretell,
    grpc_image,
    raw,
    tiny_sample,
)
from tests.server import ROOT, Server, environment, serve
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real service with the released model, which is slow enough for a queue to grow."""
    home = tmp_path_factory.mktemp("released") / "bentoml"
    home.mkdir()
    command = [sys.executable, "-m", "serving.ensure_model"]
    done = subprocess.run(command, cwd=ROOT, env=environment(home), check=True, capture_output=True, timeout=300)
    # On a slow machine, the last of 200 answers comes after the usual deadline. With many cores, no queue grows.
    settings = {"CHESTCT_WORKERS": "1", "CHESTCT_REQUEST_TIMEOUT": "600", "CHESTCT_ENGINE_THREADS": "1"}
    with serve(home, done.stdout.decode().strip(), **settings) as running:
        yield running


@pytest.fixture(scope="module")
def phantom() -> Sample:
    data = images.phantom()
    return Sample(data, decode(data, ModelCard.read(ROOT / "release" / CARD).input).pixels)


def test_of_200_mixed_requests_every_good_one_gets_its_own_answer(server: Server) -> None:
    samples = [*(tiny_sample(index) for index in range(180)), *itertools.islice(itertools.cycle(BROKEN), 20)]
    random.Random(0).shuffle(samples)
    outcomes = ask_all(server, list(zip(itertools.cycle(PROTOCOLS), samples)))
    for sample, outcome in zip(samples, outcomes, strict=True):
        if sample in BROKEN:
            assert isinstance(outcome, Refused)
            continue
        expected = foretell(sample)
        assert isinstance(outcome, Answer), outcome
        assert outcome.decision == expected.decision
        assert outcome.probabilities == pytest.approx(expected.probabilities, abs=1e-5)


def test_a_batch_of_32_with_5_broken_images_has_27_answers_and_5_errors_in_their_places(server: Server) -> None:
    broken = {3: BROKEN[0], 4: BROKEN[1], 17: BROKEN[2], 30: BROKEN[3], 31: BROKEN[0]}
    samples = [broken.get(index, tiny_sample(index)) for index in range(32)]

    async def run() -> list[Answer | Refused]:
        async with connect(server.url, server.grpc) as clients:
            return await ask_batch(clients, [sample.data for sample in samples])

    outcomes = asyncio.run(run())
    assert {index for index, outcome in enumerate(outcomes) if isinstance(outcome, Refused)} == set(broken)
    for sample, outcome in zip(samples, outcomes, strict=True):
        if isinstance(outcome, Answer):
            assert outcome.probabilities == pytest.approx(foretell(sample).probabilities, abs=1e-5)


def test_a_file_has_the_same_answer_on_every_path_alone_and_under_load(released: Server, phantom: Sample) -> None:
    alone = [ask_all(released, [(ask, phantom)])[0] for ask in PROTOCOLS]
    first = alone[0]
    assert isinstance(first, Answer)
    for outcome in alone:
        assert isinstance(outcome, Answer), outcome
        assert outcome.decision == first.decision
        assert outcome.probabilities == pytest.approx(first.probabilities, abs=1e-5)
    for outcome in ask_all(released, [(ask, phantom) for _ in range(200 // len(PROTOCOLS)) for ask in PROTOCOLS]):
        assert isinstance(outcome, Answer), outcome
        assert outcome.decision == first.decision
        assert outcome.probabilities == pytest.approx(first.probabilities, abs=2e-3)


@pytest.mark.parametrize("ask", PROTOCOLS)
def test_32_concurrent_requests_of_a_protocol_share_inferences(released: Server, phantom: Sample, ask: Ask) -> None:
    def totals() -> tuple[float, float]:
        text = httpx.get(f"{released.url}/metrics", timeout=300).text
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return float(lines["chestct_batch_size_sum"]), float(lines["chestct_batch_size_count"])

    def are_shared() -> bool:
        images, inferences = totals()
        ask_all(released, [(ask, phantom)] * 32)
        images_after, inferences_after = totals()
        return (images_after - images) / (inferences_after - inferences) > 1.5

    wait_until(are_shared, "a queue grows")  # not while a busy machine sends more slowly than the engine answers


class RecordingEngine:
    """The tiny model, which records its batches and waits in each until `go` is set."""

    largest_batch = 4

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.go = threading.Event()
        self.entered = threading.Event()
        self.batches: list[NDArray[np.uint8]] = []

    def infer(self, pixels: NDArray[np.uint8]) -> Scores:
        self.entered.set()
        assert self.go.wait(SECONDS)
        self.batches.append(pixels)
        return self._engine.infer(pixels)

    infer_alone = infer


def test_http_and_grpc_share_an_inference(tmp_path: Path) -> None:
    card = tiny_model(tmp_path)
    engine = RecordingEngine(Engine(tmp_path / GRAPH, threads=1, batch_sizes=(1, 2, 4)))
    settings = Settings(largest_batch=4, grpc_host="127.0.0.1", grpc_port=0)
    samples = [tiny_sample(index) for index in range(7)]

    async def run() -> list[Answer | Refused]:
        classifier = Classifier(engine, card, "chestct:abc", settings)  # type: ignore[arg-type]
        engine.go.set()
        await classifier.warm_up()
        engine.go.clear()
        engine.entered.clear()
        engine.batches.clear()
        app = create_app(settings)
        app.state.classifier = classifier
        server = await rpc.start(classifier, None, MemoryBudget())
        async with connect(
            "http://chestct", f"127.0.0.1:{server.port}", httpx.ASGITransport(RequestRecording(app))
        ) as clients:
            # One image is in the engine. Three of HTTP and three of gRPC wait for batches of four.
            calls = [asyncio.ensure_future(raw(clients, samples[0]))]
            assert await asyncio.to_thread(engine.entered.wait, SECONDS)
            calls += [asyncio.ensure_future(raw(clients, sample)) for sample in samples[1:4]]
            calls += [asyncio.ensure_future(grpc_image(clients, sample)) for sample in samples[4:]]
            await queued(7)
            while classifier._batcher.decoding:
                await asyncio.sleep(0.001)
            engine.go.set()
            outcomes = await asyncio.gather(*calls)
        await server.stop(1)
        await classifier.close()
        return outcomes

    outcomes = asyncio.run(run())
    assert [len(batch) for batch in engine.batches] == [1, 4, 2]
    sent = [sample.pixels.tobytes() for sample in samples]
    places = {sent.index(row.tobytes()) for row in engine.batches[1]}
    assert places & {1, 2, 3}
    assert places & {4, 5, 6}
    for sample, outcome in zip(samples, outcomes, strict=True):
        assert isinstance(outcome, Answer)
        assert outcome.probabilities == pytest.approx(foretell(sample).probabilities, abs=1e-5)


async def queued(count: int) -> None:
    """Wait until the queue and the engine hold so many images, by the metric."""
    async with asyncio.timeout(SECONDS):
        while REGISTRY.get_sample_value("chestct_queue_depth") != count:
            await asyncio.sleep(0.001)
