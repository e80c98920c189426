"""Measures whether memory grows under a steady load over both protocols."""

from typing import Final

import numpy as np

from load_tests import traffic
from load_tests.images import pictures
from load_tests.promises.results import Row, megabytes
from load_tests.server import serve

SHARE: Final = 0.6
"""Load, as a share of the capacity."""
SECONDS: Final = 20 * 60
MOST_GROWTH: Final = 0.02
"""Memory of the last quarter over that of the second quarter, minus 1."""


async def measure(scale: float) -> list[Row]:
    """Send for SECONDS times `scale`."""
    with serve() as server:
        async with traffic.Clients(server, 30, pictures(64)) as clients:
            capacity = await traffic.capacity(clients, max(2, 10 * scale))
            with traffic.each_second(server.written_memory) as memory:
                outcomes = await traffic.open_loop(clients, SHARE * capacity, SECONDS * scale)
    good = sum(outcome.code in traffic.GOOD for outcome in outcomes)
    quarters = [float(np.mean(quarter)) for quarter in np.array_split(memory, 4)]
    growth = quarters[3] / quarters[1] - 1
    return [
        Row("requests answered", f"{good} of {len(outcomes)}", "all", good == len(outcomes)),
        Row(
            "memory that its processes wrote, last quarter to second quarter",
            f"{megabytes(quarters[1])} to {megabytes(quarters[3])}, {growth:+.1%}",
            f"at most {MOST_GROWTH:+.0%}",
            growth <= MOST_GROWTH,
        ),
    ]
