"""OpenTelemetry: one span a request, the same for every protocol, written when the request has ended.

BentoML's own middleware records five spans for a request over HTTP, whether or not they are sampled, which takes longer
than all else that a refusal costs; and it knows nothing of gRPC. So service.py excludes every URL from it.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR: Final = TraceContextTextMapPropagator()

_tracer: trace.Tracer | None = None


def start(provider: trace.TracerProvider) -> None:
    """Give spans to this provider from now on; before that `record` does nothing."""
    global _tracer
    _tracer = provider.get_tracer("chestct")


def record(name: str, carrier: Mapping[str, Any], seconds: float, attributes: Mapping[str, str | int | float]) -> None:
    """Write down a request that ends now and took so long; `attributes` are what the log says of it.

    `carrier` is what came with it, headers or metadata; a `traceparent` there is the span's parent, and decides whether
    it is sampled.
    """
    if _tracer is None:
        return
    ended = time.time_ns()
    span = _tracer.start_span(
        name,
        _PROPAGATOR.extract(carrier),
        kind=trace.SpanKind.SERVER,
        attributes=attributes,
        start_time=ended - round(seconds * 1e9),
    )
    if attributes["outcome"] == "internal_error":
        span.set_status(trace.StatusCode.ERROR)
    span.end(ended)
