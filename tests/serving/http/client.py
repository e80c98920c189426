"""A client of the HTTP app in this process, with the tiny model behind a gate, and images and forms to send."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from io import BytesIO
from typing import Any

import httpx
from PIL import Image
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message

from chestct.card import ModelCard
from chestct.image import encode_png
from serving.http.app import create_app
from serving.http.request_recording import RequestRecording
from serving.inference.classifier import Classifier
from serving.settings import Settings
from tests.graphs import tiny_picture

TAG = "chestct:abc"
LIMIT = 64 * 1024
SETTINGS = Settings(max_body_bytes=LIMIT, max_images=4, queue_size=4, largest_batch=2, request_timeout=300)


@contextlib.asynccontextmanager
async def running(model: tuple[Any, ModelCard], settings: Settings = SETTINGS) -> AsyncIterator[Starlette]:
    app = create_app(settings)
    classifier = Classifier(*model, TAG, settings)
    await classifier.warm_up()
    app.state.classifier = classifier
    yield app
    await classifier.close()


def connect(app: ASGIApp) -> httpx.AsyncClient:
    """A client of an app in the same event loop."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def ask(app: ASGIApp, path: str = "/v1/predict", method: str = "POST", **headers: str) -> httpx.Response:
    async def run() -> httpx.Response:
        async with connect(app) as client:
            return await client.request(method, path, content=b"body", headers=headers)

    return asyncio.run(run())


class Client:
    """Asks an app that runs in this client's own event loop."""

    def __init__(self, app: Starlette, loop: asyncio.AbstractEventLoop) -> None:
        self.app = app
        self._loop = loop
        self._app = RequestRecording(app)
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://test")

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        return self._loop.run_until_complete(self._client.request(method, path, **arguments))

    def raw(
        self, method: str, path: str, headers: Sequence[tuple[str, str]] = (), body: bytes = b"", query: str = ""
    ) -> httpx.Response:
        """Send a request as a server passes it on, without httpx' checks."""
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


def png(label: int = 1) -> bytes:
    return encode_png(tiny_picture(label)[:, :, 0])


def jpeg(label: int = 1) -> bytes:
    buffer = BytesIO()
    Image.fromarray(tiny_picture(label)[:, :, 0]).save(buffer, format="JPEG")
    return buffer.getvalue()


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
