"""Measures how much good clients suffer beside ones that send slowly, never finish, never read or send costly files."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Final

import numpy as np

from load_tests import traffic
from load_tests.images import pictures
from load_tests.promises.results import Row, memory_row
from load_tests.server import ROOT, Server, serve
from load_tests.verdict import LoadError

ROUNDS: Final = 5
SECONDS: Final = 10
"""Length of each half of a round: alone, then beside the greedy clients."""
SHARE: Final = 0.3
"""Load of the good clients, as a share of the capacity."""
MOST_TIMES: Final = 3
"""p99 beside the greedy clients, as a multiple of the p99 alone."""


async def measure(scale: float) -> list[Row]:
    """Run ROUNDS times `scale` rounds."""
    with serve() as server:
        async with traffic.Clients(server, 30, pictures(32)) as clients:
            rate = SHARE * await traffic.capacity(clients, 5)
            alone: list[float] = []
            beside: list[float] = []
            lost = sent = 0
            with traffic.each_second(server.memory) as memory:
                for _ in range(max(1, round(ROUNDS * scale))):
                    for p99s, besieged in ((alone, False), (beside, True)):
                        async with _attackers(server) if besieged else contextlib.nullcontext():
                            outcomes = await traffic.open_loop(clients, rate, SECONDS)
                        sent += len(outcomes)
                        lost += sum(outcome.code not in traffic.GOOD for outcome in outcomes)
                        p99s.append(float(np.quantile([outcome.seconds for outcome in outcomes], 0.99)))
    ratios = np.divide(beside, alone)
    times = float(np.median(ratios))
    measured = f"{times:.2f} times ({ratios.min():.2f} to {ratios.max():.2f}), {1000 * np.median(alone):.0f} ms alone"
    return [
        Row("good requests answered beside slow and greedy clients", f"{sent - lost} of {sent}", "all", not lost),
        Row(f"their p99 at {rate:.0f} requests/s, {len(ratios)} rounds in alternation", measured, f"{MOST_TIMES} times",
            times <= MOST_TIMES),
        memory_row(memory),
    ]  # fmt: skip


@contextlib.asynccontextmanager
async def _attackers(server: Server) -> AsyncIterator[None]:
    """Run load_tests.promises.attackers in another process, so that it does not delay this one, which measures."""
    command = [sys.executable, "-m", "load_tests.promises.attackers", server.url, server.grpc]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    assert process.stdout
    try:
        if not await process.stdout.readline():
            raise LoadError("the greedy clients did not start")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    await asyncio.sleep(2)  # the service notices closed connections
