"""Requests of /v1 that wait: for the model, in the queue, until their deadline, or for nobody any more."""

import asyncio
from typing import Any

import httpx
import pytest

from chestct.card import ModelCard
from serving.http.app import create_app
from serving.http.request_recording import RequestRecording
from serving.telemetry import metrics
from tests.serving.gated_engine import GatedEngine
from tests.serving.http.client import (
    SETTINGS,
    Client,
    assert_error,
    connect,
    files,
    png,
    running,
)


def test_requests_before_the_model_is_ready_get_503() -> None:
    with asyncio.Runner() as runner:
        client = Client(create_app(SETTINGS), runner.get_loop())
        for response in (client.get("/v1/model"), client.post("/v1/predict", files=files("image", png()))):
            assert_error(response, 503, "not_ready")
            assert "Retry-After" in response.headers
        assert client.get("/").status_code == 200


def test_a_full_queue_answers_429_with_retry_after(model: tuple[GatedEngine, ModelCard]) -> None:
    async def run() -> list[httpx.Response]:
        async with running(model) as app, connect(RequestRecording(app)) as client:
            model[0].close()
            posts = [asyncio.create_task(client.post("/v1/predict", files=files("image", png()))) for _ in range(12)]
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


def test_an_engine_that_hangs_ends_the_request_in_time(model: tuple[GatedEngine, ModelCard]) -> None:
    async def run() -> httpx.Response:
        async with (
            running(model, SETTINGS.model_copy(update={"request_timeout": 0.2})) as app,
            connect(RequestRecording(app)) as client,
        ):
            model[0].close()
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
def test_passed_and_invalid_deadlines_are_refused(client: Client, timeout: str, code: str) -> None:
    response = client.post("/v1/predict", files=files("image", png()), headers={"X-Request-Timeout": timeout})
    assert_error(response, 400, code, "expected seconds above 0")


async def until_queued(images: int) -> None:
    """Wait until so many images are being decoded, wait for the engine or are in it."""
    while metrics.QUEUE_DEPTH._value.get() < images:
        await asyncio.sleep(0.001)


def test_a_request_frees_its_place_in_the_queue_at_its_deadline(model: tuple[GatedEngine, ModelCard]) -> None:
    async def run() -> tuple[list[httpx.Response], int]:
        async with running(model) as app, connect(RequestRecording(app)) as client:

            async def ask(timeout: str) -> httpx.Response:
                headers = {"X-Request-Timeout": timeout}
                return await client.post("/v1/predict", files=files("image", png()), headers=headers)

            model[0].close()
            before = model[0].images
            first = asyncio.create_task(ask("300"))
            assert await asyncio.to_thread(model[0].entered.wait, 300)
            late = await asyncio.gather(*(ask("0.2") for _ in range(4)))  # as many as the queue holds
            others = [asyncio.create_task(ask("300")) for _ in range(3)]
            await until_queued(4)
            model[0].open.set()
            return [*late, await first, *await asyncio.gather(*others)], model[0].images - before

    responses, images = asyncio.run(run())
    for response in responses[:4]:
        assert_error(response, 503, "client_deadline_exceeded")
    assert [response.status_code for response in responses[4:]] == [200] * 4
    assert images == 4


def test_no_engine_time_goes_to_a_client_that_hung_up(model: tuple[GatedEngine, ModelCard]) -> None:
    async def run() -> int:
        async with running(model) as app:
            model[0].close()
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
            assert await asyncio.to_thread(model[0].entered.wait, 300)
            others = [call(event) for event in gone[1:]]
            await until_queued(4)
            for event in gone[1:]:
                event.set()
            await asyncio.gather(*others)
            model[0].open.set()
            await first
            assert [message["status"] for message in sent if "status" in message] == [499, 499, 499, 200]
            return model[0].images - before

    assert asyncio.run(run()) == 1
