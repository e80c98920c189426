"""What happens to the replicas, and what the clients notice of it."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from load_tests import traffic
from load_tests.rollout.balancer import Balancer
from load_tests.rollout.replicas import Replicas
from load_tests.server import Server

DEADLINE: Final = 10.0
"""Seconds that a client waits for an answer."""
CALM_SECONDS: Final = 10.0
"""Traffic before each event, and after it."""
MOST_SECONDS: Final = 600.0
OVER_SECONDS: Final = 30.0
"""A freeze must be over after this time."""


class Row(NamedTuple):
    """One event and what the clients saw."""

    what: str
    sent: int
    lost: dict[str, int]
    """Requests without a good answer, by HTTP status or gRPC code. A refusal counts, too."""
    retried: int
    """Times that the balancer sent a request to another replica, because the first refused its connection."""
    over: float
    """Seconds from the start of the event until the last lost request ended."""
    p99: tuple[float, float, float]
    """Milliseconds of the good answers to requests that were due before, during and after the event."""
    must: str
    held: bool


class Bound(NamedTuple):
    """What an event may cost."""

    lost: int | None = None
    over: float | None = None

    def words(self) -> str:
        if self.lost is not None:
            return f"at most {self.lost} lost" if self.lost else "0 lost"
        return f"over within {self.over:g} s"

    def holds(self, lost: int, over: float) -> bool:
        return (self.lost is None or lost <= self.lost) and (self.over is None or over <= self.over)


Event = Callable[[], Awaitable[Bound]]


def replace_each(replicas: Replicas, image: str) -> Event:
    """Start a replica of `image`, then stop the oldest one, until each is replaced."""

    async def event() -> Bound:
        for old in list(replicas.running):
            free = next(slot for slot in replicas.places if slot not in replicas.running)
            await replicas.start(free, image)
            await replicas.stop(old)
        return Bound(lost=0)

    return event


def kill_one(replicas: Replicas) -> Event:
    """Kill a replica with SIGKILL. It may lose the requests that it had not answered."""

    async def event() -> Bound:
        return Bound(lost=await replicas.kill(replicas.running[0]))

    return event


def freeze_one(replicas: Replicas) -> Event:
    """Freeze a replica. The balancer must notice, and later the kubelet's probe restarts it."""

    async def event() -> Bound:
        slot = replicas.running[0]
        await replicas.freeze(slot)
        await replicas.restart_if_dead(slot)
        return Bound(over=OVER_SECONDS)

    return event


async def measure(what: str, event: Event, server: Server, balancer: Balancer, rate: float) -> Row:
    """Send `rate` requests a second before, during and after the event."""
    done = asyncio.Event()
    async with traffic.Clients(server, DEADLINE) as clients:
        retried = await balancer.retried()
        started = time.monotonic()
        load = asyncio.ensure_future(traffic.open_loop(clients, rate, MOST_SECONDS, lambda _: not done.is_set()))
        await asyncio.sleep(CALM_SECONDS)
        begun = time.monotonic() - started
        try:
            bound = await event()
            ended = time.monotonic() - started
            await asyncio.sleep(CALM_SECONDS)
        finally:
            done.set()
            outcomes = await load
        retried = await balancer.retried() - retried
    return judge(what, outcomes, rate, begun, ended, retried, bound)


def judge(
    what: str,
    outcomes: Sequence[traffic.Outcome],
    rate: float,
    begun: float,
    ended: float,
    retried: int,
    bound: Bound,
) -> Row:
    """Return the row. `outcomes`: in the order of sending. `begun`, `ended`: seconds from the first request."""
    due = np.arange(len(outcomes)) / rate
    seconds = np.array([outcome.seconds for outcome in outcomes])
    good = np.array([outcome.code in traffic.GOOD for outcome in outcomes])
    lost = dict(sorted(Counter(outcome.code for outcome in outcomes if outcome.code not in traffic.GOOD).items()))
    over = float((due + seconds)[~good].max() - begun) if lost else 0.0
    parts = (due < begun, (due >= begun) & (due < ended), due >= ended)
    p99 = tuple(_p99(seconds[part & good]) for part in parts)
    return Row(what, len(outcomes), lost, retried, over, p99, bound.words(), bound.holds(sum(lost.values()), over))  # type: ignore[arg-type]


def _p99(seconds: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> float:
    return float(np.quantile(seconds, 0.99)) * 1000 if len(seconds) else float("nan")
