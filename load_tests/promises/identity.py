"""Does everyone get the answer to their own image, while others cancel, run out of time and send broken files?"""

import asyncio
import base64
import contextlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import grpc
import numpy as np
from open_inference.grpc import protocol
from tqdm import tqdm

from chestct import store
from chestct.card import ModelCard
from chestct.image import decode
from load_tests.images import pictures
from load_tests.promises import wire
from load_tests.promises.results import HUNG_SECONDS, Row
from load_tests.server import Server, serve

IMAGES: Final = 192
REQUESTS: Final = 20_000
TOGETHER: Final = 32
TOLERANCE: Final = 2e-3
"""Between the probabilities of one image in two batches. Images closer than ten times this are dropped."""
INFER: Final = "/v2/models/chestct/infer"
BROKEN: Final = b"\x89PNG\r\n\x1a\nbroken"
BINARY: Final = {"parameters": {"binary_data_output": False}}
WRONG_ELSE: Final = "another outcome"


class Sample(NamedTuple):
    data: bytes
    pixels: bytes
    probabilities: Sequence[float]


class Clients:
    """Asks about samples over each protocol; an answer is the probabilities, or the code of a refusal."""

    def __init__(self, server: Server, card: ModelCard) -> None:
        self._url = server.url
        self._classes = card.classes
        spec = card.input
        self._shape = [1, spec.height, spec.width, spec.channels]
        self._channels = [
            grpc.aio.insecure_channel(server.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(8)
        ]
        self._turn = itertools.count()
        self.protocols = (
            self._raw, self._form, self._batch, self._oip_json, self._oip_binary, self._classify, self._grpc_file,
            self._grpc_pixels,
        )  # fmt: skip

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def _post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Any:
        answer = await wire.exchange(self._url, wire.post(path, body, headers))
        return json.loads(answer.body) if answer.code == "200" else answer.code

    def _of_v1(self, outcome: Any) -> list[float] | str:
        if isinstance(outcome, str):
            return outcome
        if "error" in outcome:
            return str(outcome["error"]["code"])
        return [outcome["probabilities"][name] for name in self._classes]

    async def _raw(self, sample: Sample, seconds: float) -> Any:
        headers = {"Content-Type": "image/png", "X-Request-Timeout": f"{seconds:.3f}"}
        return self._of_v1(await self._post("/v1/predict", sample.data, headers))

    async def _form(self, sample: Sample, seconds: float) -> Any:
        body, kind = _form("image", [sample.data])
        return self._of_v1(await self._post("/v1/predict", body, {**kind, "X-Request-Timeout": f"{seconds:.3f}"}))

    async def _batch(self, sample: Sample, seconds: float) -> Any:
        """Between two broken ones, whose outcomes are looked at too."""
        body, kind = _form("images", [BROKEN, sample.data, BROKEN])
        answer = await self._post("/v1/predict/batch", body, {**kind, "X-Request-Timeout": f"{seconds:.3f}"})
        if isinstance(answer, str):
            return answer
        before, own, after = map(self._of_v1, answer["outcomes"])
        return own if {before, after} <= {"undecodable_image", "overloaded"} else WRONG_ELSE

    async def _oip_json(self, sample: Sample, seconds: float) -> Any:
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(sample.data).decode()]}
        return await self._oip(json.dumps({"inputs": [tensor]}).encode(), {}, seconds)

    async def _oip_binary(self, sample: Sample, seconds: float) -> Any:
        size = {"binary_data_size": len(sample.pixels)}
        tensor = {"name": "pixels", "datatype": "UINT8", "shape": self._shape, "parameters": size}
        head = json.dumps({"inputs": [tensor], **BINARY}).encode()
        return await self._oip(head + sample.pixels, {"Inference-Header-Content-Length": str(len(head))}, seconds)

    async def _oip(self, body: bytes, headers: Mapping[str, str], seconds: float) -> Any:
        answer = await self._post(INFER, body, {**headers, "X-Request-Timeout": f"{seconds:.3f}"})
        if isinstance(answer, str):
            return answer
        return next(output["data"] for output in answer["outputs"] if output["name"] == "probabilities")

    async def _classify(self, sample: Sample, seconds: float) -> Any:
        body = json.dumps({"images": [base64.b64encode(data).decode() for data in (sample.data, BROKEN)]}).encode()
        headers = {"Content-Type": "application/json", "X-Request-Timeout": f"{seconds:.3f}"}
        answer = await self._post("/classify", body, headers)
        return answer if isinstance(answer, str) else self._of_v1(answer[0])

    async def _grpc_file(self, sample: Sample, seconds: float) -> Any:
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [sample.data]}}
        return await self._infer(protocol.ModelInferRequest(model_name="chestct", inputs=[tensor]), seconds)

    async def _grpc_pixels(self, sample: Sample, seconds: float) -> Any:
        tensor = {"name": "pixels", "datatype": "UINT8", "shape": self._shape}
        message = protocol.ModelInferRequest(model_name="chestct", inputs=[tensor], raw_input_contents=[sample.pixels])
        return await self._infer(message, seconds)

    async def _infer(self, message: Any, seconds: float) -> Any:
        channel = self._channels[next(self._turn) % len(self._channels)]
        method = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
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
    card = store.find().read_card()
    with serve() as server:
        clients = Clients(server, card)
        samples = await _samples(clients, card)
        draw = random.Random(23)
        told: Counter[str] = Counter()
        left = iter(range(round(REQUESTS * scale)))
        with tqdm(total=round(REQUESTS * scale), desc="identity") as bar:

            async def ask_on() -> None:
                for _ in left:
                    told[await _ask(clients, draw, samples)] += 1
                    bar.update()

            await asyncio.gather(*(ask_on() for _ in range(TOGETHER)))
        await clients.close()
    checked = told["own"] + told["mixed up"]
    others = ", ".join(f"{what} {count}" for what, count in sorted(told.items()) if what not in ("own", "mixed up"))
    return [
        Row(f"answers checked, of requests over {len(clients.protocols)} protocols at once",
            f"{checked} of {told.total()}; {others}", "half or more", checked >= told.total() / 2),
        Row("answers that belong to another image", str(told["mixed up"]), "0", not told["mixed up"]),
        Row("requests lost without being cancelled", str(told["lost"]), "0", not told["lost"]),
    ]  # fmt: skip


async def _samples(clients: Clients, card: ModelCard) -> list[Sample]:
    """Pictures with what the quiet service says of each, none like another."""
    samples: list[Sample] = []
    for _, data in tqdm(pictures(IMAGES), desc="identity, alone"):
        sample = Sample(data, decode(data, card.input).pixels.tobytes(), ())
        probabilities = await clients.protocols[0](sample, HUNG_SECONDS)
        if all(_distance(probabilities, known.probabilities) > 10 * TOLERANCE for known in samples):
            samples.append(sample._replace(probabilities=probabilities))
    return samples


async def _ask(clients: Clients, draw: random.Random, samples: Sequence[Sample]) -> str:
    """One request and what became of it."""
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
    return "lost" if answer in ("closed", "hung", WRONG_ELSE, "UNAVAILABLE") else f"told {answer}"


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    return float(np.abs(np.subtract(one, other)).max())


def _form(name: str, images: Sequence[bytes]) -> tuple[bytes, dict[str, str]]:
    parts = [
        f'--hold\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n\r\n'.encode() + data + b"\r\n"
        for data in images
    ]
    return b"".join(parts) + b"--hold--\r\n", {"Content-Type": "multipart/form-data; boundary=hold"}
