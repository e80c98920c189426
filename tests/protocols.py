"""Asks a server over every protocol that it speaks, with samples of the tiny model whose answers are known."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Any, NamedTuple

import grpc
import httpx
import numpy as np
from numpy.typing import NDArray
from open_inference.grpc import protocol, service

from chestct.image import encode_png
from chestct.prediction import decide
from tests.graphs import tiny_card, tiny_picture, tiny_scores
from tests.server import Server

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
