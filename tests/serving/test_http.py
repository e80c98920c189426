import asyncio
import base64
import contextlib
import json
import logging
import math
import threading
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from starlette.applications import Starlette
from starlette.types import Message

from chestct.card import DISCLAIMER, ModelCard
from chestct.engine import Engine, Scores
from chestct.image import encode_png
from chestct.prediction import RULES, WARNINGS
from chestct.store import GRAPH
from serving import http
from serving.classifier import Classifier
from serving.memory_budget import OF_A_REQUEST, Holder, MemoryBudget
from serving.middleware import RequestRecording
from serving.oip_http import JSON_LENGTH
from serving.rendered import Rendered
from serving.settings import Settings
from tests.graphs import tiny_model, tiny_picture

TAG = "chestct:abc"
LIMIT = 64 * 1024
SETTINGS = Settings(max_body_bytes=LIMIT, max_images=4, queue_size=4, largest_batch=2, request_timeout=5)


class Gate:
    """The tiny model behind a gate: while it is closed, a batch that came in stays in."""

    largest_batch = 2

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.open = threading.Event()
        self.open.set()
        self.images = 0
        self.fails = False

    def infer(self, pixels: NDArray[np.uint8]) -> Scores:
        assert self.open.wait(10)
        if self.fails:
            raise RuntimeError("secret of the engine")
        self.images += len(pixels)
        return self._engine.infer(pixels)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Gate, ModelCard]:
    folder = tmp_path_factory.mktemp("model")
    card = tiny_model(folder)
    return Gate(Engine(folder / GRAPH, threads=1, batch_sizes=(1, 2))), card


@contextlib.asynccontextmanager
async def running(model: tuple[Any, ModelCard], settings: Settings = SETTINGS) -> AsyncIterator[Starlette]:
    app = http.create_app(settings)
    classifier = Classifier(*model, TAG, settings)
    await classifier.warm_up()
    app.state.classifier = classifier
    yield app
    await classifier.close()


class Client:
    """Asks an app that runs in this client's own event loop."""

    def __init__(self, app: Starlette, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._app = RequestRecording(app)
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://test")

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        return self._loop.run_until_complete(self._client.request(method, path, **arguments))

    def raw(
        self, method: str, path: str, headers: Sequence[tuple[str, str]] = (), body: bytes = b"", query: str = ""
    ) -> httpx.Response:
        """As a server hands it on, whatever httpx thinks of it."""
        return self._loop.run_until_complete(self._raw(method, path, headers, body, query))

    async def _raw(
        self, method: str, path: str, headers: Sequence[tuple[str, str]], body: bytes, query: str
    ) -> httpx.Response:
        scope = {
            "type": "http",
            "http_version": "1.1",
            "scheme": "http",
            "server": ("test", 80),
            "root_path": "",
            "method": method,
            "path": path,
            "query_string": query.encode("latin-1"),
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
        }
        parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Message] = []

        async def receive() -> Message:
            return parts.pop() if parts else await asyncio.Event().wait()  # type: ignore[return-value] # never

        async def send(message: Message) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        content = b"".join(message.get("body", b"") for message in sent)
        return httpx.Response(sent[0]["status"], headers=sent[0]["headers"], content=content)

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return self.request("GET", path, **arguments)

    def post(self, path: str, **arguments: Any) -> httpx.Response:
        return self.request("POST", path, **arguments)


@pytest.fixture(scope="module")
def client(model: tuple[Gate, ModelCard]) -> Iterator[Client]:
    app = http.create_app(SETTINGS)
    with asyncio.Runner() as runner:
        classifier = Classifier(*model, TAG, SETTINGS)  # type: ignore[arg-type]
        runner.run(classifier.warm_up())
        app.state.classifier = classifier
        app.state.document = Rendered({"openapi": "3.1.0"})
        yield Client(app, runner.get_loop())
        runner.run(classifier.close())


def png(label: int = 1) -> bytes:
    return encode_png(tiny_picture(label)[:, :, 0])


def jpeg(label: int = 1) -> bytes:
    buffer = BytesIO()
    Image.fromarray(tiny_picture(label)[:, :, 0]).save(buffer, format="JPEG")
    return buffer.getvalue()


def huge_png(side: int = 10_000) -> bytes:
    """A hundred megapixels of black in about ten kilobytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes((1, 0, 0, 0, 0))
    rows = zlib.compress(bytes(side * (side // 8 + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def files(name: str, *contents: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [(name, (f"{index}.png", content)) for index, content in enumerate(contents)]


def form_of(name: str, content: bytes) -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="a"\r\n\r\n'
    return head.encode() + content + b"\r\n--b--\r\n"


def assert_error(response: httpx.Response, status: int, code: str, *words: str) -> None:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "request_id"}
    assert body["error"]["code"] == code
    assert body["error"]["request_id"] == response.headers["X-Request-ID"]
    for word in words:
        assert word in body["error"]["message"]


@pytest.mark.parametrize(
    "media_type",
    [
        *("image/png", "image/jpeg", "image/jpg", "image/pjpeg", "image/heic", "image/svg+xml", "Image/PNG", "image/*"),
        *("application/octet-stream", "application/dicom", "application/x-raw-disk-image", "application/zip"),
        *("text/plain; charset=undefined", "", ";;", "nonsense", " image/png ", b"\xff\xfe"),
    ],
)
@pytest.mark.parametrize("encode", [png, jpeg])
def test_a_raw_image_is_answered_whatever_it_is_called(client: Client, encode: Any, media_type: str | bytes) -> None:
    response = client.post("/v1/predict", content=encode(), headers={"Content-Type": media_type})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert set(answer) == {
        *("request_id", "decision", "label", "confidence", "probabilities", "ood_score", "prediction_set"),
        *("between", "reasons", "warnings", "model", "disclaimer"),
    }
    assert answer["label"] == "large_cell_carcinoma"
    assert answer["confidence"] == answer["probabilities"]["large_cell_carcinoma"]
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-6)
    assert (answer["model"], answer["disclaimer"]) == (TAG, DISCLAIMER)


def test_a_form_is_answered_like_the_raw_image(client: Client) -> None:
    form = client.post("/v1/predict", files=files("image", png())).json()
    raw = client.post("/v1/predict", content=png(), headers={"Content-Type": "image/png"}).json()
    assert {**form, "request_id": ""} == {**raw, "request_id": ""}


def test_a_rejected_image_has_a_null_label(client: Client) -> None:
    white = encode_png(np.full((32, 32), 255, np.uint8))
    answer = client.post("/v1/predict", files=files("image", white)).json()
    assert (answer["decision"], answer["label"], answer["confidence"]) == ("reject", None, None)
    assert answer["reasons"] == ["out_of_distribution"]


def test_a_picture_that_breaks_rules_on_the_input_is_rejected_with_each_in_words(client: Client) -> None:
    strip = Image.merge("RGB", [Image.fromarray(tiny_picture(0)[:, :, 0]).resize((200, 20))] * 3)
    strip.paste((255, 0, 0), (0, 0, 100, 20))
    buffer = BytesIO()
    strip.save(buffer, "PNG")
    answer = client.post("/v1/predict", files=files("image", buffer.getvalue())).json()
    assert (answer["decision"], answer["label"]) == ("reject", None)
    assert answer["reasons"] == ["not_grey", "extreme_aspect"]
    words = client.get("/v1/model").json()["rules"]
    assert "a CT slice is grey" in words["not_grey"]


def test_a_close_call_names_both_classes(client: Client) -> None:
    both = np.maximum(tiny_picture(0), tiny_picture(3))[:, :, 0]
    answer = client.post("/v1/predict", files=files("image", encode_png(both))).json()
    assert (answer["decision"], answer["reasons"]) == ("refer", ["two_cancers"])
    assert set(answer["between"]) == {"adenocarcinoma", "squamous_cell_carcinoma"}


def test_an_explanation_is_given_on_request(client: Client) -> None:
    explained = client.post("/v1/predict?explain=true", files=files("image", png())).json()
    assert set(explained["heatmaps"]) == set(explained["probabilities"])
    assert "preview" in explained
    plain = client.post("/v1/predict?explain=false", files=files("image", png())).json()
    assert not {"heatmaps", "preview"} & set(plain)


@pytest.mark.parametrize("query", ["explain=yes", "explain=", "explain=true&explain=true", "explian=true"])
def test_a_bad_query_is_refused(client: Client, query: str) -> None:
    response = client.post(f"/v1/predict?{query}", files=files("image", png()))
    assert_error(response, 400, "invalid_query", "expected", "got")


def test_a_request_id_is_echoed_everywhere(client: Client) -> None:
    response = client.post("/v1/predict", files=files("image", png()), headers={"X-Request-ID": "abc-1"})
    assert response.headers["X-Request-ID"] == response.json()["request_id"] == "abc-1"


@pytest.mark.parametrize("wanted", ["", "x" * 129, "tab\there", "caf\u00e9".encode("latin-1")])
def test_a_request_id_that_can_t_be_trusted_is_replaced(client: Client, wanted: str | bytes) -> None:
    response = client.get("/v1/model", headers={"X-Request-ID": wanted})
    assert len(response.headers["X-Request-ID"]) == 32


@pytest.mark.parametrize(
    ("body", "status", "code", "word"),
    [
        (b"", 400, "empty_body", "empty"),
        (b"this is text", 422, "undecodable_image", "12 bytes"),
        (png()[:-30], 422, "undecodable_image", "truncated"),
        (jpeg()[:-30], 422, "undecodable_image", "runcated"),
        (huge_png(), 413, "image_too_large", "at most 16777216 pixels"),
    ],
    ids=["empty", "text", "truncated PNG", "truncated JPEG", "100 megapixels"],
)
def test_a_bad_image_is_refused_and_the_next_good_one_answered(
    client: Client, body: bytes, status: int, code: str, word: str
) -> None:
    response = client.post("/v1/predict", content=body, headers={"Content-Type": "application/octet-stream"})
    assert_error(response, status, code, "expected" if code != "undecodable_image" else "", word)
    if body:
        assert_error(client.post("/v1/predict", files=files("image", body)), status, code, word)
    assert client.post("/v1/predict", files=files("image", png())).status_code == 200


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"files": files("picture", png())}, ("'image'", "'picture'")),
        ({"files": files("image", png(), png())}, ("got more",)),
        ({"files": [("image", (None, b"text"))]}, ("'image'", "file", "text")),
        ({"files": [*files("image", png()), ("note", (None, b"text"))]}, ("'note'",)),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, ("boundary",)),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, ("'image'",)),
        ({"content": b"--b--\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, ("got none",)),
    ],
    ids=["name", "two", "text", "stray", "no boundary", "no form", "no field"],
)
def test_a_bad_form_is_refused(client: Client, request_: dict[str, Any], words: tuple[str, ...]) -> None:
    assert_error(client.post("/v1/predict", **request_), 400, "invalid_form", "expected", *words)


NO_IMAGE = (
    *("application/json", "application/x-www-form-urlencoded", "text/html; charset=idna", "Application/XML"),
    *("application/dicom+json", "multipart/mixed; boundary=b"),
)


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        *(("/v1/predict", media_type) for media_type in NO_IMAGE),
        *(("/v1/predict/batch", media_type) for media_type in (*NO_IMAGE, "image/png", "text/plain", "x" * 9000)),
    ],
)
def test_another_content_type_is_refused(client: Client, path: str, media_type: str) -> None:
    response = client.post(path, content=png(), headers={"Content-Type": media_type})
    named = media_type.partition(";")[0].lower()[:64]
    assert_error(response, 415, "unsupported_media_type", "multipart/form-data", f"got {named}")
    assert ("curl" in response.text) == ("urlencoded" in media_type)


@pytest.mark.parametrize("kind", ["raw", "form", "batch", "protocol"])
@pytest.mark.parametrize(
    ("headers", "encoding"),
    [
        ([("Content-Encoding", "gzip")], "gzip"),
        ([("Content-Encoding", "GZIP, identity")], "GZIP"),
        ([("Content-Encoding", "identity"), ("Content-Encoding", " br ")], "br"),
        ([("Content-Encoding", "x" * 9000)], "x" * 64),
        ([("Transfer-Encoding", "gzip, chunked")], "gzip"),
    ],
)
def test_a_compressed_body_is_refused_by_name(
    client: Client, kind: str, headers: list[tuple[str, str]], encoding: str
) -> None:
    response = ask_in_kind(client, kind, headers)
    assert response.status_code == 415
    assert "unsupported_encoding" in response.text
    assert f'got {encoding}"' in response.text


@pytest.mark.parametrize("kind", ["raw", "form", "batch", "protocol"])
@pytest.mark.parametrize("encoding", ["identity", "Identity", " IDENTITY ", "", "identity, identity"])
def test_a_body_that_is_said_not_to_be_compressed_is_read(client: Client, kind: str, encoding: str) -> None:
    assert ask_in_kind(client, kind, [("Content-Encoding", encoding)]).status_code == 200


def ask_in_kind(client: Client, kind: str, headers: list[tuple[str, str]]) -> httpx.Response:
    """The same picture as each kind of body."""
    if kind == "raw":
        return client.post("/v1/predict", content=png(), headers=headers)
    if kind == "form":
        return client.post("/v1/predict", files=files("image", png()), headers=headers)
    if kind == "batch":
        return client.post("/v1/predict/batch", files=files("images", png()), headers=headers)
    headers = [*headers, (JSON_LENGTH, "0")]
    return client.post("/v2/models/chestct/infer", content=png(), headers=headers)


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/predict/batch"])
def test_a_body_over_the_limit_is_refused_by_its_announced_length(client: Client, path: str) -> None:
    response = client.post(path, files=files("images", bytes(LIMIT)))
    assert_error(response, 413, "body_too_large", f"at most {LIMIT} bytes")


def test_a_body_over_the_limit_is_refused_before_it_is_read_to_its_end(model: tuple[Gate, ModelCard]) -> None:
    async def run() -> tuple[httpx.Response, int]:
        sent = 0

        async def body() -> AsyncIterator[bytes]:
            nonlocal sent
            for _ in range(100):
                sent += LIMIT // 4
                yield bytes(LIMIT // 4)

        async with running(model) as app:
            transport = httpx.ASGITransport(RequestRecording(app))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                response = await client.post("/v1/predict", content=body(), headers={"Content-Type": "image/png"})
        return response, sent

    response, sent = asyncio.run(run())
    assert_error(response, 413, "body_too_large", f"at most {LIMIT} bytes")
    assert sent <= 2 * LIMIT


def test_a_batch_has_one_outcome_an_image_in_order(client: Client) -> None:
    response = client.post("/v1/predict/batch", files=files("images", png(2), b"text", png(0)))
    assert response.status_code == 200
    first, second, third = response.json()["outcomes"]
    assert (first["label"], third["label"]) == ("normal", "adenocarcinoma")
    assert second["error"]["code"] == "undecodable_image"
    assert response.json()["disclaimer"] == DISCLAIMER
    ids = {first["request_id"], second["error"]["request_id"], response.json()["request_id"]}
    assert ids == {response.headers["X-Request-ID"]}


def test_a_batch_may_be_longer_than_the_queue(model: tuple[Gate, ModelCard]) -> None:
    settings = SETTINGS.model_copy(update={"max_images": 64, "max_body_bytes": 1 << 20})
    app_files = files("images", *(png(index % 4) for index in range(40)))

    async def run() -> httpx.Response:
        async with running(model, settings) as app:
            transport = httpx.ASGITransport(RequestRecording(app))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.post("/v1/predict/batch", files=app_files)

    labels = [outcome.get("label") for outcome in asyncio.run(run()).json()["outcomes"]]
    assert labels == [model[1].classes[index % 4] for index in range(40)]


@pytest.mark.parametrize("count", [0, 5])
def test_a_batch_of_no_or_too_many_images_is_refused(client: Client, count: int) -> None:
    request: dict[str, Any] = {"files": files("images", *[png()] * count)}
    if not count:
        request = {"content": b"--b--\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}
    assert_error(client.post("/v1/predict/batch", **request), 400, "invalid_form", "1 to 4 files")


def test_the_model_is_described(client: Client, model: tuple[Gate, ModelCard]) -> None:
    about = client.get("/v1/model").json()
    rules, warnings, tag = (about.pop(name) for name in ("rules", "warnings", "model"))
    assert ModelCard.model_validate_json(json.dumps(about)) == model[1]
    assert (rules, warnings, tag) == ({rule.name: rule.words for rule in RULES}, WARNINGS, TAG)


def test_documents_are_rendered_once_and_not_sent_to_who_has_them(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {path: client.get(path) for path in ("/v1/model", "/docs.json", "/v2/models/chestct")}
    monkeypatch.setattr("json.dumps", None)
    for path, answer in first.items():
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
        again = client.get(path)
        assert (again.content, again.headers["ETag"]) == (answer.content, answer.headers["ETag"])
        unchanged = client.get(path, headers={"If-None-Match": answer.headers["ETag"]})
        assert (unchanged.status_code, unchanged.content) == (304, b"")


def test_what_a_body_takes_in_memory_is_what_is_counted(model: tuple[Gate, ModelCard]) -> None:
    class Watched(MemoryBudget):
        most = 0

        def reserve(self, holder: Holder, size: int) -> None:
            super().reserve(holder, size)
            self.most = max(self.most, self.used)

    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(png()).decode()]}
    bodies: list[tuple[float, str, dict[str, Any]]] = [
        (1, "/v1/predict", {"content": png()}),
        (2, "/v1/predict", {"files": files("image", png())}),
        (2, "/v1/predict/batch", {"files": files("images", png())}),
        (3.75, "/v2/models/chestct/infer", {"json": {"inputs": [tensor]}}),
    ]

    async def run(path: str, arguments: dict[str, Any]) -> tuple[int, int]:
        memory = Watched()
        async with running(model) as app:
            transport = httpx.ASGITransport(RequestRecording(app, memory))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                answer = await client.post(path, **arguments)
        assert answer.status_code == 200, answer.text
        assert memory.used == 0
        return memory.most, int(answer.request.headers["Content-Length"])

    for factor, path, arguments in bodies:
        counted, length = asyncio.run(run(path, arguments))
        assert counted == OF_A_REQUEST + math.ceil(factor * length)


@pytest.mark.parametrize(
    "path",
    [
        *("/nothing", "/v1", "/v1/", "/v1/nothing", "/v1/predict/", "//v1/predict", "/V1/model", "/v1/../v1/model"),
        *("/docs.json/", "/page", "/page/", "/page/nothing.js", "/page/own/1.png", "/page/samples", "/page/../http.py"),
        *("*", "/metrics\n", "/v1/predict\n", "/v1/model\n/", "/v2/models/chestct\n"),
        *("/\0", "/page/\0", "/\n", "/v1/mo\ndel", "/page/page.js\n", f"/page/{300 * 'x'}", "/\ufffd", "http://x/v1/y"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "PROPFIND"])
def test_what_is_not_there_is_said_in_the_error_schema(client: Client, method: str, path: str) -> None:
    response = client.raw(method, path)
    if path.startswith("/v2"):
        assert (response.status_code, response.json()["error"][:9]) == (404, "not_found")
    elif path.startswith("/page") and response.status_code == 405:  # of files only those that read are looked up
        assert_error(response, 405, "method_not_allowed", "expected GET, HEAD")
    else:
        assert_error(response, 404, "not_found", f"{method} {path}: Not Found")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/v1/predict", {"POST"}), ("/v1/model", {"GET", "HEAD"}), ("/", {"GET", "HEAD"}), ("/docs", {"GET", "HEAD"})],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
def test_a_method_that_a_route_does_not_have_is_said_in_the_error_schema(
    client: Client, path: str, allowed: set[str], method: str
) -> None:
    response = client.raw(method, path)
    if method in allowed:
        assert response.status_code == 200
    else:
        assert_error(response, 405, "method_not_allowed", f"{method} {path}: Method Not Allowed, expected ")
        assert set(response.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    ("header", "value", "status", "code"),
    [
        ("Range", "bytes=x", 400, "invalid_request"),
        ("Range", "lines=1-2", 400, "invalid_request"),
        ("Range", "bytes=99999999-", 416, "invalid_range"),
        ("Range", f"bytes={400 * '9'}-{5000 * '9'}", 400, "invalid_request"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/docs", "/page/page.js"])
def test_a_range_that_a_file_does_not_have_is_said_in_the_error_schema(
    client: Client, path: str, header: str, value: str, status: int, code: str
) -> None:
    assert_error(client.raw("GET", path, [(header, value)]), status, code, f"GET {path}")


@pytest.mark.parametrize(
    ("header", "value"),
    [
        *(("Host", value) for value in ("[", "\xff", "", "a:b:c", "x" * 5000)),
        *(("If-Modified-Since", value) for value in ("soon", "Mon, 99 Foo 99999999999 99:99:99 GMT", "\xff")),
        *(("If-None-Match", value) for value in ("*x", "\xff")),
        *(("Accept-Encoding", value) for value in ("\xff", "gzip;q=x")),
        *(("Authorization", value) for value in ("\xff", "Bearer \xff", "Basic", "Bearer " + 5000 * "x")),
        *(("Cookie", value) for value in ("\xff", ";;=;")),
        *(("traceparent", value) for value in ("\xff", "00-0-0-0")),
    ],
)
def test_no_header_fails_the_service(client: Client, header: str, value: str) -> None:
    for path in ("/", "/page/page.js", "/v1/model", "/nothing"):
        assert client.raw("GET", path, [(header, value)]).status_code in (200, 404)


@pytest.mark.parametrize("query", ["%ff=1", "\xff", "explain=%00", "explain=%0a", "&&&=", "%", "a" * 60_000])
def test_no_query_fails_the_service(client: Client, query: str) -> None:
    assert_error(client.raw("POST", "/v1/predict", query=query), 400, "invalid_query", "expected")


@pytest.mark.parametrize("number", [400 * "9", 5000 * "9", "-1e999", "nan", "%00", "1_0_0_0_0_0", "0x10", "\xb2"])
def test_a_window_out_of_bounds_is_refused(client: Client, number: str) -> None:
    response = client.raw("POST", "/v1/predict", query=f"window_center={number}&window_width=400")
    assert_error(response, 400, "invalid_query", "window_center: expected Hounsfield units from")


def test_blanks_around_a_header_s_value_are_no_part_of_it(client: Client) -> None:
    headers = [("X-Request-Timeout", " 5 \t"), ("X-Request-ID", "\tscan-17 "), ("Content-Encoding", " identity ")]
    response = client.raw("GET", "/v1/model", headers)
    assert (response.status_code, response.headers["X-Request-ID"]) == (200, "scan-17")
    form = form_of("image", png())
    response = client.raw(
        "POST", "/v1/predict", [*headers, ("Content-Type", "\tmultipart/form-data; boundary=b ")], form
    )
    assert response.json()["label"] == "large_cell_carcinoma"


def test_until_the_model_is_ready_it_is_not_asked() -> None:
    with asyncio.Runner() as runner:
        client = Client(http.create_app(SETTINGS), runner.get_loop())
        for response in (client.get("/v1/model"), client.post("/v1/predict", files=files("image", png()))):
            assert_error(response, 503, "not_ready")
            assert "Retry-After" in response.headers
        assert client.get("/").status_code == 200


def test_a_full_queue_says_when_to_come_back(model: tuple[Gate, ModelCard]) -> None:
    async def run() -> list[httpx.Response]:
        async with running(model) as app:
            transport = httpx.ASGITransport(RequestRecording(app))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                model[0].open.clear()
                posts = [
                    asyncio.create_task(client.post("/v1/predict", files=files("image", png()))) for _ in range(12)
                ]
                while sum(post.done() for post in posts) < 6:
                    await asyncio.sleep(0.01)
                model[0].open.set()
                return await asyncio.gather(*posts)

    responses = asyncio.run(run())
    refused = [response for response in responses if response.status_code != 200]
    assert 6 <= len(refused) <= 8  # two in the engine and four in the queue are answered
    for response in refused:
        assert_error(response, 429, "overloaded")
        assert int(response.headers["Retry-After"]) >= 1


def test_an_engine_that_hangs_ends_the_request_in_time(model: tuple[Gate, ModelCard]) -> None:
    async def run() -> httpx.Response:
        async with running(model, SETTINGS.model_copy(update={"request_timeout": 0.2})) as app:
            transport = httpx.ASGITransport(RequestRecording(app))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                model[0].open.clear()
                try:
                    return await client.post("/v1/predict", files=files("image", png()))
                finally:
                    model[0].open.set()

    assert_error(asyncio.run(run()), 503, "deadline_exceeded")


@pytest.mark.parametrize(
    ("timeout", "code"),
    [
        ("0", "deadline_exceeded"),
        ("-1.5", "deadline_exceeded"),
        ("soon", "invalid_timeout"),
        ("inf", "invalid_timeout"),
    ],
)
def test_a_deadline_in_the_past_and_one_that_is_none_are_refused(client: Client, timeout: str, code: str) -> None:
    response = client.post("/v1/predict", files=files("image", png()), headers={"X-Request-Timeout": timeout})
    assert_error(response, 400, code, "expected seconds above 0")


def test_a_request_s_own_deadline_frees_its_place(model: tuple[Gate, ModelCard]) -> None:
    async def run() -> tuple[list[httpx.Response], int]:
        async with running(model) as app:
            transport = httpx.ASGITransport(RequestRecording(app))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

                async def ask(timeout: str) -> httpx.Response:
                    headers = {"X-Request-Timeout": timeout}
                    return await client.post("/v1/predict", files=files("image", png()), headers=headers)

                model[0].open.clear()
                before = model[0].images
                first = asyncio.create_task(ask("4"))
                await asyncio.sleep(0.1)
                late = await asyncio.gather(*(ask("0.2") for _ in range(4)))  # as many as the queue holds
                others = [asyncio.create_task(ask("4")) for _ in range(3)]
                await asyncio.sleep(0.1)
                model[0].open.set()
                return [*late, await first, *await asyncio.gather(*others)], model[0].images - before

    responses, images = asyncio.run(run())
    for response in responses[:4]:
        assert_error(response, 503, "deadline_exceeded")
    assert [response.status_code for response in responses[4:]] == [200] * 4
    assert images == 4


def test_a_failure_inside_keeps_its_secrets_and_is_logged(
    client: Client, model: tuple[Gate, ModelCard], caplog: pytest.LogCaptureFixture
) -> None:
    model[0].fails = True
    try:
        response = client.post("/v1/predict", files=files("image", png()), headers={"X-Request-ID": "r-500"})
    finally:
        model[0].fails = False
    assert_error(response, 500, "internal_error")
    assert "secret" not in response.text
    assert "secret" in caplog.text
    assert "r-500" in caplog.text
    assert client.post("/v1/predict", files=files("image", png())).status_code == 200


def test_no_engine_time_goes_to_a_client_that_hung_up(model: tuple[Gate, ModelCard]) -> None:
    async def run() -> int:
        async with running(model) as app:
            model[0].open.clear()
            before = model[0].images
            sent: list[dict[str, Any]] = []
            gone = [asyncio.Event() for _ in range(4)]

            def call(event: asyncio.Event) -> Any:
                parts = [{"type": "http.request", "body": png(), "more_body": False}]

                async def receive() -> dict[str, Any]:
                    if parts:
                        return parts.pop()
                    await event.wait()
                    return {"type": "http.disconnect"}

                async def send(message: Any) -> None:
                    sent.append(message)

                scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": [], "query_string": b""}
                return asyncio.create_task(RequestRecording(app)({**scope, "root_path": ""}, receive, send))

            first = call(gone[0])
            await asyncio.sleep(0.1)
            others = [call(event) for event in gone[1:]]
            await asyncio.sleep(0.1)
            for event in gone[1:]:
                event.set()
            await asyncio.gather(*others)
            model[0].open.set()
            await first
            assert [message["status"] for message in sent if "status" in message] == [499, 499, 499, 200]
            return model[0].images - before

    assert asyncio.run(run()) == 1


def test_every_answer_carries_the_security_headers(client: Client) -> None:
    for response in (client.get("/"), client.get("/page/page.js"), client.get("/v1/model"), client.get("/v1/nothing")):
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"


def test_the_page_and_its_files_are_served_and_nothing_beside_them(client: Client) -> None:
    index = client.get("/")
    assert index.headers["Content-Type"].startswith("text/html")
    assert "Not a medical device" in index.text
    assert client.get("/page/page.css").headers["Content-Type"].startswith("text/css")
    for path in ("/page/../http.py", "/page/%2e%2e/http.py", "/page/", "/http.py"):
        assert client.get(path).status_code == 404


def test_metrics_tell_routes_and_not_paths_apart(client: Client, model: tuple[Gate, ModelCard]) -> None:
    client.post("/v1/predict", files=files("image", png()))
    for index in range(20):
        client.get(f"/v1/scan-{index}")
    text = client.get("/metrics").text
    assert "scan" not in text
    assert 'chestct_requests_total{code="200",protocol="http",route="/v1/predict"}' in text
    assert 'chestct_requests_total{code="404",protocol="http",route="other"}' in text
    for name in (
        "chestct_stage_seconds_count",
        "chestct_batch_size_count",
        "chestct_queue_depth",
        "chestct_predictions",
        "chestct_confidence_count",
        "chestct_ood_score_count",
        f'chestct_model_info{{data_digest="{model[1].lineage.data_digest}"',
    ):
        assert name in text


def test_each_request_leaves_one_line_of_json_without_its_content(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = {"User-Agent": "secret-agent", "Cookie": "secret-cookie"}
    with caplog.at_level(logging.INFO, logger="serving.call"):
        client.post("/v1/predict", files=[("image", ("secret-name.png", png()))], headers=secrets)
        client.post("/v1/predict", content=b"secret-bytes", headers={"Content-Type": "image/png"})
        client.get("/v1/model", headers={"X-Request-ID": "r-77"})
        client.get("/v1/a%0Aforged line", headers={"X-Request-ID": "r-78"})
    answered, refused, model, unknown = (json.loads(record.getMessage()) for record in caplog.records)
    assert (answered["route"], answered["code"], answered["outcome"]) == ("/v1/predict", "200", "answered")
    stages = [answered[f"{stage}_seconds"] for stage in ("decode", "queue", "infer")]
    assert min(stages) >= 0
    assert answered["images"] == 1
    assert sum(stages) <= answered["total_seconds"]
    assert (refused["code"], refused["outcome"]) == ("422", "undecodable_image")
    assert (model["request_id"], model["route"]) == ("r-77", "/v1/model")
    assert (unknown["request_id"], unknown["route"], unknown["code"]) == ("r-78", "other", "404")
    assert "secret" not in caplog.text
    assert "forged" not in caplog.text


def test_a_form_leaves_no_file_behind(client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))  # a read-only root file system
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    assert client.post("/v1/predict", files=files("image", encode_png(noise))).status_code == 200
