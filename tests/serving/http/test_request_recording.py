"""Request recording: errors of other libraries in our form, and the outcome of every request in the log."""

import asyncio
import json
import logging

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from serving.http.request_recording import RequestRecording
from tests.serving.http.client import ask


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
def test_bentoml_s_own_errors_are_answered_in_our_form(answer: Response, status: int, code: str, path: str) -> None:
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
def test_the_outcome_of_other_libraries_answers_follows_their_status(
    status: int, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with caplog.at_level(logging.INFO, logger="serving.telemetry.request_record"):
        assert ask(RequestRecording(app), method="HEAD").status_code == status
    assert [json.loads(record.getMessage())["outcome"] for record in caplog.records] == [outcome]


def test_a_failure_outside_our_routes_is_answered_in_our_form_and_logged_with_its_id(
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


def test_a_request_whose_client_left_before_the_answer_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    async def run() -> None:
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
        await RequestRecording(app)(scope, asyncio.Event().wait, asyncio.Event().wait)

    with caplog.at_level(logging.INFO, logger="serving.telemetry.request_record"):
        asyncio.run(run())
    (line,) = (json.loads(record.getMessage()) for record in caplog.records)
    assert (line["code"], line["outcome"]) == ("499", "client_gone")
