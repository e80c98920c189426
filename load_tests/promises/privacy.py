"""Searches the log and the metrics for anything that requests hold."""

import asyncio
import contextlib
import json
import re
import zlib
from io import BytesIO
from typing import Final

import grpc
import httpx
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from load_tests import payloads, wire
from load_tests.promises.results import Row
from load_tests.server import Server, serve

MARKER: Final = "Mrkr{:03}Quux"
FOUND: Final = re.compile(r"Mrkr(\d{3})Quux", re.IGNORECASE)
JSON: Final = {"Content-Type": "application/json"}


class Markers:
    """Makes markers. Each is used in one place of one request."""

    def __init__(self) -> None:
        self.places: list[str] = []

    def at(self, place: str) -> str:
        """Return a new marker for the place of this name."""
        self.places.append(place)
        return MARKER.format(len(self.places) - 1)


async def measure(scale: float) -> list[Row]:
    """Send each request once; `scale` has no effect."""
    markers = Markers()
    with serve() as server:
        for request in requests_over_http(markers):
            await wire.exchange(server.url, request)
        await _grpc(server, markers)
        await asyncio.sleep(2)  # the log line is written after the answer
        metrics = httpx.get(f"{server.url}/metrics", timeout=60).text
    log = server.log.read_text(encoding="utf-8", errors="replace")
    found = sorted({markers.places[int(number)] for number in FOUND.findall(log + metrics)})
    other = [line for line in log.splitlines() if line.startswith(("Traceback", "  File"))]
    count = len(markers.places)
    return [
        Row(f"of {count} places of content, those found in log or metrics", ", ".join(found) or "0", "0", not found),
        Row("lines of tracebacks in the log", str(len(other)), "0", not other),
    ]


def requests_over_http(markers: Markers) -> list[bytes]:
    at = markers.at

    def post(path: str, body: bytes | str, headers: dict[str, str]) -> bytes:
        return wire.post(path, body.encode() if isinstance(body, str) else body, headers)

    def tensor(**changed: object) -> str:
        return json.dumps({"inputs": [{**payloads.IMAGE, "data": ["AAAA"], **changed}]})

    form = {"Content-Type": "multipart/form-data; boundary=b"}
    part = '--b\r\nContent-Disposition: form-data; name="{}"; filename="{}"\r\n\r\n{}\r\n--b--\r\n'
    picture = _png(at("PNG text"))
    return [
        post("/v1/predict", at("raw body"), {"Content-Type": "image/png"}),
        post("/v1/predict", picture, {"Content-Type": "image/png"}),
        post("/v1/predict", _jpeg(at("JPEG comment")), {"Content-Type": "image/jpeg"}),
        post("/v1/predict", bytes(128) + b"DICM" + at("DICOM header").encode(), {"Content-Type": "application/dicom"}),
        post("/v1/predict", part.format(at("form field"), "a", "b"), form),
        post("/v1/predict", part.format("image", at("file name"), "b"), form),
        post("/v1/predict", part.format("image", "a", at("form file")), form),
        post("/v1/predict/batch", part.format("images", at("batch file name"), at("batch file")), form),
        post("/v1/predict", picture, {"Content-Type": f"image/png; x={at('content type')}"}),
        post("/v1/predict", picture, {"Content-Type": at("another content type")}),
        post("/v1/predict", picture, {"Content-Encoding": at("content encoding")}),
        post("/v1/predict", picture, {"X-Request-Timeout": at("timeout")}),
        post("/v1/predict", picture, {"User-Agent": at("user agent"), "Cookie": at("cookie")}),
        post("/v1/predict", picture, {"Authorization": f"Bearer {at('key')}", "Referer": at("referer")}),
        post(f"/v1/predict?{at('query name')}=1", picture, {}),
        post(f"/v1/predict?explain={at('query value')}", picture, {}),
        post(f"/v1/{at('path')}", b"", {}),
        post(f"/{at('lost path')}", b"", {}),
        post(f"/page/{at('page path')}", b"", {}),
        post(f"/v2/models/{at('model name')}/infer", tensor(), JSON),
        post(payloads.INFER, at("JSON"), JSON),
        post(payloads.INFER, tensor(name=at("tensor name")), JSON),
        post(payloads.INFER, tensor(datatype=at("datatype")), JSON),
        post(payloads.INFER, tensor(data=[at("tensor data") + "!"]), JSON),
        post(payloads.INFER, tensor(parameters={at("parameter name"): 1, "binary_data_size": at("parameter")}), JSON),
        post(payloads.INFER, tensor(), {payloads.JSON_LENGTH: at("header length")}),
        post("/classify", at("classify body"), JSON),
        post("/classify", json.dumps({"images": [at("classify image") + "!"]}), JSON),
        post("/classify", json.dumps({"images": ["AAAA"], at("classify field"): at("classify value")}), JSON),
        post("/classify", json.dumps({"images": at("classify text")}), JSON),
        post("/classify", json.dumps({"images": [{"a": at("classify object")}]}), JSON),
        f"GET / HTTP/1.1\r\nHost: {at('host')}\r\n{at('broken line')}\r\n\r\n".encode(),
        f"{at('method')} / HTTP/9.9\r\n\r\n".encode(),
    ]


async def _grpc(server: Server, markers: Markers) -> None:
    at = markers.at
    tensor = {**payloads.IMAGE, "contents": {"bytes_contents": [b"A"]}}

    def message(**changed: object) -> bytes:
        return bytes(payloads.message(**{"inputs": [tensor], **changed}).SerializeToString())

    calls = [
        message(model_name=at("gRPC model")),
        message(inputs=[{**tensor, "name": at("gRPC tensor")}]),
        message(inputs=[{**tensor, "datatype": at("gRPC datatype")}]),
        message(inputs=[{**tensor, "contents": {"bytes_contents": [at("gRPC data").encode()]}}]),
        message(parameters={at("gRPC parameter"): {"string_param": at("gRPC value")}}),
        message(parameters={"classification": {"string_param": at("gRPC classification")}}),
        at("gRPC message").encode(),
    ]
    async with grpc.aio.insecure_channel(server.grpc) as channel:
        for name in ("ModelInfer", at("gRPC method")):
            method = channel.unary_unary(f"/inference.GRPCInferenceService/{name}")
            for call in calls:
                metadata = (("other", at("gRPC metadata")), ("authorization", at("gRPC key")))
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await method(call, metadata=metadata, timeout=60)


def _png(text: str) -> bytes:
    """Return a PNG file with a text chunk, and another chunk that is broken."""
    file = BytesIO()
    info = PngInfo()
    info.add_text("Patient", text)
    Image.new("L", (64, 64), 90).save(file, "PNG", pnginfo=info)
    png = file.getvalue()
    bad = b"\0\0\0\4tEXtabcd" + zlib.crc32(b"other").to_bytes(4, "big")
    return png[:33] + bad + png[33:]


def _jpeg(comment: str) -> bytes:
    """Return a truncated JPEG file with a comment."""
    file = BytesIO()
    Image.new("L", (64, 64), 90).save(file, "JPEG", comment=comment.encode())
    return file.getvalue()[:-20]
