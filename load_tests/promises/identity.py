"""Checks that each request gets the answer to its own image, while others cancel, time out or send broken files."""

import asyncio
import base64
import contextlib
import functools
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import grpc
import numpy as np
from open_inference.grpc import protocol
from tqdm import tqdm
from urllib3.filepost import encode_multipart_formdata

from chestct import store
from chestct.card import ModelCard
from chestct.image import decode
from load_tests import payloads, traffic, wire
from load_tests.images import pictures
from load_tests.promises.results import Row
from load_tests.server import Server, serve
from load_tests.verdict import LoadError

IMAGES: Final = 192
REQUESTS: Final = 20_000
TOGETHER: Final = 32
TOLERANCE: Final = 2e-3
"""Difference between the probabilities of one image in two batches. Images closer than ten times this are dropped."""
BROKEN: Final = b"\x89PNG\r\n\x1a\nbroken"
WRONG_ELSE: Final = "another outcome"


class Sample(NamedTuple):
    """An image and the expected answer."""

    data: bytes
    pixels: bytes
    probabilities: Sequence[float]


class Clients:
    """Sends samples over each protocol. An answer is a list of probabilities, or the code of a refusal."""

    def __init__(self, server: Server, card: ModelCard) -> None:
        self._url = server.url
        self._classes = card.classes
        self._spec = card.input
        self._channels = [payloads.channel(server.grpc) for _ in range(8)]
        self._turn = itertools.count()
        self.protocols = (
            self._raw, self._form, self._batch, self._oip_json, self._oip_binary, self._classify, self._grpc_file,
            self._grpc_pixels,
        )  # fmt: skip

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def _post(self, path: str, body: bytes, headers: Mapping[str, str], seconds: float) -> Any:
        request = wire.post(path, body, {**headers, "X-Request-Timeout": f"{seconds:.3f}"})
        answer = await wire.exchange(self._url, request)
        return json.loads(answer.body) if answer.code == "200" else answer.code

    async def _post_form(self, path: str, field: str, images: Sequence[bytes], seconds: float) -> Any:
        body, kind = encode_multipart_formdata([(field, ("a.png", data)) for data in images], "hold")
        return await self._post(path, body, {"Content-Type": kind}, seconds)

    def _of_v1(self, outcome: Any) -> list[float] | str:
        if isinstance(outcome, str):
            return outcome
        if "error" in outcome:
            return str(outcome["error"]["code"])
        return [outcome["probabilities"][name] for name in self._classes]

    async def _raw(self, sample: Sample, seconds: float) -> Any:
        return self._of_v1(await self._post("/v1/predict", sample.data, {"Content-Type": "image/png"}, seconds))

    async def _form(self, sample: Sample, seconds: float) -> Any:
        return self._of_v1(await self._post_form("/v1/predict", "image", [sample.data], seconds))

    async def _batch(self, sample: Sample, seconds: float) -> Any:
        """Send the image between two broken files, and check the outcomes of all three."""
        answer = await self._post_form("/v1/predict/batch", "images", [BROKEN, sample.data, BROKEN], seconds)
        if isinstance(answer, str):
            return answer
        before, own, after = map(self._of_v1, answer["outcomes"])
        return own if {before, after} <= {"undecodable_image", "overloaded"} else WRONG_ELSE

    async def _oip_json(self, sample: Sample, seconds: float) -> Any:
        tensor = {**payloads.IMAGE, "data": [base64.b64encode(sample.data).decode()]}
        return await self._oip(json.dumps({"inputs": [tensor]}).encode(), {}, seconds)

    async def _oip_binary(self, sample: Sample, seconds: float) -> Any:
        return await self._oip(*payloads.binary_pixels(sample.pixels, self._spec, binary_answer=False), seconds)

    async def _oip(self, body: bytes, headers: Mapping[str, str], seconds: float) -> Any:
        answer = await self._post(payloads.INFER, body, headers, seconds)
        if isinstance(answer, str):
            return answer
        return next(output["data"] for output in answer["outputs"] if output["name"] == "probabilities")

    async def _classify(self, sample: Sample, seconds: float) -> Any:
        body = json.dumps({"images": [base64.b64encode(data).decode() for data in (sample.data, BROKEN)]}).encode()
        answer = await self._post("/classify", body, {"Content-Type": "application/json"}, seconds)
        return answer if isinstance(answer, str) else self._of_v1(answer[0])

    async def _grpc_file(self, sample: Sample, seconds: float) -> Any:
        return await self._infer(payloads.image_message(sample.data), seconds)

    async def _grpc_pixels(self, sample: Sample, seconds: float) -> Any:
        return await self._infer(payloads.pixels_message(sample.pixels, self._spec), seconds)

    async def _infer(self, message: Any, seconds: float) -> Any:
        channel = self._channels[next(self._turn) % len(self._channels)]
        method = channel.unary_unary(
            payloads.MODEL_INFER,
            request_serializer=protocol.ModelInferRequest.SerializeToString,
            response_deserializer=protocol.ModelInferResponse.FromString,
        )
        try:
            answer = await method(message, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        index = [output.name for output in answer.outputs].index("probabilities")
        return np.frombuffer(answer.raw_output_contents[index], "<f4").tolist()


async def measure(scale: float) -> list[Row]:
    """Send REQUESTS times `scale` requests, TOGETHER at a time."""
    card = store.find().read_card()
    with serve() as server:
        clients = Clients(server, card)
        samples = await _samples(clients, card)
        draw = random.Random(23)
        ask = functools.partial(_ask, clients, draw, samples)
        outcomes = await traffic.tally(ask, round(REQUESTS * scale), TOGETHER, "identity")
        await clients.close()
    checked = outcomes["own"] + outcomes["mixed up"]
    others = ", ".join(f"{what} {count}" for what, count in sorted(outcomes.items()) if what not in ("own", "mixed up"))
    return [
        Row(f"answers checked, of requests over {len(clients.protocols)} protocols at once",
            f"{checked} of {outcomes.total()}; {others}", "half or more", checked >= outcomes.total() / 2),
        Row("answers that belong to another image", str(outcomes["mixed up"]), "0", not outcomes["mixed up"]),
        Row("requests lost without being cancelled", str(outcomes["lost"]), "0", not outcomes["lost"]),
    ]  # fmt: skip


async def _samples(clients: Clients, card: ModelCard) -> list[Sample]:
    """Return pictures with their answers from an idle service. No two have similar answers. Raises LoadError."""
    samples: list[Sample] = []
    for _, data in tqdm(pictures(IMAGES), desc="identity, alone"):
        sample = Sample(data, decode(data, card.input).pixels.tobytes(), ())
        probabilities = await clients.protocols[0](sample, wire.HUNG_SECONDS)
        if isinstance(probabilities, str):
            raise LoadError(f"expected an answer of the idle service, got {probabilities}")
        if all(_distance(probabilities, known.probabilities) > 10 * TOLERANCE for known in samples):
            samples.append(sample._replace(probabilities=probabilities))
    return samples


async def _ask(clients: Clients, draw: random.Random, samples: Sequence[Sample]) -> str:
    """Send one request and return its outcome in a word or two."""
    ask, sample, kind = draw.choice(clients.protocols), draw.choice(samples), draw.random()
    if kind < 0.1:
        task = asyncio.ensure_future(ask(sample, 30))
        await asyncio.sleep(draw.random() * 0.2)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task
        return "cancelled"
    if kind < 0.2:
        answer = await ask(sample._replace(data=BROKEN, pixels=b"few"), 30)
        return "refused" if isinstance(answer, str) else "mixed up"
    answer = await ask(sample, draw.choice((0.01, 0.05, 0.2)) if kind < 0.3 else 30)
    if isinstance(answer, list):
        return "own" if _distance(answer, sample.probabilities) <= TOLERANCE else "mixed up"
    return "lost" if answer in ("closed", "hung", WRONG_ELSE, "UNAVAILABLE") else f"answered {answer}"


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    return float(np.abs(np.subtract(one, other)).max())
