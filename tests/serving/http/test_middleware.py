"""What every HTTP route shares: admission control, the end of answers that have begun, and the connection after."""

import asyncio
import contextlib
import http.client
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import api_keys
from serving.api_keys import Keys
from serving.http import middleware
from serving.http.app import create_app
from serving.http.middleware import ErrorBoundary, RequestRecording
from serving.settings import Settings
from serving.telemetry import metrics
from serving.unavailable import Closed, Overloaded

SETTINGS = Settings(request_timeout=30)
ANSWERING = ["/v1/predict", "/v1/predict/batch", "/v2/models/chestct/infer", "/v2/models/chestct/versions/abc/infer"]


class Queue:
    """Stands for the classifier: has room for calls whose deadline is so many seconds away."""

    def __init__(self, seconds: float = math.inf) -> None:
        self.seconds = seconds
        self.closed = False

    def check_room(self, deadline: float) -> None:
        if self.closed:
            raise Closed
        if deadline - time.monotonic() < self.seconds:
            raise Overloaded(2.5)


async def passed(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
    await send({"type": "http.response.body", "body": b"passed"})


def door(queue: Queue | None, keys: Keys | None = None, app: ASGIApp = passed) -> ASGIApp:
    classifier: Callable[[], Any] = lambda: queue  # noqa: E731
    return middleware.RequestRecording(middleware.AdmissionControl(app, SETTINGS, keys, classifier))


def ask(app: ASGIApp, path: str = "/v1/predict", method: str = "POST", **headers: str) -> httpx.Response:
    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path, content=b"body", headers=headers)

    return asyncio.run(run())


@pytest.mark.parametrize("path", ANSWERING)
def test_without_room_what_asks_for_an_answer_is_refused(path: str) -> None:
    answer = ask(door(Queue()), path, **{"X-Request-ID": "mine"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "3")
    assert answer.headers["X-Request-ID"] == "mine"
    error = answer.json()["error"]
    assert (error if isinstance(error, str) else error["code"]).startswith("overloaded")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/predict"), ("POST", "/v1/predict/"), ("POST", "/v2/models/a/b/infer"), ("GET", "/metrics")],
)
def test_everything_else_passes(method: str, path: str) -> None:
    assert ask(door(Queue()), path, method).text == "passed"


def test_with_room_while_loading_and_while_stopping_it_passes() -> None:
    stopping = Queue()
    stopping.closed = True
    for queue in (Queue(0), None, stopping):
        assert ask(door(queue)).text == "passed"


@pytest.mark.parametrize(("timeout", "status"), [("5", 429), ("20", 200), ("nonsense", 200)])
def test_it_goes_by_the_deadline_and_leaves_a_bad_one_to_the_route(timeout: str, status: int) -> None:
    assert ask(door(Queue(10)), **{"X-Request-Timeout": timeout}).status_code == status


def test_who_holds_no_key_learns_nothing_of_the_queue(tmp_path: Path) -> None:
    key, line = api_keys.new("ward", ("v1",))
    (tmp_path / "keys").write_text(line)
    guarded = door(Queue(), Keys(tmp_path / "keys"))
    assert ask(guarded).text == "passed"
    assert ask(guarded, Authorization=f"Bearer {key}").status_code == 429
    assert ask(guarded, "/v2/models/chestct/infer", Authorization=f"Bearer {key}").text == "passed"


def test_a_refusal_is_counted_under_the_name_of_its_route() -> None:
    def count(route: str) -> float:
        return metrics.REQUESTS.labels("http", route, "429")._value.get()

    def names(routes: list[BaseRoute], prefix: str = "") -> set[str]:
        below = [names(list(route.routes), route.path) for route in routes if isinstance(route, Mount)]
        return {route.name for route in routes if isinstance(route, Route)}.union(*below)

    known = names(create_app(SETTINGS).routes)
    templates = [path.replace("chestct", "{name}").replace("abc", "{version}") for path in ANSWERING]
    assert set(templates) <= known
    before = [count(route) for route in templates]
    for path in ANSWERING:
        ask(door(Queue()), path)
    assert [count(route) for route in templates] == [number + 1 for number in before]


@contextlib.contextmanager
def listening(app: ASGIApp) -> Iterator[int]:
    """The port of a real server before this app."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)


def test_the_connection_of_an_unread_body_serves_the_next_request() -> None:
    queue = Queue()
    body = bytes(2_000_000)  # more than the sockets hold, so that the server must take it from the wire
    with listening(door(queue)) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        connection.connect()
        first = connection.sock
        for seconds, expected in ((math.inf, 429), (math.inf, 429), (0, 200)):
            queue.seconds = seconds
            connection.request("POST", "/v1/predict", body)
            answer = connection.getresponse()
            answer.read()
            assert (answer.status, connection.sock is first) == (expected, True)
        connection.close()


def test_an_answer_that_has_begun_ends_though_the_deadline_passes_and_serves_the_next_request() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"4")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"an", "more_body": True})
        await asyncio.sleep(0.3)
        await send({"type": "http.response.body", "body": b"d."})
        await asyncio.sleep(0.1)

    with listening(RequestRecording(ErrorBoundary(app, SETTINGS))) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        connection.connect()
        first = connection.sock
        for _ in range(2):
            connection.request("GET", "/", headers={"X-Request-Timeout": "0.1"})
            answer = connection.getresponse()
            assert (answer.status, answer.read(), connection.sock is first) == (200, b"and.", True)
        connection.close()


def test_an_answer_that_nobody_takes_ends_by_the_service_s_own_limit() -> None:
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

    asyncio.run(asyncio.wait_for(run(), 10))


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (PlainTextResponse("Not Found", 404), 404, "not_found"),
        (PlainTextResponse("Method Not Allowed", 405, {"Allow": "GET"}), 405, "method_not_allowed"),
        (RedirectResponse("/elsewhere", 307), 404, "not_found"),
        (Response(status_code=404), 404, "not_found"),
        (PlainTextResponse("Internal Server Error", 500), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("path", ["/nothing", "/v2/nothing"])
def test_what_bentoml_refuses_by_itself_is_said_in_the_error_schema(
    answer: Response, status: int, code: str, path: str
) -> None:
    response = ask(RequestRecording(answer), path)
    error = response.json()["error"]
    assert response.status_code == status
    assert (error if isinstance(error, str) else error["code"]).partition(":")[0] == code
    assert response.headers.get("Allow") == answer.headers.get("Allow")
    assert len(response.headers.get_list("X-Request-ID")) == 1


@pytest.mark.parametrize("answer", [PlainTextResponse("ready"), PlainTextResponse("no", 503), JSONResponse({}, 404)])
def test_other_answers_pass(answer: Response) -> None:
    response = ask(RequestRecording(answer))
    assert (response.status_code, response.content) == (answer.status_code, answer.body)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(200, "answered"), (304, "answered"), (404, "not_found"), (405, "method_not_allowed"), (503, "not_ready")],
)
def test_the_outcome_of_what_other_libraries_answer_is_named_by_its_status(
    status: int, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with caplog.at_level(logging.INFO, logger="serving.telemetry.request_record"):
        assert ask(RequestRecording(app), method="HEAD").status_code == status
    assert [json.loads(record.getMessage())["outcome"] for record in caplog.records] == [outcome]


def test_what_fails_outside_our_routes_is_answered_in_our_form_and_logged_with_its_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("secret")

    with caplog.at_level(logging.INFO, logger="serving"):
        answer = ask(RequestRecording(app), **{"X-Request-ID": "mine"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    failure, line = caplog.records
    assert failure.getMessage() == "request mine failed"
    assert (json.loads(line.getMessage())["code"], json.loads(line.getMessage())["outcome"]) == (
        "500",
        "internal_error",
    )


def test_an_answer_that_never_began_since_the_client_was_gone_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    async def run() -> None:
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
        await RequestRecording(app)(scope, asyncio.Event().wait, asyncio.Event().wait)

    with caplog.at_level(logging.INFO, logger="serving.telemetry.request_record"):
        asyncio.run(run())
    (line,) = (json.loads(record.getMessage()) for record in caplog.records)
    assert (line["code"], line["outcome"]) == ("499", "client_gone")
