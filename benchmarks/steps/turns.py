"""Turns: the same requests again and again, and the CPU time of this thread for each."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

import numpy as np

AT_ONCE: Final = 16
"""Images of one turn, all in progress at the same time."""
WARM_UP: Final = 10
"""Turns that do not count."""

Turn = Callable[[], Awaitable[None]]
"""Answers requests for AT_ONCE images."""
Name = TypeVar("Name")


def together(ask: Callable[[], Awaitable[object]], images: int = 1) -> Turn:
    """The turn that asks for AT_ONCE images at the same time, so many of them in each request."""

    async def turn() -> None:
        await asyncio.gather(*(ask() for _ in range(AT_ONCE // images)))

    return turn


async def medians(turns: Mapping[Name, Turn], rounds: int) -> dict[Name, float]:
    """Return the microseconds an image of each turn: the median of so many rounds."""
    times: dict[Name, list[float]] = {name: [] for name in turns}
    for number in range(WARM_UP + rounds):
        for name, turn in turns.items():
            started = time.thread_time()
            await turn()
            if number >= WARM_UP:
                times[name].append(1e6 * (time.thread_time() - started) / AT_ONCE)
    return {name: float(np.median(values)) for name, values in times.items()}
