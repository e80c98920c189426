"""Admission control: a full queue refuses predictions before their body is read, and nothing else."""

import http.client
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serving import api_keys
from serving.api_keys import Keys
from serving.http.admission_control import AdmissionControl
from serving.http.app import create_app
from serving.http.request_recording import RequestRecording
from serving.settings import Settings
from serving.telemetry import metrics
from serving.unavailable import Closed, Overloaded
from tests.serving.http.client import ask
from tests.serving.http.connection_server import listening

SETTINGS = Settings(request_timeout=30)
ANSWERING = ["/v1/predict", "/v1/predict/batch", "/v2/models/chestct/infer", "/v2/models/chestct/versions/abc/infer"]


class Queue:
    """In place of the classifier: has room for requests with a deadline at least so many seconds away."""

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


def admission(queue: Queue | None, keys: Keys | None = None, app: ASGIApp = passed) -> ASGIApp:
    classifier: Callable[[], Any] = lambda: queue  # noqa: E731
    return RequestRecording(AdmissionControl(app, SETTINGS, keys, classifier))


@pytest.mark.parametrize("path", ANSWERING)
def test_a_full_queue_refuses_predictions(path: str) -> None:
    answer = ask(admission(Queue()), path, **{"X-Request-ID": "mine"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "3")
    assert answer.headers["X-Request-ID"] == "mine"
    error = answer.json()["error"]
    assert (error if isinstance(error, str) else error["code"]).startswith("overloaded")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/predict"), ("POST", "/v1/predict/"), ("POST", "/v2/models/a/b/infer"), ("GET", "/metrics")],
)
def test_other_requests_pass(method: str, path: str) -> None:
    assert ask(admission(Queue()), path, method).text == "passed"


def test_predictions_pass_with_room_while_loading_and_while_stopping() -> None:
    stopping = Queue()
    stopping.closed = True
    for queue in (Queue(0), None, stopping):
        assert ask(admission(queue)).text == "passed"


@pytest.mark.parametrize(("timeout", "status"), [("5", 429), ("20", 200), ("nonsense", 200)])
def test_room_depends_on_the_deadline_and_a_bad_deadline_is_left_to_the_route(timeout: str, status: int) -> None:
    assert ask(admission(Queue(10)), **{"X-Request-Timeout": timeout}).status_code == status


def test_requests_without_a_key_are_not_told_that_the_queue_is_full(tmp_path: Path) -> None:
    key, line = api_keys.new("ward", ("v1",))
    (tmp_path / "keys").write_text(line)
    guarded = admission(Queue(), Keys(tmp_path / "keys"))
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
        ask(admission(Queue()), path)
    assert [count(route) for route in templates] == [number + 1 for number in before]


def test_the_connection_of_an_unread_body_serves_the_next_request() -> None:
    queue = Queue()
    body = bytes(2_000_000)  # more than the sockets hold, so that the server must take it from the wire
    with listening(admission(queue)) as running:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=300)
        connection.connect()
        first = connection.sock
        for seconds, expected in ((math.inf, 429), (math.inf, 429), (0, 200)):
            queue.seconds = seconds
            connection.request("POST", "/v1/predict", body)
            answer = connection.getresponse()
            answer.read()
            assert (answer.status, connection.sock is first) == (expected, True)
        connection.close()
