"""OpenTelemetry: one span a request, the same for every protocol, written when the request has ended.

BentoML's own middleware records five spans for a request over HTTP, whether or not they are sampled, which takes longer
than all else that a refusal costs; and it knows nothing of gRPC. So service.py excludes every URL from it.

Names and attributes are those of OpenTelemetry's semantic conventions for HTTP and RPC servers; what they have no word
for begins with `chestct.`. The query is left out: it is the client's.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR: Final = TraceContextTextMapPropagator()
_METHODS: Final = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_GRPC_CODES: Final = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
"""In the order of their numbers."""
_GRPC_FAILURES: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
"""Of the server."""
UNKNOWN_ROUTE: Final = "other"

_tracer: trace.Tracer | None = None

Attributes = dict[str, str | int | float]


def start(provider: trace.TracerProvider) -> None:
    """Give spans to this provider from now on; before that `record` does nothing."""
    global _tracer
    _tracer = provider.get_tracer("chestct")


def record(
    protocol: str,
    route: str,
    code: str,
    seconds: float,
    facts: Mapping[str, str | int | float],
    carrier: Mapping[str, Any],
    scope: Mapping[str, Any] | None = None,
    *,
    excused: bool = False,
) -> None:
    """Write down a request that ends now, with this status, and took so long; `facts` become attributes of our own.

    `carrier` is what came with it, headers or metadata; a `traceparent` there is the span's parent, and decides whether
    it is sampled. `scope` is ASGI's, over HTTP. `excused`: a status of failure is not the service's own.
    """
    if _tracer is None:
        return
    name, attributes, failed = _http(route, code, scope or {}) if protocol == "http" else _grpc(route, code)
    attributes |= {f"chestct.{key}": value for key, value in facts.items()}
    failed = failed and not excused
    if failed:
        attributes["error.type"] = code
    ended = time.time_ns()
    span = _tracer.start_span(
        name,
        _PROPAGATOR.extract(carrier),
        kind=trace.SpanKind.SERVER,
        attributes=attributes,
        start_time=ended - round(seconds * 1e9),
    )
    if failed:
        span.set_status(trace.StatusCode.ERROR)
    span.end(ended)


def _http(route: str, code: str, scope: Mapping[str, Any]) -> tuple[str, Attributes, bool]:
    """The span's name and attributes, and whether the status is a failure."""
    attributes: Attributes = {"http.response.status_code": int(code)}
    method = name = "HTTP"
    if scope:
        method = scope["method"]
        attributes |= {"url.path": scope["path"], "url.scheme": scope.get("scheme", "http")}
        if method not in _METHODS:
            attributes["http.request.method_original"] = method
            method = "_OTHER"
        attributes["http.request.method"] = method
        name = "HTTP" if method == "_OTHER" else method
    if route != UNKNOWN_ROUTE:
        attributes["http.route"] = route
        name = f"{name} {route}"
    return name, attributes, code.startswith("5")


def _grpc(route: str, code: str) -> tuple[str, Attributes, bool]:
    attributes: Attributes = {"rpc.system": "grpc", "rpc.grpc.status_code": _GRPC_CODES.index(code)}
    name = "grpc"
    if route != UNKNOWN_ROUTE:
        name = route.removeprefix("/")
        attributes["rpc.service"], _, attributes["rpc.method"] = name.partition("/")
    return name, attributes, code in _GRPC_FAILURES
