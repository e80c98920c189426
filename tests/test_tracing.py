"""The traces of docs/reference/logs-and-traces.md: a real service, a real exporter and a collector that keeps them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from chestct.image import encode_png
from tests.graphs import tiny_picture
from tests.server import import_tiny_model, serve

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@contextmanager
def collector() -> Iterator[tuple[str, "Queue[tuple[dict[str, str], Span]]"]]:
    """Its endpoint, and the received spans, each with its resource's attributes."""
    spans: Queue[tuple[dict[str, str], Span]] = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                process = {entry.key: entry.value.string_value for entry in resource.resource.attributes}
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        spans.put((process, span))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
        finally:
            server.shutdown()
            thread.join()


def test_each_request_reaches_the_collector_as_one_span(tmp_path: Path) -> None:
    tag = import_tiny_model(tmp_path / "bentoml")
    with collector() as (endpoint, spans):
        variables = {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint,
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        }
        with serve(tmp_path / "bentoml", tag, CHESTCT_WORKERS="1", **variables) as server:
            png = encode_png(tiny_picture(1)[:, :, 0])
            for content, expected in ((png, 200), (b"no image", 422)):
                headers = {"Content-Type": "image/png", "traceparent": f"00-{TRACE}-{PARENT}-01"}
                answer = httpx.post(f"{server.url}/v1/predict", content=content, headers=headers, timeout=300)
                assert answer.status_code == expected
            received = [spans.get(timeout=300) for _ in range(2)]  # the exporter sends every five seconds
    for process, _ in received:
        assert (process["service.name"], process["deployment.environment.name"]) == ("chestct", "test")
    got = [span for _, span in received]
    assert {(span.name, span.trace_id.hex(), span.parent_span_id.hex()) for span in got} == {
        ("POST /v1/predict", TRACE, PARENT)
    }
    outcomes = {entry.value.string_value for span in got for entry in span.attributes if entry.key == "chestct.outcome"}
    assert outcomes == {"answered", "undecodable_image"}
    assert spans.empty()
