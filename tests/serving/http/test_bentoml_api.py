"""The route for BentoML's clients: its limits, its errors, and the outcome of each request in a batch."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chestct.engine import Engine
from chestct.image import encode_png
from chestct.store import GRAPH
from serving.api_keys import Keys, new
from serving.http import bentoml_api, body
from serving.http.request_recording import RequestRecording
from serving.inference.classifier import Classifier
from serving.memory_budget import REQUEST_BYTES
from serving.settings import Settings
from serving.telemetry.request_record import RequestRecord
from tests.graphs import tiny_model, tiny_picture
from tests.serving.http.client import connect

SETTINGS = Settings(queue_size=2, max_body_bytes=1024, largest_batch=2, request_timeout=5)


def ask(
    app: ASGIApp,
    count: int = 1,
    body: bytes = b"{}",
    path: str = bentoml_api.ROUTE,
    keys: Keys | None = None,
    **headers: str,
) -> list[httpx.Response]:
    """The answers to a number of simultaneous requests through ClassifyBoundary in front of `app`."""

    async def run() -> list[httpx.Response]:
        async with connect(RequestRecording(bentoml_api.ClassifyBoundary(app, SETTINGS, keys))) as client:
            sent = {"Content-Type": "application/json", **headers}
            return await asyncio.gather(*(client.post(path, content=body, headers=sent) for _ in range(count)))

    return asyncio.run(run())


def answering(status: int, body: Any) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        for _ in range(200):  # lets requests that came with this one begin before it ends
            await asyncio.sleep(0)
        await JSONResponse(body, status)(scope, receive, send)

    return app


def test_more_requests_than_the_queue_holds_are_refused_with_429() -> None:
    answers = ask(answering(200, []), count=5)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
    assert {answer.json()["error"]["code"] for answer in answers if answer.is_error} == {"overloaded"}
    assert all("Retry-After" in answer.headers for answer in answers if answer.is_error)


def test_a_caller_without_a_key_is_counted_at_the_route(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    file.write_text(new("alice")[1])
    with caplog.at_level("INFO", logger="serving.telemetry.request_record"):
        (answer,) = ask(answering(200, []), keys=Keys(file))
    assert answer.status_code == 401
    assert json.loads(caplog.records[-1].getMessage())["route"] == bentoml_api.ROUTE


def test_the_counted_memory_of_a_body_is_what_it_takes() -> None:
    counted = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        counted.append(Request(scope).state.record.memory.used)
        await JSONResponse([])(scope, receive, send)

    ask(app, body=bytes(1000))
    assert counted == [REQUEST_BYTES + 4750]


@pytest.mark.parametrize(
    ("status", "body", "expected", "code"),
    [
        (400, {"error": "1", "detail": [{"loc": ["images", 3], "msg": "no base64"}]}, 400, "invalid_request"),
        (503, {"error": "secret"}, 503, "deadline_exceeded"),
        (500, {"error": "secret"}, 500, "internal_error"),
    ],
)
def test_bentoml_s_refusals_are_answered_in_our_error_schema(status: int, body: Any, expected: int, code: str) -> None:
    (answer,) = ask(answering(status, body))
    assert (answer.status_code, answer.json()["error"]["code"]) == (expected, code)
    assert answer.json()["error"]["request_id"] == answer.headers["X-Request-ID"]
    assert ("images.3: no base64" in answer.text) == (status == 400)
    assert "secret" not in answer.text


def test_an_answer_at_the_deadline_is_complete_or_an_error() -> None:
    """BentoML's app still runs for a moment after its answer. The deadline must not interrupt it then."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        await JSONResponse([])(scope, receive, send)
        await asyncio.sleep(1)

    async def run() -> list[Message]:
        messages = [{"type": "http.request", "body": b"{}", "more_body": False}]
        sent = []

        async def receive() -> Message:
            return messages.pop() if messages else await asyncio.Future()

        async def send(message: Message) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json"), (b"x-request-timeout", b"0.1")]
        scope = {"type": "http", "method": "POST", "path": bentoml_api.ROUTE, "query_string": b"", "headers": headers}
        await RequestRecording(bentoml_api.ClassifyBoundary(app, SETTINGS))(scope, receive, send)
        return sent

    assert [message.get("status") for message in asyncio.run(run())] == [503, None]


def test_a_body_over_the_limit_does_not_reach_bentoml() -> None:
    (answer,) = ask(answering(200, []), body=bytes(2048))
    assert answer.json()["error"]["code"] == "body_too_large"


def test_a_compressed_body_does_not_reach_bentoml() -> None:
    (answer,) = ask(answering(200, []), **{"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")
    assert ask(answering(200, []), **{"Content-Encoding": "Identity"})[0].status_code == 200


def test_json_with_too_many_values_does_not_reach_bentoml(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(body.MAX_JSON, b",", 10)
    assert ask(answering(200, []), body=b"[" + 10 * b"0," + b"0]")[0].status_code == 200
    (answer,) = ask(answering(200, []), body=b"[" + 11 * b"0," + b"0]")
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "json_too_large")


def test_other_paths_pass() -> None:
    assert ask(answering(200, "passed"), path="/v1/predict")[0].json() == "passed"


def test_each_request_of_a_batch_gets_its_own_id_even_if_the_service_stops(tmp_path: Path) -> None:
    card = tiny_model(tmp_path)
    png = encode_png(tiny_picture(1)[:, :, 0])
    a, b, c = (RequestRecord(request_id) for request_id in "abc")
    items = [bentoml_api.Item(png, a), bentoml_api.Item(b"text", b), bentoml_api.Item(png, b), bentoml_api.Item(b"", c)]

    async def run() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        engine = Engine(tmp_path / GRAPH, threads=1, batch_sizes=(1, 2))
        classifier = Classifier(engine, card, "chestct:abc", Settings(largest_batch=2))
        await classifier.warm_up()
        outcomes = await bentoml_api.classify(classifier, items)
        await classifier.close()
        return outcomes, await bentoml_api.classify(classifier, items)

    outcomes, stopped = asyncio.run(run())
    assert [outcome.get("request_id") or outcome["error"]["request_id"] for outcome in outcomes] == ["a", "b", "b", "c"]
    assert [outcome.get("error", {}).get("code") for outcome in outcomes][1] == "undecodable_image"
    assert outcomes[0]["label"] == outcomes[2]["label"] == card.classes[1]
    assert [outcome["error"]["code"] for outcome in stopped] == ["not_ready"] * 4


def test_a_failure_of_one_request_does_not_affect_the_others_in_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = tiny_model(tmp_path)
    png = encode_png(tiny_picture(1)[:, :, 0])
    whole = Classifier.classify_many

    async def failing(self: Classifier, images: list[bytes], call: RequestRecord) -> Any:
        if call.request_id == "bad":
            raise RuntimeError("secret")
        return await whole(self, images, call)

    monkeypatch.setattr(Classifier, "classify_many", failing)

    async def run() -> list[dict[str, Any]]:
        classifier = Classifier(Engine(tmp_path / GRAPH, threads=1), card, "chestct:abc", Settings(largest_batch=1))
        await classifier.warm_up()
        outcomes = await bentoml_api.classify(
            classifier, [bentoml_api.Item(png, RequestRecord("good")), bentoml_api.Item(png, RequestRecord("bad"))]
        )
        await classifier.close()
        return outcomes

    good, bad = asyncio.run(run())
    assert good["label"] == card.classes[1]
    assert bad["error"]["code"] == "internal_error"
    assert "secret" not in str(bad)


def test_an_abandoned_request_leaves_the_queue(tmp_path: Path) -> None:
    card = tiny_model(tmp_path)
    png = encode_png(tiny_picture(1)[:, :, 0])
    call = RequestRecord("gone")

    async def run() -> list[dict[str, Any]]:
        engine = Engine(tmp_path / GRAPH, threads=1, batch_sizes=(1, 2))
        classifier = Classifier(engine, card, "chestct:abc", Settings(largest_batch=2))
        await classifier.warm_up()
        work = asyncio.create_task(bentoml_api.classify(classifier, [bentoml_api.Item(png, call)] * 2))
        await asyncio.sleep(0)
        call.abandon()
        outcomes = await work
        await classifier.close()
        return outcomes

    assert [outcome["error"]["code"] for outcome in asyncio.run(run())] == ["deadline_exceeded"] * 2
    assert call.images == 0
