"""Sends wrong input of many kinds over every protocol. Each must be answered, and the service must stay up."""

import base64
import copy
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import grpc

from load_tests import payloads, traffic, wire
from load_tests.images import pictures
from load_tests.promises.results import Row, memory_row
from load_tests.server import Server, serve

REQUESTS: Final = 20_000
TOGETHER: Final = 24
JSON: Final = {"Content-Type": "application/json"}
FAILURES: Final = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS"})
"""gRPC codes of server errors, like HTTP's 5xx."""

_ODD: Final[Sequence[Any]] = (
    None, True, -1, 0, 10**400, 2**63, 1.5, -0.0, 1e308, float("nan"), "", "a" * 5000, "\ud800", "é\0\n",
    [], {}, [[[[[]]]]], [[1, 2], [3]], {"a": {"b": {}}}, ["x"] * 200, list(range(300)),
)  # fmt: skip
_NUMBERS: Final = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"9" * 30, b"-1")
_PATHS: Final = (
    "/v1/predict", "/v1/predict/batch", "/v1/model", payloads.INFER, "/classify", "/page/index.html", "/", "/docs",
)  # fmt: skip
_METHODS: Final = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "TRACE", "PATCH", "BREW")
_HEADERS: Final = (
    "Content-Type", "Content-Encoding", "Accept", "Authorization", "X-Request-ID", "X-Request-Timeout", "Expect",
    payloads.JSON_LENGTH, "Range", "If-None-Match", "Cookie", "traceparent",
)  # fmt: skip
_NAMES: Final = ("explain", "binary_data_output", "unknown")
"""Names of parameters in a query or a message."""


class Fuzzer:
    """Draws random requests and sends them."""

    def __init__(self, server: Server, channels: Sequence[grpc.aio.Channel], seed: int) -> None:
        self._url = server.url
        self._channels = channels
        self._random = random.Random(seed)
        self._files = [data for _, data in pictures(16)]
        self._kinds: Sequence[Callable[[], Awaitable[str]]] = (
            self._picture, self._form, self._query, self._oip_json, self._oip_binary, self._classify, self._head,
            self._octets, self._grpc_octets, self._grpc_fields, self._grpc_method,
        )  # fmt: skip

    async def ask(self) -> tuple[str, str]:
        """Send one request. Returns its kind and the code of its answer."""
        kind = self._random.choice(self._kinds)
        return kind.__name__.strip("_"), await kind()

    def _mutate(self, data: bytes) -> bytes:
        draw = self._random
        changed = bytearray(data)
        for _ in range(draw.choice((0, 1, 1, 2, 4, 16))):
            at = draw.randrange(len(changed) + 1)
            end = min(len(changed), at + draw.choice((1, 2, 8, 64, 1024)))
            match draw.randrange(6):
                case 0:
                    changed[at:end] = bytes(byte ^ 1 << draw.randrange(8) for byte in changed[at:end])
                case 1:
                    del changed[at:end]
                case 2:
                    changed[at:at] = changed[at:end] * draw.choice((1, 4, 64))
                case 3:
                    changed[at:end] = draw.randbytes(end - at)
                case 4:
                    changed[at:at] = draw.choice(_NUMBERS)
                case _:
                    del changed[at if draw.random() < 0.3 else len(changed) :]
        return bytes(changed)

    def _mutate_document(self, document: Any) -> bytes:
        """Return the JSON of the document with some values removed or replaced."""
        changed = copy.deepcopy(document)
        for _ in range(self._random.choice((1, 1, 2, 3))):
            place: Any = changed
            while True:
                keys = list(place) if isinstance(place, dict) else list(range(min(len(place), 50)))
                if not keys:
                    break
                key = self._random.choice(keys)
                if isinstance(place[key], dict | list) and place[key] and self._random.random() < 0.7:
                    place = place[key]
                    continue
                if self._random.random() < 0.2:
                    del place[key]
                else:
                    place[key] = copy.deepcopy(self._random.choice(_ODD))
                break
        text = json.dumps(changed).encode()
        return self._mutate(text) if self._random.random() < 0.2 else text

    async def _post(self, path: str, body: bytes, headers: dict[str, str]) -> str:
        return (await wire.exchange(self._url, wire.post(path, body, headers))).code

    async def _picture(self) -> str:
        kind = self._random.choice(("image/png", "image/jpeg", "application/dicom", "text/plain", ""))
        return await self._post("/v1/predict", self._mutate(self._random.choice(self._files)), {"Content-Type": kind})

    async def _form(self) -> str:
        path, name = self._random.choice((("/v1/predict", "image"), ("/v1/predict/batch", "images")))
        head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n\r\n'.encode()
        body = self._mutate(head) + self._random.choice(self._files) + self._mutate(b"\r\n--b--\r\n")
        kind = self._mutate(b"multipart/form-data; boundary=b").decode("latin-1").replace("\r", "").replace("\n", "")
        return await self._post(path, body, {"Content-Type": kind})

    async def _query(self) -> str:
        draw = self._random
        pairs = [
            (draw.choice(_NAMES), str(draw.choice(_ODD))[:2000].encode("utf-8", "replace").hex("%", 1))
            for _ in range(3)
        ]
        query = "&".join(f"{name}={'%' if value else ''}{value}" for name, value in pairs)
        return await self._post(f"/v1/predict?{query}", draw.choice(self._files), {"Content-Type": "image/png"})

    async def _oip_json(self) -> str:
        image = base64.b64encode(self._random.choice(self._files)).decode()
        tensor = {**payloads.IMAGE, "data": [image], "parameters": {}}
        outputs = [{"name": "label", "parameters": {"binary_data": False}}]
        document = {"id": "a", "inputs": [tensor], "outputs": outputs, "parameters": {"binary_data_output": False}}
        return await self._post(payloads.INFER, self._mutate_document(document), JSON)

    async def _oip_binary(self) -> str:
        raw = self._random.choice(self._files)
        size = self._random.choice((len(raw), len(raw) + 4, 0, -1, 10**400))
        tensor = {**payloads.IMAGE, "parameters": {"binary_data_size": size}}
        head = self._mutate_document({"inputs": [tensor]})
        length = self._random.choice((str(len(head)), "0", "-1", "9" * 400, "x"))
        body = head + len(raw).to_bytes(4, "little") + raw
        return await self._post(payloads.INFER, body, {payloads.JSON_LENGTH: length})

    async def _classify(self) -> str:
        images = [base64.b64encode(self._random.choice(self._files)).decode()]
        return await self._post("/classify", self._mutate_document({"images": images}), JSON)

    async def _head(self) -> str:
        draw = self._random
        lines = [f"{draw.choice(_METHODS)} {draw.choice(_PATHS)} HTTP/1.1", "Host: chestct"]
        lines += [f"{draw.choice(_HEADERS)}: {str(draw.choice(_ODD))[:3000]}".replace("\n", " ") for _ in range(4)]
        head = "\r\n".join(lines).encode("utf-8", "replace")
        length = draw.choice((b"0", b"0", b"5", b"-1", b"9" * 40))
        head = (self._mutate(head) if draw.random() < 0.3 else head) + b"\r\nContent-Length: " + length + b"\r\n\r\n"
        return (await wire.exchange(self._url, head + b"12345")).code

    async def _octets(self) -> str:
        if self._random.random() < 0.9:  # an unfinished head lasts until its timeout, so only a few are sent
            return await self._head()
        return (await wire.exchange(self._url, self._random.randbytes(200))).code

    async def _call(self, method: str, message: bytes, metadata: Sequence[tuple[str, str]] = ()) -> str:
        ask = self._random.choice(self._channels).unary_unary(method)
        try:
            await ask(message, timeout=wire.HUNG_SECONDS, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return "hung"
            if error.code() is grpc.StatusCode.UNAVAILABLE and "not_ready" not in (error.details() or ""):
                return "closed"
            return str(error.code().name)
        return "OK"

    async def _grpc_octets(self) -> str:
        message = payloads.image_message(self._random.choice(self._files))
        return await self._call(payloads.MODEL_INFER, self._mutate(message.SerializeToString()))

    async def _grpc_fields(self) -> str:
        draw = self._random
        message = payloads.image_message(self._random.choice(self._files))
        tensor = message.inputs[0]
        for _ in range(draw.choice((1, 2, 3))):
            match draw.randrange(9):
                case 0:
                    tensor.shape[:] = [draw.choice((-1, 0, 2, 2**62)) for _ in range(draw.randrange(5))]
                case 1:
                    tensor.datatype = draw.choice(("UINT8", "FP32", "", "é" * 3000))
                case 2:
                    tensor.name = draw.choice(("pixels", "", "x" * 100_000))
                case 3:
                    message.parameters[draw.choice(_NAMES)].string_param = draw.choice(("", "nan", "9" * 400))
                case 4:
                    message.parameters["unknown"].double_param = draw.choice((1e308, float("nan"), -0.0))
                case 5:
                    message.raw_input_contents.append(draw.randbytes(draw.choice((0, 3, 65536))))
                case 6:
                    tensor.contents.uint_contents.extend([draw.randrange(2**32)] * draw.choice((1, 10_000)))
                case 7:
                    message.outputs.add(name=draw.choice(("label", "heatmaps", "preview", "nothing")))
                case _:
                    message.id = draw.choice(("", "x" * 300, "é", "a\nb"))
        return await self._call(payloads.MODEL_INFER, message.SerializeToString())

    async def _grpc_method(self) -> str:
        draw = self._random
        service = draw.choice(("inference.GRPCInferenceService", "grpc.health.v1.Health", "none.Such"))
        method = draw.choice(("ModelReady", "ModelMetadata", "ServerMetadata", "ModelInfer", "Check", "Nothing"))
        metadata = [(draw.choice(("x-request-id", "authorization", "other")), draw.choice(("", "a" * 500, "~ !")))]
        return await self._call(f"/{service}/{method}", draw.randbytes(draw.randrange(40)), metadata)


async def measure(scale: float) -> list[Row]:
    """Send REQUESTS times `scale` wrong requests, TOGETHER at a time."""
    with serve() as server:
        before = set(server.workers())
        channels = [payloads.channel(server.grpc) for _ in range(8)]
        fuzzer = Fuzzer(server, channels, seed=19)
        with traffic.each_second(server.memory) as memory:
            codes = await traffic.tally(fuzzer.ask, round(REQUESTS * scale), TOGETHER, "fuzz")
        for channel in channels:
            await channel.close()
        crashed = len(before - server.workers().keys())
    failed = {key: count for key, count in codes.items() if is_failure(key[1])}
    failures = ", ".join(f"{kind} {code}: {count}" for (kind, code), count in failed.items())
    answers = Counter[str]()
    for (_, code), count in codes.items():
        answers[code] += count
    kinds = len({kind for kind, _ in codes})
    hung = answers["hung"]
    measured = ", ".join(f"{code} {count}" for code, count in sorted(answers.items()))
    return [
        Row(f"{codes.total()} wrong requests of {kinds} kinds", measured, "an answer each", True),
        Row("failures of the service (5xx but 503)", failures or "0", "0", not failed),
        Row("requests without an answer in a minute", str(hung), "0", not hung),
        Row("workers that ended", str(crashed), "0", not crashed),
        memory_row(memory),
    ]


def is_failure(code: str) -> bool:
    """Whether an HTTP status or gRPC code is a failure of the service. 503 only says that it is not ready."""
    return code in FAILURES or (code.startswith("5") and code != "503")
