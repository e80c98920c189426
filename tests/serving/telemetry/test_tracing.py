"""Spans: one per request over both protocols, below the client's span, and none if the client's is not sampled."""

import asyncio
from collections.abc import Iterator
from http import HTTPStatus

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode
from starlette.types import Receive, Scope, Send

from serving.http.error_boundary import ErrorBoundary
from serving.http.errors import RequestError
from serving.http.request_recording import RequestRecording
from serving.settings import Settings
from serving.telemetry import tracing
from serving.telemetry.request_record import RequestRecord
from serving.telemetry.tracing import UNKNOWN_ROUTE
from tests.serving.http.client import connect

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


def ask(status: HTTPStatus, headers: dict[str, str], method: str = "POST", route: str = "/v1/predict") -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["record"].route = route
        raise RequestError(status, "internal_error" if status == 500 else "overloaded", "")

    async def run() -> None:
        async with connect(RequestRecording(ErrorBoundary(app, Settings()))) as client:
            await client.request(method, "/v1/predict?name=secret", headers=headers)

    asyncio.run(run())


def test_a_request_over_http_is_a_span_below_the_client_s_by_the_conventions(spans: InMemorySpanExporter) -> None:
    ask(HTTPStatus.TOO_MANY_REQUESTS, {**SAMPLED, "X-Request-ID": "mine"})
    (span,) = spans.get_finished_spans()
    assert span.parent is not None
    assert (span.name, f"{span.parent.trace_id:032x}", span.kind, span.status.status_code) == (
        "POST /v1/predict",
        TRACE,
        SpanKind.SERVER,
        StatusCode.UNSET,
    )
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/predict",
        "http.response.status_code": 429,
        "url.path": "/v1/predict",
        "url.scheme": "http",
        "chestct.request_id": "mine",
        "chestct.outcome": "overloaded",
    }
    assert span.start_time is not None
    assert span.end_time is not None
    assert 0 < span.end_time - span.start_time < 60e9


def test_unknown_methods_and_paths_are_not_span_names(spans: InMemorySpanExporter) -> None:
    ask(HTTPStatus.NOT_FOUND, SAMPLED, "MADEUP", UNKNOWN_ROUTE)
    ask(HTTPStatus.NOT_FOUND, SAMPLED, "GET", UNKNOWN_ROUTE)
    made_up, unknown = spans.get_finished_spans()
    assert (made_up.name, unknown.name) == ("HTTP", "GET")
    attributes = made_up.attributes or {}
    assert (attributes["http.request.method"], attributes["http.request.method_original"]) == ("_OTHER", "MADEUP")
    assert "http.route" not in attributes


@pytest.mark.parametrize(
    ("protocol", "code", "outcome", "failed"),
    [
        ("http", "500", "internal_error", True),
        ("http", "503", "not_ready", True),
        ("http", "503", "client_deadline_exceeded", False),
        ("http", "404", "not_found", False),
        ("grpc", "INTERNAL", "internal_error", True),
        ("grpc", "DEADLINE_EXCEEDED", "deadline_exceeded", True),
        ("grpc", "DEADLINE_EXCEEDED", "client_deadline_exceeded", False),
        ("grpc", "NOT_FOUND", "unknown_model", False),
    ],
)
def test_only_failures_of_the_service_are_error_spans(
    spans: InMemorySpanExporter, protocol: str, code: str, outcome: str, failed: bool
) -> None:
    RequestRecord("mine", protocol=protocol, route="/a/B", outcome=outcome).finish(code, SAMPLED)
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is (StatusCode.ERROR if failed else StatusCode.UNSET)
    assert (span.attributes or {}).get("error.type") == (code if failed else None)


def test_each_grpc_status_has_its_number(spans: InMemorySpanExporter) -> None:
    for status in grpc.StatusCode:
        RequestRecord("mine", protocol="grpc", route="/a.B/C").finish(status.name, SAMPLED)
    found = [(span.attributes or {})["rpc.grpc.status_code"] for span in spans.get_finished_spans()]
    assert found == [status.value[0] for status in grpc.StatusCode]


@pytest.mark.parametrize("carrier", [{}, NOT_SAMPLED, {"traceparent": "nonsense"}])
def test_a_request_that_is_not_sampled_leaves_no_span(spans: InMemorySpanExporter, carrier: dict[str, str]) -> None:
    RequestRecord("mine", route="/v1/predict").finish("200", carrier)
    assert spans.get_finished_spans() == ()


def test_a_probe_that_succeeds_leaves_no_span(spans: InMemorySpanExporter) -> None:
    for code in ("200", "503"):
        RequestRecord("mine", route="/readyz").finish(code, SAMPLED)
    assert [(span.attributes or {})["http.response.status_code"] for span in spans.get_finished_spans()] == [503]


def test_an_exporter_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon")
    with pytest.raises(ValueError, match=r"installed exporter \(.*otlp_proto_http.*\), got otlp_proto_carrier-pigeon"):
        tracing.export_from_environment({})


def test_nothing_is_exported_without_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_tracer", None)
    monkeypatch.delenv("OTEL_TRACES_EXPORTER", raising=False)
    tracing.export_from_environment({})
    assert tracing._tracer is None
