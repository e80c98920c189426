"""The error boundary's time limit: for an answer that has begun, and for one that the client does not read."""

import asyncio
import http.client

import pytest
from starlette.types import Message, Receive, Scope, Send

from serving.http.error_boundary import ErrorBoundary
from serving.http.request_recording import RequestRecording
from serving.settings import Settings
from tests.serving.http.connection_server import listening

SETTINGS = Settings(request_timeout=30)


def test_an_answer_that_has_begun_is_finished_after_its_deadline_and_its_connection_stays_open() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"4")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"an", "more_body": True})
        await asyncio.sleep(0.3)
        await send({"type": "http.response.body", "body": b"d."})
        await asyncio.sleep(0.1)

    with listening(RequestRecording(ErrorBoundary(app, SETTINGS))) as running:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=300)
        connection.connect()
        first = connection.sock
        for _ in range(2):
            connection.request("GET", "/", headers={"X-Request-Timeout": "0.1"})
            answer = connection.getresponse()
            assert (answer.status, answer.read(), connection.sock is first) == (200, b"and.", True)
        connection.close()


def test_an_answer_that_the_client_does_not_read_ends_at_the_service_s_limit() -> None:
    taken = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def run() -> None:
        async def send(message: Message) -> None:
            await taken.wait()

        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
        recorded = RequestRecording(ErrorBoundary(app, SETTINGS.model_copy(update={"request_timeout": 0.1})))
        with pytest.raises(TimeoutError):
            await recorded(scope, asyncio.Event().wait, send)

    asyncio.run(asyncio.wait_for(run(), 300))
