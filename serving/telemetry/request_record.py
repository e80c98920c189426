"""The record of one request over any protocol: its id, deadline, timings and outcome."""

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic_core import to_json

from serving.memory_budget import MemoryBudget
from serving.telemetry import log, metrics, tracing
from serving.unavailable import Overloaded

LONGEST_MESSAGE: Final = 1000
"""Most characters of an error message, which may quote the request. gRPC sends it as a header of limited size."""
LONGEST_PAUSE: Final = 5.0
"""Most seconds before a body begins, and between two pieces of it."""
LEAST_RATE: Final = 8_000
"""Least mean rate of a body in bytes per second, once it takes longer than LONGEST_PAUSE."""
CLIENT_LATE: Final = "client_deadline_exceeded"
"""Code and outcome, and the status in metrics: the service's objectives do not count such requests."""
_LONGEST_ID: Final = 128
PROBES: Final = frozenset({"/livez", "/readyz", "/healthz"})
"""BentoML's routes that say whether a worker is alive and ready."""
_FREQUENT: Final = PROBES | {"/metrics"}
"""Routes that are called every few seconds: always counted, but logged and traced only if they fail."""

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)  # two records are never equal
class RequestRecord:
    """What the protocol servers, the queue and the engine note about one request. `finish` publishes it."""

    request_id: str
    deadline: float = math.inf
    """Time (time.monotonic) after which nobody waits for the answer."""
    client_deadline: bool = False
    """Whether the client chose the deadline, and the service's own limit is later."""
    started: float = field(default_factory=time.monotonic)
    protocol: str = "http"
    """`http` or `grpc`."""
    route: str = ""
    """The route's name in metrics and log, one of few."""
    outcome: str = "answered"
    """`answered`, or the code of the error."""
    key: str = ""
    """Name of the request's API key."""
    images: int = 0
    """Images that were decoded or sent as pixels."""
    decode_seconds: float = 0.0
    """Sum over the images, as are the next two."""
    queue_seconds: float = 0.0
    infer_seconds: float = 0.0
    work: asyncio.Future[Any] | None = None
    """Work for the request in a task outside its own."""
    memory: MemoryBudget = field(default_factory=MemoryBudget)
    """Budget that counts the request's bytes; the default has no limit."""
    progressed: float = field(default_factory=time.monotonic)
    """Time of the last received byte (time.monotonic)."""
    stop_receiving: Callable[[], object] | None = None
    """Stops the reading of the body. Set while it is being read."""
    evicted: bool = False
    """Whether the request lost its memory to another one before it was complete."""

    def set_deadline(self, patience: float, limit: float) -> None:
        """Set the deadline, in seconds from the start: the client waits `patience`, the service allows `limit`."""
        self.deadline = self.started + min(patience, limit)
        self.client_deadline = patience < limit

    @property
    def remaining(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    @property
    def late_code(self) -> str:
        """The code for a passed deadline. A short deadline of the client is no failure of the service."""
        return CLIENT_LATE if self.client_deadline else "deadline_exceeded"

    def reserve_bytes(self, size: int) -> None:
        """Count `size` bytes of memory for received data until the request is finished; 0 if counted before.

        Otherwise clients that send slowly, or send much, could fill the memory while the queue has room. Raises
        Overloaded if there is no room, or if the request was evicted.
        """
        if self.evicted:
            raise Overloaded(1, "the request was slow to come, or large, and its memory was given to others")
        self.progressed = time.monotonic()
        if size:
            self.memory.reserve(self, size)

    def evict(self) -> None:
        """Stop the reading of the body, because another request needs the memory."""
        self.evicted = True
        if self.stop_receiving is not None:
            self.stop_receiving()

    @property
    def abandoned(self) -> bool:
        return self.deadline == -math.inf

    def abandon(self) -> None:
        """Stop the work on the request, because nobody waits for the answer."""
        self.deadline = -math.inf
        if self.work is not None:
            self.work.cancel()

    def finish(self, code: str, carrier: Mapping[str, Any], scope: Mapping[str, Any] | None = None) -> None:
        """Count, trace and log the request, in one line of JSON with id, outcome and timings, but no content.

        `carrier` holds the request's headers or metadata; only tracing reads its own entries in it. `scope` is ASGI's,
        over HTTP.
        """
        self.memory.release(self)
        seconds = time.monotonic() - self.started
        excused = self.outcome == CLIENT_LATE
        count, times = metrics.of_requests(self.protocol, self.route, CLIENT_LATE if excused else code)
        count.inc()
        times.observe(seconds)
        if self.route in _FREQUENT and code == "200":
            return
        facts: dict[str, str | int | float] = {"request_id": self.request_id, "outcome": self.outcome}
        if self.key:
            facts["key"] = self.key
        if self.images:
            facts["images"] = self.images
            facts["decode_seconds"] = round(self.decode_seconds, 6)
            facts["queue_seconds"] = round(self.queue_seconds, 6)
            facts["infer_seconds"] = round(self.infer_seconds, 6)
        tracing.record(self.protocol, self.route, code, seconds, facts, carrier, scope, excused=excused)
        if _log.isEnabledFor(logging.INFO):
            where = {"time": log.now(), "protocol": self.protocol, "route": self.route, "code": code}
            log.write_request(_log, to_json({**where, **facts, "total_seconds": round(seconds, 6)}).decode())


def choose_id(*wanted: object) -> str:
    """The first id that is short printable ASCII, and so safe in a header and in a log. Otherwise a new id."""
    for text in wanted:
        if isinstance(text, str) and 0 < len(text) <= _LONGEST_ID and text.isascii() and text.isprintable():
            return text
    return f"{random.getrandbits(128):032x}"  # a UUID would take a system call
