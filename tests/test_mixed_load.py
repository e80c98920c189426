"""All protocols at once on one queue: each caller gets its own answer, and a broken image affects no other."""

import asyncio
import base64
import itertools
import json
import random
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from open_inference.grpc import protocol, service
from prometheus_client import REGISTRY

from chestct.card import ModelCard
from chestct.engine import Engine, Scores
from chestct.image import decode, encode_png
from chestct.prediction import decide
from chestct.store import CARD, GRAPH
from load_tests import images
from serving import rpc
from serving.http.app import create_app
from serving.http.request_recording import RequestRecording
from serving.inference.classifier import Classifier
from serving.memory_budget import MemoryBudget
from serving.settings import Settings
from tests.graphs import tiny_card, tiny_model, tiny_picture, tiny_scores
from tests.server import ROOT, Server, environment, serve

PNG = {"Content-Type": "image/png"}
JSON_LENGTH = "Inference-Header-Content-Length"
SECONDS = 300
"""Seconds that each request waits."""


class Sample(NamedTuple):
    """A file and its pixels for the input `pixels`, [height, width, 1]."""

    data: bytes
    pixels: NDArray[np.uint8]


class Answer(NamedTuple):
    decision: str
    probabilities: Sequence[float]


class Refused(NamedTuple):
    """An error that blames the caller's image."""

    code: str


class Clients(NamedTuple):
    http: httpx.AsyncClient
    grpc: Any


Ask = Callable[[Clients, Sample], Awaitable[Answer | Refused]]


@asynccontextmanager
async def connect(url: str, address: str, transport: httpx.AsyncBaseTransport | None = None) -> AsyncIterator[Clients]:
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=url, timeout=SECONDS, limits=limits, transport=transport) as client,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield Clients(client, service.GRPCInferenceServiceStub(channel))


def read_v1(outcome: dict[str, Any]) -> Answer | Refused:
    if "error" in outcome:
        return Refused(outcome["error"]["code"])
    return Answer(outcome["decision"], list(outcome["probabilities"].values()))


def read_response(response: httpx.Response) -> Answer | Refused:
    assert response.status_code == 200 or 400 <= response.status_code < 500, response.text
    outcome = read_v1(response.json())
    assert isinstance(outcome, Answer) == response.is_success
    return outcome


async def raw(clients: Clients, sample: Sample) -> Answer | Refused:
    return read_response(await clients.http.post("/v1/predict", content=sample.data, headers=PNG))


async def multipart(clients: Clients, sample: Sample) -> Answer | Refused:
    return read_response(await clients.http.post("/v1/predict", files={"image": ("x.png", sample.data)}))


async def ask_batch(clients: Clients, images: Sequence[bytes]) -> list[Answer | Refused]:
    files = [("images", (f"{index}.png", data)) for index, data in enumerate(images)]
    response = await clients.http.post("/v1/predict/batch", files=files)
    assert response.status_code == 200, response.text
    return [read_v1(outcome) for outcome in response.json()["outcomes"]]


async def batch(clients: Clients, sample: Sample) -> Answer | Refused:
    """Send the sample in a batch, between a good image and a broken one."""
    before, outcome, after = await ask_batch(clients, [GOOD.data, sample.data, b"broken"])
    assert isinstance(before, Answer)
    assert after == Refused("undecodable_image")
    return outcome


async def grpc_infer(clients: Clients, tensor: Any) -> Answer | Refused:
    request = protocol.ModelInferRequest(model_name="chestct", inputs=[tensor])
    try:
        response = await clients.grpc.ModelInfer(request, timeout=SECONDS)
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.INVALID_ARGUMENT:
            raise
        return Refused((error.details() or "").partition(":")[0])
    outputs = {output.name: raw for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)}
    return Answer(outputs["decision"][4:].decode(), np.frombuffer(outputs["probabilities"], "<f4").tolist())


async def grpc_image(clients: Clients, sample: Sample) -> Answer | Refused:
    tensor = protocol.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(sample.data)
    return await grpc_infer(clients, tensor)


async def grpc_pixels(clients: Clients, sample: Sample) -> Answer | Refused:
    tensor = protocol.ModelInferRequest.InferInputTensor(
        name="pixels", datatype="UINT8", shape=[1, *sample.pixels.shape]
    )
    tensor.contents.uint_contents.extend(sample.pixels.ravel().tolist())
    return await grpc_infer(clients, tensor)


async def oip_infer(clients: Clients, tensor: dict[str, Any], binary: bytes | None = None) -> Answer | Refused:
    """Probabilities and decision by the Open Inference Protocol over HTTP, in JSON or binary."""
    asked = {"binary_data_output": binary is not None}
    head = json.dumps({"inputs": [tensor], "parameters": asked}).encode()
    headers = {} if binary is None else {JSON_LENGTH: str(len(head))}
    response = await clients.http.post("/v2/models/chestct/infer", content=head + (binary or b""), headers=headers)
    if 400 <= response.status_code < 500:
        return Refused(response.json()["error"].partition(":")[0])
    assert response.status_code == 200, response.text
    length = int(response.headers.get(JSON_LENGTH, len(response.content)))
    outputs = {output["name"]: output for output in json.loads(response.content[:length])["outputs"]}
    if binary is None:
        return Answer(outputs["decision"]["data"][0], outputs["probabilities"]["data"])
    rest = BytesIO(response.content[length:])
    found = {name: rest.read(output["parameters"]["binary_data_size"]) for name, output in outputs.items()}
    return Answer(found["decision"][4:].decode(), np.frombuffer(found["probabilities"], "<f4").tolist())


async def oip_json(clients: Clients, sample: Sample) -> Answer | Refused:
    data = base64.b64encode(sample.data).decode()
    return await oip_infer(clients, {"name": "image", "datatype": "BYTES", "shape": [1], "data": [data]})


async def oip_json_pixels(clients: Clients, sample: Sample) -> Answer | Refused:
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, *sample.pixels.shape]}
    return await oip_infer(clients, {**tensor, "data": sample.pixels.ravel().tolist()})


async def oip_binary(clients: Clients, sample: Sample) -> Answer | Refused:
    element = len(sample.data).to_bytes(4, "little") + sample.data
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(element)}}
    return await oip_infer(clients, tensor, element)


async def classify(clients: Clients, sample: Sample) -> Answer | Refused:
    """Like bentoml.AsyncHTTPClient, through BentoML's own batching."""
    response = await clients.http.post("/classify", json={"images": [base64.b64encode(sample.data).decode()]})
    assert response.status_code == 200, response.text
    (outcome,) = response.json()
    return read_v1(outcome)


PROTOCOLS: tuple[Ask, ...] = (
    classify,
    raw,
    multipart,
    batch,
    oip_json,
    oip_json_pixels,
    oip_binary,
    grpc_image,
    grpc_pixels,
)


def tiny_sample(index: int) -> Sample:
    """A sample. The first 200 have different probabilities."""
    pixels = tiny_picture(index % 4, marks=index // 4)
    return Sample(encode_png(pixels[:, :, 0]), pixels)


def foretell(sample: Sample) -> Answer:
    """The right answer of the tiny model."""
    prediction = decide(tiny_card(), *tiny_scores(sample.pixels), None, request_id="", model="")
    return Answer(prediction.decision, list(prediction.probabilities.values()))


GOOD = tiny_sample(0)
WRONG_SHAPE = np.zeros((16, 16, 1), np.uint8)
BROKEN = tuple(Sample(data, WRONG_SHAPE) for data in (GOOD.data[:-40], b"text", b"", GOOD.data[:8] + bytes(64)))


def ask_all(server: Server, questions: Sequence[tuple[Ask, Sample]]) -> list[Answer | Refused]:
    """The outcomes of requests that are all sent at once."""

    async def run() -> list[Answer | Refused]:
        async with connect(server.url, server.grpc) as clients:
            return await asyncio.gather(*(ask(clients, sample) for ask, sample in questions))

    return asyncio.run(run())


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real service with the released model, which is slow enough for a queue to grow."""
    home = tmp_path_factory.mktemp("released") / "bentoml"
    home.mkdir()
    command = [sys.executable, "-m", "serving.release"]
    done = subprocess.run(command, cwd=ROOT, env=environment(home), check=True, capture_output=True, timeout=300)
    with serve(home, done.stdout.decode().strip(), CHESTCT_WORKERS="1") as running:
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
        text = httpx.get(f"{released.url}/metrics").text
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return float(lines["chestct_batch_size_sum"]), float(lines["chestct_batch_size_count"])

    images, inferences = totals()
    ask_all(released, [(ask, phantom)] * 32)
    images_after, inferences_after = totals()
    assert (images_after - images) / (inferences_after - inferences) > 1.5


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
