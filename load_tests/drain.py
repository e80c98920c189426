"""`python -m load_tests.drain`: checks that a roll-out loses no request. PASS or FAIL.

Serves the newest model of the store and sends SIGTERM to the server at 70 % of its capacity, ten times. The clients of
each protocol ask whether the service is ready, as a load balancer does, and go on sending for a while after it is not.
The service must answer every request that was sent until then, and it must end in time.
"""

import argparse
import asyncio
import signal
import sys
import time
from collections import Counter
from typing import Final, NamedTuple

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from load_tests import traffic, wire
from load_tests.server import Server, serve
from load_tests.verdict import command, conclude
from serving.settings import Settings

SHARE: Final = 0.7
"""Load, as a share of the capacity."""
DRAIN_SECONDS: Final = 1.0
LAG: Final = 0.8
"""Seconds until the clients notice that the service is not ready."""
POLL_SECONDS: Final = 0.02


class Round(NamedTuple):
    """One SIGTERM under load. The dictionaries are by protocol."""

    sent: dict[str, int]
    lost: dict[str, int]
    noticed: dict[str, float]
    """Seconds from SIGTERM until the service is not ready."""
    ended: float
    """Seconds from SIGTERM until the process ends."""


class Readiness:
    """Records when the service stops being ready, for each protocol."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.since: dict[str, float] = {}

    def going(self, kind: str) -> bool:
        """Whether the clients of that protocol still send."""
        return kind not in self.since or time.monotonic() < self.since[kind] + LAG

    async def watch_http(self) -> None:
        while (await wire.exchange(self._server.url, wire.get("/readyz"))).code == "200":
            await asyncio.sleep(POLL_SECONDS)
        self.since["HTTP"] = time.monotonic()

    async def watch_grpc(self) -> None:
        async with grpc.aio.insecure_channel(self._server.grpc) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            async for answer in stub.Watch(health_pb2.HealthCheckRequest(service="")):
                if answer.status != health_pb2.HealthCheckResponse.SERVING:
                    self.since["gRPC"] = time.monotonic()
                    return


async def measure(server: Server, rate: float, seconds: float) -> Round:
    """Send `rate` requests a second for `seconds`, then SIGTERM."""
    readiness = Readiness(server)
    async with traffic.Clients(server, Settings.read().request_timeout) as clients:
        watches = [asyncio.ensure_future(watch) for watch in (readiness.watch_http(), readiness.watch_grpc())]
        load = asyncio.ensure_future(traffic.open_loop(clients, rate, seconds + 60, readiness.going))
        await asyncio.sleep(seconds)
        stopped = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        ending = asyncio.ensure_future(asyncio.to_thread(server.process.wait, 90))
        outcomes = await load
        await asyncio.gather(*watches)
        await ending
        ended = time.monotonic() - stopped
    lost = Counter(outcome.protocol for outcome in outcomes if outcome.code not in traffic.GOOD)
    sent = Counter(outcome.protocol for outcome in outcomes)
    return Round(sent, lost, {kind: at - stopped for kind, at in readiness.since.items()}, ended)


async def find_capacity(server: Server, seconds: float) -> float:
    async with traffic.Clients(server, 30) as clients:
        return await traffic.capacity(clients, seconds)


@command("drain")
def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 0 passed, 2 no verdict, 3 missed."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.drain", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="number of SIGTERMs (default 10)")
    parser.add_argument("--seconds", type=float, default=5, help="traffic before each SIGTERM (default 5)")
    options = parser.parse_args(arguments)
    limit = DRAIN_SECONDS + Settings.read().request_timeout
    rounds = []
    with serve() as server:
        rate = SHARE * traffic.run(find_capacity(server, options.seconds))
    for _ in range(options.rounds):
        with serve(drain_seconds=DRAIN_SECONDS) as server:
            rounds.append(traffic.run(measure(server, rate, options.seconds)))
    print(f"{rate:.1f} requests/s, {SHARE:.0%} of the capacity, half of them over each protocol")
    heads = "  ".join(f"{f'{kind}: sent':>10} {'lost':>5} {'not ready':>10}" for kind in traffic.PROTOCOLS)
    print(f"{'round':>5}  {heads}  {'ended':>7}")
    for number, one in enumerate(rounds, 1):
        cells = "  ".join(
            f"{one.sent[kind]:10} {one.lost[kind]:5} {one.noticed[kind]:9.2f}s" for kind in traffic.PROTOCOLS
        )
        print(f"{number:5}  {cells}  {one.ended:6.1f}s")
    misses = []
    if lost := sum(sum(one.lost.values()) for one in rounds):
        misses.append(f"{lost} requests lost, expected none")
    if (slowest := max(one.ended for one in rounds)) > limit:
        misses.append(f"ended after {slowest:.1f} s, expected at most {limit:g} s")
    return conclude(misses)


if __name__ == "__main__":
    sys.exit(main())
