"""The shortcut: predictions pass BentoML's layers, and their answers, metrics and log are those of the long way."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from chestct.card import ModelCard
from serving import api_keys
from serving.api_keys import Keys
from serving.http import shortcut
from serving.http.admission_control import AdmissionControl
from serving.http.app import create_app
from serving.http.request_recording import RequestRecording
from serving.http.shortcut import Shortcut, ShortcutInFront
from serving.inference.classifier import Classifier
from serving.memory_budget import MemoryBudget
from tests.serving.gated_engine import GatedEngine
from tests.serving.http.client import SETTINGS, TAG, ask, connect, form_of, png

FORM = {"Content-Type": "multipart/form-data; boundary=b"}
PNG = {"Content-Type": "image/png"}
OIP = "/v2/models/chestct/infer"
REQUESTS: list[tuple[str, dict[str, str], bytes]] = [
    ("/v1/predict", PNG, png()),
    ("/v1/predict", FORM, form_of("image", png(2))),
    ("/v1/predict?explain=true", PNG, png()),
    ("/v1/predict", PNG, b"no image"),
    ("/v1/predict", PNG, b""),
    ("/v1/predict", {"Content-Type": "text/html"}, png()),
    ("/v1/predict?explain=maybe", PNG, png()),
    ("/v1/predict", {**PNG, "X-Request-Timeout": "never"}, png()),
    ("/v1/predict", {**PNG, "X-Request-Timeout": "0.000001"}, png()),
    ("/v1/predict/batch", FORM, form_of("images", png(3))),
    ("/v1/predict/batch", PNG, png()),
    (OIP, {"Inference-Header-Content-Length": "0"}, png()),
    (OIP, {"Inference-Header-Content-Length": "x"}, png()),
    (OIP, {}, b'{"id": "scan-17", "inputs": []}'),
]


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/predict"), ("POST", "/v1/predict/"), ("POST", "/classify")])
def test_other_methods_and_paths_pass_on(method: str, path: str) -> None:
    app = Shortcut(PlainTextResponse("long"), {"/v1/predict": PlainTextResponse("short")})
    assert ask(app, path, method).text == "long"
    assert ask(app).text == "short"


def test_it_moves_in_front_of_all_other_middlewares_when_the_server_starts() -> None:
    class Layer:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                seen.append(scope["path"])
            await self.app(scope, receive, send)

    async def start() -> None:
        events = [{"type": "lifespan.shutdown"}, {"type": "lifespan.startup"}]

        async def receive() -> dict[str, str]:
            return events.pop()

        async def send(message: Any) -> None:
            sent.append(message["type"])

        await service({"type": "lifespan"}, receive, send)

    seen: list[str] = []
    sent: list[str] = []
    short: dict[str, ASGIApp] = {"/v1/predict": PlainTextResponse("short")}
    service = Starlette(middleware=[Middleware(Layer), Middleware(ShortcutInFront, predictions=short)])
    asyncio.run(start())
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert ask(service).text == "short"
    assert ask(service, "/v1/other").status_code == 404
    assert seen == ["/v1/other"]


def test_answers_and_log_are_those_of_the_long_way(
    model: tuple[GatedEngine, ModelCard], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key, line = api_keys.new("ward")
    (tmp_path / "keys").write_text(f"{line}\n")

    def lines() -> list[dict[str, Any]]:
        found = [json.loads(record.getMessage()) for record in caplog.records]
        caplog.clear()
        return [{name: line[name] for name in line if not name.endswith(("time", "seconds"))} for line in found]

    async def compare() -> None:
        keys = Keys(tmp_path / "keys")
        classifier = Classifier(*model, TAG, SETTINGS)  # type: ignore[arg-type]
        await classifier.warm_up()
        app = create_app(SETTINGS, keys)
        app.state.classifier = classifier
        around = AdmissionControl(app, SETTINGS, keys, lambda: classifier)
        long = RequestRecording(around, MemoryBudget(), lambda: True)
        short = Shortcut(
            PlainTextResponse("passed on", 404),
            shortcut.predictions(app, SETTINGS, keys, MemoryBudget(), lambda: True),
        )
        async with connect(long) as one, connect(short) as other:
            for authorised in ({"Authorization": f"Bearer {key}"}, {}):
                for path, headers, body in REQUESTS:
                    answers, logged = [], []
                    for client in (one, other):
                        named = {**headers, **authorised, "X-Request-ID": "same"}
                        answers.append(await client.post(path, content=body, headers=named))
                        logged.append(lines())
                    assert describe(answers[0]) == describe(answers[1])
                    assert logged[0] == logged[1]
                    assert len(logged[0]) == 1
        await classifier.close()

    with caplog.at_level(logging.INFO, logger="serving.telemetry.request_record"):
        asyncio.run(compare())


def describe(answer: httpx.Response) -> tuple[int, list[tuple[str, str]], bytes]:
    return answer.status_code, answer.headers.multi_items(), answer.content


def test_until_the_model_is_ready_predictions_are_refused() -> None:
    short = shortcut.predictions(create_app(SETTINGS), SETTINGS, None, MemoryBudget(), lambda: False)
    for app in short.values():
        assert ask(app).status_code == 503
