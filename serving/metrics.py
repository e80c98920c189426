"""What /metrics shows. Every label has few values: a route is its template, never the path that was asked for."""

import os
from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

REQUESTS: Final = Counter(
    "chestct_requests", "Requests answered, by protocol, route and status code.", ("protocol", "route", "code")
)
REQUEST_SECONDS: Final = Histogram(
    "chestct_request_seconds", "From a request's arrival to its answer.", ("protocol", "route"), buckets=_SECONDS
)
STAGE_SECONDS: Final = Histogram(
    "chestct_stage_seconds",
    "Parts of an answer: decode (an image), queue (an image's wait for the engine), infer (a batch).",
    ("stage",),
    buckets=_SECONDS,
)
BATCH_SIZE: Final = Histogram(
    "chestct_batch_size", "Images in one inference.", buckets=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
)
QUEUE_DEPTH: Final = Gauge(
    "chestct_queue_depth",
    "Images that wait for the engine or are in it, over all workers.",
    multiprocess_mode="livesum",
)
PREDICTIONS: Final = Counter(
    "chestct_predictions", "Answers, by decision and label (none where rejected).", ("decision", "label")
)


def exposition() -> bytes:
    """All workers' metrics in Prometheus' text format.

    BentoML gives its workers one folder in PROMETHEUS_MULTIPROC_DIR, where prometheus_client keeps each one's numbers.
    """
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
