"""Spans: one a request over either protocol, below the client's, and none where the client's is not sampled."""

import asyncio
from collections.abc import Iterator
from http import HTTPStatus

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import StatusCode
from starlette.types import Receive, Scope, Send

from serving import tracing
from serving.call import Call
from serving.errors import RequestError
from serving.middleware import ErrorBoundary, RequestRecording
from serving.settings import Settings

TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
NOT_SAMPLED = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-00"}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    monkeypatch.setattr(tracing, "_tracer", None)
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(ALWAYS_OFF))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.start(provider)
    yield exporter
    provider.shutdown()


def ask(status: HTTPStatus, headers: dict[str, str]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["call"].route = "/v1/predict"
        raise RequestError(status, "internal_error" if status == 500 else "overloaded", "")

    async def run() -> None:
        transport = httpx.ASGITransport(RequestRecording(ErrorBoundary(app, Settings())))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.post("/v1/predict", headers=headers)

    asyncio.run(run())


def test_a_request_over_http_is_a_span_below_the_client_s(spans: InMemorySpanExporter) -> None:
    ask(HTTPStatus.TOO_MANY_REQUESTS, {**SAMPLED, "X-Request-ID": "mine"})
    (span,) = spans.get_finished_spans()
    assert span.parent is not None
    assert (span.name, f"{span.parent.trace_id:032x}", span.status.status_code) == (
        "/v1/predict",
        TRACE,
        StatusCode.UNSET,
    )
    attributes = span.attributes or {}
    assert {name: attributes[name] for name in ("request_id", "protocol", "code", "outcome")} == {
        "request_id": "mine",
        "protocol": "http",
        "code": "429",
        "outcome": "overloaded",
    }
    assert span.start_time is not None
    assert span.end_time is not None
    took = (span.end_time - span.start_time) / 1e9
    assert took == pytest.approx(float(str(attributes["total_seconds"])), abs=1e-5)


def test_a_failure_is_an_error(spans: InMemorySpanExporter) -> None:
    ask(HTTPStatus.INTERNAL_SERVER_ERROR, SAMPLED)
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR


@pytest.mark.parametrize("carrier", [{}, NOT_SAMPLED, {"traceparent": "nonsense"}])
def test_what_is_not_sampled_leaves_no_span(spans: InMemorySpanExporter, carrier: dict[str, str]) -> None:
    Call("mine", route="/v1/predict").finish("http", "200", carrier)
    assert spans.get_finished_spans() == ()


def test_a_probe_that_succeeds_leaves_no_span(spans: InMemorySpanExporter) -> None:
    for code in ("200", "503"):
        Call("mine", route="/readyz").finish("http", code, SAMPLED)
    assert [(span.attributes or {})["code"] for span in spans.get_finished_spans()] == ["503"]
