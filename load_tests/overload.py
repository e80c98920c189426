"""`python -m load_tests.overload`: checks that the service stays useful at three times its capacity. PASS or FAIL.

Serves the newest model of the store, measures its capacity over both protocols, then sends requests in an open loop:
each is sent at its time, whether or not the earlier ones are answered. Requests from many people come like this.
"""

import argparse
import sys
from collections import Counter
from typing import Final, NamedTuple

import numpy as np

from load_tests import check, traffic
from load_tests.server import Server, serve
from load_tests.verdict import command, conclude

TIMES: Final = 3
MIN_GOODPUT: Final = 0.75
"""Good answers a second, as a share of the capacity."""
MAX_GROWTH: Final = 1.1
"""Memory in the last third of the time, as a multiple of the first third's."""
ALLOWED: Final = traffic.GOOD | traffic.BUSY | {"503", "UNAVAILABLE", "DEADLINE_EXCEEDED"}


class Result(NamedTuple):
    capacity: float
    """Good answers a second in a closed loop."""
    outcomes: list[traffic.Outcome]
    memory: list[float]
    """Bytes that the server has written, a value a second."""
    seconds: float
    """Length of the overload."""
    deadline: float
    """Seconds that a request may take."""


async def measure(server: Server, seconds: float, deadline: float) -> Result:
    async with traffic.Clients(server, deadline) as clients:
        capacity = await traffic.capacity(clients, seconds / 4)
        with traffic.each_second(server.written_memory) as memory:
            outcomes = await traffic.open_loop(clients, TIMES * capacity, seconds)
    return Result(capacity, outcomes, memory, seconds, deadline)


def judge(result: Result) -> tuple[list[str], list[str]]:
    """Return the lines of the table, and each miss in words."""
    codes = Counter(outcome.code for outcome in result.outcomes)
    good = np.array([outcome.seconds for outcome in result.outcomes if outcome.code in traffic.GOOD] or [np.inf])
    p50, p99 = np.quantile(good, [0.5, 0.99])
    goodput = float((good <= result.deadline).sum()) / result.seconds
    before, after = check.thirds(result.memory)
    others = {code: count for code, count in codes.items() if code not in ALLOWED}
    table = [
        f"{'capacity':24}{result.capacity:8.1f} requests/s",
        f"{'offered':24}{len(result.outcomes) / result.seconds:8.1f} requests/s",
        f"{'goodput':24}{goodput:8.1f} requests/s, {goodput / result.capacity:.0%} of the capacity",
        f"{'accepted, median':24}{p50:8.2f} s",
        f"{'accepted, p99':24}{p99:8.2f} s of {result.deadline:g} s",
        f"{'refused, busy':24}{sum(codes[code] for code in traffic.BUSY):8}",
        f"{'memory, first third':24}{before:8.0f} MB",
        f"{'memory, last third':24}{after:8.0f} MB",
        f"{'outcomes':24}{', '.join(f'{code} {count}' for code, count in sorted(codes.items()))}",
    ]
    misses = []
    if goodput < MIN_GOODPUT * result.capacity:
        misses.append(f"goodput of {goodput / result.capacity:.0%}, expected at least {MIN_GOODPUT:.0%}")
    if p99 > result.deadline:
        misses.append(f"accepted p99 {p99:.2f} s, expected at most {result.deadline:g} s")
    if after > MAX_GROWTH * before:
        misses.append(f"memory grew from {before:.0f} to {after:.0f} MB, expected at most {MAX_GROWTH:g} times")
    if others:
        misses.append(f"expected answers or refusals, got {others}")
    return table, misses


@command("overload")
def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 0 passed, 2 no verdict, 3 missed."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.overload", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="length of the overload (default 60)")
    parser.add_argument("--deadline", type=float, default=5, help="seconds a request may take (default 5)")
    options = parser.parse_args(arguments)
    with serve() as server:
        result = traffic.run(measure(server, options.seconds, options.deadline))
    table, misses = judge(result)
    print(*table, sep="\n")
    return conclude(misses)


if __name__ == "__main__":
    sys.exit(main())
