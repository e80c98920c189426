"""The tail of the service's latency, compared with the bare loop's under the same arrivals in the same minute.

Service and loop take turns, in alternating order. Before and after each pair the loop runs at full speed for a moment.
If these two rates differ by more than MOST_WAVER, the machine itself wavered, and the pair does not count.
"""

import time
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from benchmarks.wrk import Sample
from load_tests import traffic
from load_tests.server import Server
from load_tests.verdict import LoadError

PAIRS: Final = 24
MOST_WAVER: Final = 0.15
WARM_UP: Final = 1
"""Seconds that don't count."""
LEAST_PAIRS: Final = 6
"""Pairs that must count. With fewer, the median has no interval of 95 %."""


class Tail(NamedTuple):
    """The pairs that counted."""

    service: list[Sample]
    loop: list[Sample]
    wavered: int
    """Number of pairs that did not count."""


def compare(
    service: Callable[[], Sample], loop: Callable[[], Sample], speed: Callable[[], float], pairs: int = PAIRS
) -> Tail:
    """Measure pairs of `service` and `loop`. `speed` returns the loop's images a second at full speed.

    Raises LoadError if fewer than LEAST_PAIRS count, or all of them if fewer are measured.
    """
    kept = Tail([], [], 0)
    after = speed()
    for number in range(pairs):
        before = after
        if number % 2:
            bare, ours = loop(), service()
        else:
            ours, bare = service(), loop()
        after = speed()
        if abs(after / before - 1) > MOST_WAVER:
            kept = kept._replace(wavered=kept.wavered + 1)
            continue
        kept.service.append(ours)
        kept.loop.append(bare)
    if len(kept.loop) < min(LEAST_PAIRS, pairs):
        raise LoadError(
            f"the machine wavered by more than {MOST_WAVER:.0%} in {kept.wavered} of {pairs} pairs; "
            "end what else runs here, and try again"
        )
    return kept


async def by_the_clock(server: Server, images: list[tuple[str, bytes]], rate: float, seconds: float) -> Sample:
    """Send `rate` image files a second over HTTP, evenly spaced. The first second does not count.

    Raises LoadError if an answer is not good.
    """
    async with traffic.Clients(server, 30, images) as clients:
        used = time.process_time()
        outcomes = await traffic.open_loop(clients, rate, WARM_UP + seconds, protocols=("HTTP",))
        used = time.process_time() - used
    if bad := {outcome.code for outcome in outcomes} - traffic.GOOD:
        raise LoadError(f"{server.url}: expected good answers alone at {rate:.1f} requests/s, got {sorted(bad)}")
    times = [1000 * outcome.seconds for outcome in outcomes[int(WARM_UP * rate) :]]
    if not times:
        raise LoadError(f"{server.url}: expected at least one image a second, got {rate:.2f}")
    p50, p99 = np.quantile(times, [0.5, 0.99])
    return Sample(len(times) / seconds, float(p50), float(p99), used / (WARM_UP + seconds))
