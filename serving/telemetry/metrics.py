"""The metrics of /metrics. Each label has few values: a route is its template, never the requested path."""

import contextlib
import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.utils import floatToGoString

from chestct import watched
from chestct.card import Reference
from chestct.image import Facts
from chestct.processes import is_alive
from serving import run_folder
from serving.telemetry.gathering_histogram import GatheringHistogram as Histogram
from serving.telemetry.gathering_histogram import write_gathered

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

_FOLDER: Final = run_folder.current()
"""Folder of the files in which prometheus_client keeps each worker's numbers."""
if _FOLDER:
    try:
        run_folder.reserve_metrics(_FOLDER, os.getpid())  # before the first metric opens its file
    except OSError as error:
        run_folder.exit_cannot_start(_FOLDER, error)


class ReadCounter(Counter):
    """Counter with one label, whose numbers another process keeps. `read` returns them by the label's value."""

    def __init__(self, name: str, about: str, label: str) -> None:
        super().__init__(name, about, (label,))
        self._label = label
        self.read: Callable[[], Mapping[str, int]] = dict

    def collect(self) -> list[Metric]:
        """The metric with its numbers."""
        (metric,) = self.describe()
        for value, number in self.read().items():
            metric.add_sample(f"{metric.name}_total", {self._label: value}, number)
        return [metric]


_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

REQUESTS: Final = Counter(
    "chestct_requests",
    "Answered requests by protocol, route and status code (or client_deadline_exceeded).",
    ("protocol", "route", "code"),
)
REQUEST_SECONDS: Final = Histogram(
    "chestct_request_seconds",
    "Seconds from a request's arrival to its answer.",
    ("protocol", "route"),
    buckets=_SECONDS,
)
STAGE_SECONDS: Final = Histogram(
    "chestct_stage_seconds",
    "Seconds of each stage: decode (one image), queue (one image waits for the engine), infer (one batch).",
    ("stage",),
    buckets=_SECONDS,
)
DECODE_SECONDS, QUEUE_SECONDS, INFER_SECONDS = (STAGE_SECONDS.labels(stage) for stage in ("decode", "queue", "infer"))
BATCH_SIZE: Final = Histogram(
    "chestct_batch_size", "Images in one inference.", buckets=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
)
QUEUE_DEPTH: Final = Gauge(
    "chestct_queue_depth",
    "Images that are being decoded, wait for the engine or are in it, over all workers.",
    multiprocess_mode="livesum",
)
LOG_LINES_DROPPED: Final = Counter(
    "chestct_log_lines_dropped", "Log lines that were dropped because standard output was full."
)
LOG_ROWS: Final = Counter("chestct_inference_log_rows", "Rows of the inference log that were written.")
LOG_ROWS_DROPPED: Final = Counter(
    "chestct_inference_log_rows_dropped",
    "Rows of the inference log that were dropped, because too many waited to be written or the service ended.",
)
BORROWED: Final = Counter("chestct_borrowed_images", "Images that the idle engine of another worker computed.")
READER_RESTARTS: Final = Counter(
    "chestct_reader_restarts",
    "Guarded decoding processes that were replaced: crashed, out_of_memory, out_of_time, hung, killed, not_started.",
    ("cause",),
)
WORKER_RESTARTS: Final = ReadCounter(  # the supervisor's, because a worker can't count its own death
    "chestct_worker_restarts",
    "Workers that died or hung and were replaced: hung, not_ready, out_of_memory, killed, crashed, exited.",
    "cause",
)
PREDICTIONS: Final = Counter(
    "chestct_predictions",
    "Predictions by decision and label (none if rejected or unfamiliar).",
    ("decision", "label"),
)
REASONS: Final = Counter(
    "chestct_reasons",
    "Reasons of the predictions that were referred or rejected. One prediction may have several.",
    ("decision", "reason"),
)
WATCHED: Final = {
    each.name: Histogram(f"chestct_{each.name}", each.about, buckets=each.edges) for each in watched.WATCHED
}
"""By the fact's name."""
_INPUT: Final = [(each.read, WATCHED[each.name].observe) for each in watched.INPUT]
_SCORES: Final = [(each.read, WATCHED[each.name].observe) for each in watched.SCORES]
REFERENCE_SHARE: Final = Gauge(
    "chestct_reference_share",
    "Share of the images of train and valid in a bin of a watched fact: over `above`, up to `le`.",
    ("fact", "above", "le"),
    multiprocess_mode="livemax",
)
MODEL: Final = Gauge(
    "chestct_model_info",
    "1 for the served model.",
    ("model", "run_id", "git_commit", "data_digest"),
    multiprocess_mode="livemax",
)
CERTIFICATE_END: Final = Gauge(
    "chestct_certificate_end_timestamp_seconds",
    "Time at which the certificate of this protocol's server ends, in seconds since 1970.",
    ("protocol",),
    multiprocess_mode="livemin",
)


def observe_input(facts: Facts) -> None:
    """Count what a picture is like in the histograms."""
    for read, observe in _INPUT:
        observe(read(facts))


def observe_scores(scores: watched.Scores) -> None:
    """Count an image's scores in the histograms."""
    for read, observe in _SCORES:
        observe(read(scores))


def show_reference(reference: Reference) -> None:
    """Set REFERENCE_SHARE. Facts with other bins than the histograms are left out."""
    for name, fact in reference.facts.items():
        if fact.edges == watched.EDGES.get(name):
            ends = ["-Inf", *map(floatToGoString, fact.edges), "+Inf"]
            for above, le, share in zip(ends, ends[1:], fact.shares, strict=False):
                REFERENCE_SHARE.labels(name, above, le).set(share)


@lru_cache(maxsize=1024)
def of_requests(protocol: str, route: str, code: str) -> tuple[Counter, Histogram]:
    """The counter and the seconds of requests with these labels. To look them up takes longer than to count."""
    return REQUESTS.labels(protocol, route, code), REQUEST_SECONDS.labels(protocol, route)


@lru_cache(maxsize=64)
def of_predictions(decision: str, label: str | None) -> Counter:
    """The counter of predictions with these labels."""
    return PREDICTIONS.labels(decision, label or "none")


def exposition() -> bytes:
    """The metrics of all workers in Prometheus' text format."""
    write_gathered()
    if not _FOLDER:
        return generate_latest(REGISTRY)
    for file in _FOLDER.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not is_alive(pid):  # the queue of a crashed worker is gone
            with contextlib.suppress(FileNotFoundError):  # another worker just removed its files
                mark_process_dead(pid)  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    registry.register(WORKER_RESTARTS)
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
