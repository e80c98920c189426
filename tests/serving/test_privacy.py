"""No content of a request is in the log or the metrics. The tests put a marker in every place that a client fills."""

import base64
import contextlib
import json
import re
import socket
import struct
import zlib
from collections.abc import Iterator
from urllib.parse import quote

import grpc
import httpx
import numpy as np
import pytest
from open_inference.grpc import protocol, service
from pydicom.uid import JPEG2000Lossless

from chestct.image import encode_png
from tests.dicom import dicom_file
from tests.graphs import tiny_picture
from tests.server import Server
from tests.waiting import wait_until

MARKER = "Qx7MarkerQx7Mark"
"""The marker. It is valid base64, too."""
_TRACES = re.compile(
    "|".join(
        [
            "x7marker",
            MARKER.encode().hex(),
            # of its bytes at each place that they can have in base64
            *(base64.b64encode(bytes(shift) + MARKER.encode())[4:16].decode() for shift in range(3)),
        ]
    ),
    re.IGNORECASE,
)
_START = re.compile(r"page: |\S+ \[INFO\] \[entry_service:chestct:\d\] ")
"""Log lines of a worker that starts while another one answers."""
PATHS = (
    *("/v1/predict", "/v1/predict/batch", "/v2/models/chestct/infer", f"/v2/models/{MARKER}/infer", "/classify"),
    *("/v1/model", f"/v2/models/{MARKER}", f"/v2/models/chestct/versions/{MARKER}", "/schema.json", "/docs.json"),
    *("/", "/docs", "/metrics", "/livez", "/readyz", "/page/page.js", f"/page/{MARKER}", f"/page/own/{MARKER}"),
    *(f"/{MARKER}", f"/v1/{MARKER}", f"//{MARKER}", f"/v1/{quote(chr(10) + MARKER)}"),
)
HEADERS = {
    "User-Agent": MARKER,
    "Cookie": f"{MARKER}={MARKER}",
    "Authorization": f"Bearer {MARKER}",
    "Referer": f"http://{MARKER}/",
    "Accept": MARKER,
    "Accept-Encoding": MARKER,
    "traceparent": MARKER,
    "X-Forwarded-For": MARKER,
    MARKER: MARKER,
}
TAKING = PATHS[:5]
FORM = "multipart/form-data; boundary=b"
TYPES = (
    *("image/png", "image/jpeg", "application/dicom", "application/json", FORM, f"text/{MARKER}"),
    *(f"multipart/form-data; boundary={MARKER}", f"application/json; charset={MARKER}"),
)


def png_with_text() -> bytes:
    """A picture with the marker in a text chunk."""
    png = encode_png(tiny_picture(1)[:, :, 0])
    text = b"tEXtComment\0" + MARKER.encode()
    return png[:33] + struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text)) + png[33:]


def form(name: str, filename: str | None, content: bytes) -> bytes:
    file = f'; filename="{filename}"' if filename is not None else ""
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\nContent-Type: {MARKER}\r\n\r\n'
    return head.encode() + content + b"\r\n--b--\r\n"


def infer(**tensor: object) -> bytes:
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [MARKER], **tensor}]
    return json.dumps({"inputs": inputs, "parameters": {MARKER: MARKER}}).encode()


def bodies() -> Iterator[bytes]:
    marked, png = MARKER.encode(), png_with_text()
    levels = np.full((64, 64), 90, np.uint8)
    dicom = dicom_file(levels, PatientName=MARKER, PatientID=MARKER)
    yield from (b"", marked, png, png[:-20], b"\xff\xd8\xff\xfe\0\x20" + marked + bytes(40))
    yield from (dicom, dicom[:-100], dicom_file(levels, JPEG2000Lossless, PatientName=MARKER)[:-300])
    yield from (dicom_file(levels, PatientName=MARKER, Modality=MARKER.upper()), dicom[:400] + marked + dicom[416:])
    yield from (dicom_file(levels, PatientName=MARKER, Rows=None), b"\0" * 128 + b"DICM" + marked)
    in_base64 = base64.b64encode(png).decode()
    for images in ([MARKER], [f"{MARKER}!"], [in_base64, MARKER], MARKER, {MARKER: MARKER}, [5, None], [], [[MARKER]]):
        yield json.dumps({"images": images}).encode()
    yield from (
        json.dumps({MARKER: MARKER}).encode(),
        b'{"images": ["' + marked,
        b'"' + marked + b'"',
        b"\xff" + marked,
    )
    yield json.dumps({"images": [in_base64], MARKER: MARKER}).encode()
    yield from (infer(), infer(name=MARKER), infer(datatype=MARKER), infer(shape=[MARKER]), infer(data=MARKER))
    yield from (infer(parameters={MARKER: MARKER}), infer(data=[{MARKER: MARKER}]), infer(data=None))
    for name, filename in (("image", f"{MARKER}.png"), ("images", f"{MARKER}.dcm"), (MARKER, MARKER), ("image", None)):
        for content in (png, marked):
            yield form(name, filename, content)
    yield from (form("image", "a.png", png)[:-9], marked + form("image", "a.png", png), b"--b\r\n" + marked)


def ask_everything(client: httpx.Client) -> None:
    for path in PATHS:
        for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
            client.request(method, f"{path}?{MARKER}={MARKER}&explain={MARKER}", headers=HEADERS)
            client.request(method, path, headers={**HEADERS, "X-Request-Timeout": MARKER})
    for body in bodies():
        for path in TAKING:
            for media_type in TYPES:
                client.post(path, content=body, headers={**HEADERS, "Content-Type": media_type})
    for path in TAKING:
        for header in ("Content-Encoding", "Inference-Header-Content-Length", "Content-Disposition", "Expect"):
            client.post(path, content=MARKER.encode(), headers={"Content-Type": "application/json", header: MARKER})


def send_raw(server: Server, data: bytes, *, to_grpc: bool = False) -> None:
    """Send these bytes and close the sending half of the connection. The answer is ignored."""
    host, port = (server.grpc if to_grpc else server.url.removeprefix("http://")).split(":")
    with socket.create_connection((host, int(port)), timeout=300) as connection, contextlib.suppress(OSError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass


def raw_requests() -> Iterator[bytes]:
    marked = MARKER.encode()
    yield from (marked, marked + b"\r\n\r\n", b"\x16\x03\x01" + marked, b"GET / HTTP/1.1\r\n" + marked)
    for path in (*TAKING, "/v1/model", f"/{MARKER}", "/livez", "/page/page.js"):
        head = f"POST {path} HTTP/1.1\r\nHost: {MARKER}\r\nContent-Type: application/json\r\n"
        yield f"{head}Content-Length: 900\r\n\r\n{MARKER}".encode()  # half a body
        yield f"{head}Content-Length: 16\r\n\r\n{MARKER}".encode()
        yield f"{head}Transfer-Encoding: chunked\r\n\r\n{MARKER}\r\n".encode()
        yield f"{head}Connection: upgrade\r\nUpgrade: {MARKER}\r\n\r\n".encode()
        yield f"{head}Content-Length: {MARKER}\r\n\r\n{MARKER}".encode()
        yield f"{head}Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: {MARKER}\r\n\r\n".encode()


def ask_over_grpc(channel: grpc.Channel) -> None:
    metadata = (("user-agent", MARKER), ("authorization", f"Bearer {MARKER}"), (MARKER.lower(), MARKER))

    def tensor(content: bytes = MARKER.encode(), **fields: object) -> protocol.ModelInferRequest.InferInputTensor:
        named = {"name": "image", "datatype": "BYTES", "shape": [1], **fields}
        made = protocol.ModelInferRequest.InferInputTensor(**named)
        made.contents.bytes_contents.append(content)
        return made

    parameter = {MARKER: protocol.InferParameter(string_param=MARKER)}
    output = protocol.ModelInferRequest.InferRequestedOutputTensor(name=MARKER)
    named = {"model_name": "chestct"}
    requests = [
        protocol.ModelInferRequest(inputs=[tensor()], **named),
        protocol.ModelInferRequest(inputs=[tensor(png_with_text())], parameters=parameter, **named),
        protocol.ModelInferRequest(
            inputs=[tensor(dicom_file(np.zeros((64, 64), np.uint8), PatientName=MARKER))], **named
        ),
        protocol.ModelInferRequest(inputs=[tensor(name=MARKER)], **named),
        protocol.ModelInferRequest(inputs=[tensor(datatype=MARKER)], **named),
        protocol.ModelInferRequest(inputs=[tensor(parameters=parameter)], **named),
        protocol.ModelInferRequest(inputs=[tensor()], outputs=[output], **named),
        protocol.ModelInferRequest(inputs=[tensor()], raw_input_contents=[MARKER.encode()], **named),
        protocol.ModelInferRequest(
            inputs=[tensor()],
            parameters={"classification": protocol.InferParameter(string_param=MARKER)},
            **named,
        ),
        protocol.ModelInferRequest(model_name=MARKER, model_version=MARKER, inputs=[tensor()]),
    ]
    stub = service.GRPCInferenceServiceStub(channel)
    asked = [(stub.ModelInfer, request) for request in requests]
    asked += [(stub.ModelReady, protocol.ModelReadyRequest(name=MARKER, version=MARKER))]
    asked += [(stub.ModelMetadata, protocol.ModelMetadataRequest(name=MARKER))]
    for method in (f"/{MARKER}/{MARKER}", f"/inference.GRPCInferenceService/{MARKER}"):
        asked.append((channel.unary_unary(method), MARKER.encode()))
    asked.append((channel.unary_unary("/inference.GRPCInferenceService/ModelInfer"), b"\xff" + MARKER.encode()))
    for call, request in asked:
        with contextlib.suppress(grpc.RpcError):
            call(request, metadata=metadata, timeout=300)


def wait_for(server: Server, request_id: str) -> None:
    """Wait until the line of a request is in the log. Each worker writes its lines in order."""
    wait_until(lambda: f'"{request_id}"' in server.log.read_text(encoding="utf-8"), f"the line of {request_id}")


def test_no_content_of_any_request_is_in_the_log_or_the_metrics_and_each_line_is_json(server: Server) -> None:
    start = server.log.stat().st_size
    with httpx.Client(base_url=server.url, timeout=300) as client:
        ask_everything(client)
    for data in raw_requests():
        send_raw(server, data)
    for data in (MARKER.encode(), f"GET /{MARKER} HTTP/1.1\r\n\r\n".encode(), b"\x16\x03\x01" + MARKER.encode()):
        send_raw(server, data, to_grpc=True)
    with grpc.insecure_channel(server.grpc) as channel:
        ask_over_grpc(channel)
    for number in range(20):  # so that each worker has written a later line
        httpx.get(f"{server.url}/v1/model", headers={"X-Request-ID": f"privacy-{number}"}, timeout=300)
        wait_for(server, f"privacy-{number}")
    with server.log.open("rb") as log:
        log.seek(start)
        lines = log.read().decode().splitlines()
    assert len(lines) > 1000
    assert [line for line in lines if _TRACES.search(line)] == []
    assert [line for line in lines if not (_START.match(line) or isinstance(json.loads(line), dict))] == []
    assert not _TRACES.search(httpx.get(f"{server.url}/metrics", timeout=300).text)


@pytest.mark.parametrize("text", [f"a {MARKER} b", base64.b64encode(f"ab{MARKER}".encode()).decode(), MARKER.upper()])
def test_the_marker_would_be_found(text: str) -> None:
    assert _TRACES.search(text)
