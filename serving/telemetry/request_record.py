"""One request from its arrival to its answer, whatever the protocol: its id, its deadline, and what is kept of it."""

import asyncio
import json
import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from serving.memory_budget import MemoryBudget
from serving.telemetry import metrics, tracing
from serving.unavailable import Overloaded

LONGEST_MESSAGE: Final = 1000
"""Characters of an error, which may quote what came. Over gRPC it is a header: too long a one becomes another error."""
LONGEST_PAUSE: Final = 5.0
"""Seconds that a body may take to begin, and between two pieces of it."""
LEAST_RATE: Final = 8_000
"""Bytes a second that a body must come with in the mean, once it took longer than LONGEST_PAUSE."""
CLIENT_LATE: Final = "client_deadline_exceeded"
"""Code and outcome, and in the metrics in the place of a status: no promise of the service counts it."""
_LONGEST_ID: Final = 128
_PROBES: Final = frozenset({"/livez", "/readyz", "/healthz", "/metrics"})
"""Asked every few seconds for as long as the service lives: counted, and logged and traced only when they fail."""

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)  # two calls are never equal
class RequestRecord:
    """What the protocols' edges, the queue and the engine write down of one request; `finish` makes it known."""

    request_id: str
    deadline: float = math.inf
    """On time.monotonic's clock; later nobody waits for the answer."""
    hurried: bool = False
    """Whether the client chose the deadline, and the service would have taken longer."""
    started: float = field(default_factory=time.monotonic)
    route: str = ""
    """Its name in metrics and log, one of few."""
    outcome: str = "answered"
    """Else the error's code."""
    key: str = ""
    """Name of the key that it came with."""
    images: int = 0
    """That were decoded or came as pixels."""
    decode_seconds: float = 0.0
    """This and the next two are summed over the images."""
    queue_seconds: float = 0.0
    infer_seconds: float = 0.0
    work: asyncio.Future[Any] | None = None
    """What is done for it in a task that its own does not hold."""
    memory: MemoryBudget = field(default_factory=MemoryBudget)
    """That its bytes are counted in; by default one without a bound."""
    progressed: float = field(default_factory=time.monotonic)
    """When bytes of it came last, on time.monotonic's clock."""
    stop_receiving: Callable[[], object] | None = None
    """Ends the reading of it, while it is read."""
    evicted: bool = False
    """Whether its bytes were given to another request while it was still coming."""

    def set_deadline(self, patience: float, limit: float) -> None:
        """`patience`: seconds from its start that the client waits; `limit`: that the service allows."""
        self.deadline = self.started + min(patience, limit)
        self.hurried = patience < limit

    @property
    def remaining(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    @property
    def late(self) -> str:
        """The code where its deadline has passed: a client's own short one is no failure of the service."""
        return CLIENT_LATE if self.hurried else "deadline_exceeded"

    def reserve_bytes(self, size: int) -> None:
        """More of it came: count the memory that this takes, until it is finished; 0 where it was counted ahead.

        Raises Overloaded without room for it, also where its room was given to another request. Clients that are slow
        to send, or send much, would else fill the memory of a process with room in its queue.
        """
        if self.evicted:
            raise Overloaded(1, "the request was slow to come, or large, and its memory was given to others")
        self.progressed = time.monotonic()
        if size:
            self.memory.reserve(self, size)

    def evict(self) -> None:
        """Make whoever reads it stop; `evicted` then says why."""
        self.evicted = True
        if self.stop_receiving is not None:
            self.stop_receiving()

    @property
    def abandoned(self) -> bool:
        return self.deadline == -math.inf

    def abandon(self) -> None:
        """Nobody waits for the answer any longer: end the work on it."""
        self.deadline = -math.inf
        if self.work is not None:
            self.work.cancel()

    def finish(
        self, protocol: str, code: str, carrier: Mapping[str, Any], scope: Mapping[str, Any] | None = None
    ) -> None:
        """Count the request, trace it, and log it in one line of JSON: id, outcome and timings, nothing of its content.

        `carrier` are its headers or metadata, of which tracing alone reads its own; `scope` is ASGI's, over HTTP.
        """
        self.memory.release(self)
        seconds = time.monotonic() - self.started
        excused = self.outcome == CLIENT_LATE
        metrics.REQUESTS.labels(protocol, self.route, CLIENT_LATE if excused else code).inc()
        metrics.REQUEST_SECONDS.labels(protocol, self.route).observe(seconds)
        if self.route in _PROBES and code == "200":
            return
        facts: dict[str, str | int | float] = {"request_id": self.request_id, "outcome": self.outcome}
        if self.key:
            facts["key"] = self.key
        if self.images:
            facts["images"] = self.images
            for stage in ("decode", "queue", "infer"):
                facts[f"{stage}_seconds"] = round(getattr(self, f"{stage}_seconds"), 6)
        tracing.record(protocol, self.route, code, seconds, facts, carrier, scope, excused=excused)
        if _log.isEnabledFor(logging.INFO):
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            where = {"protocol": protocol, "route": self.route, "code": code}
            _log.info("%s", json.dumps({"time": now, **where, **facts, "total_seconds": round(seconds, 6)}))


def choose_id(*wanted: object) -> str:
    """The first that is short printable ASCII, so that it can travel as a header and in a log; else a new one."""
    for text in wanted:
        if isinstance(text, str) and 0 < len(text) <= _LONGEST_ID and text.isascii() and text.isprintable():
            return text
    return uuid.uuid4().hex
