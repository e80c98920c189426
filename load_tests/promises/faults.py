"""Measures how many requests a fault costs, and how soon the service recovers."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import Final, NamedTuple

import psutil

from load_tests import traffic
from load_tests.images import dicom_file, pictures
from load_tests.promises.results import Row
from load_tests.server import Server, serve
from load_tests.verdict import LoadError

SHARE: Final = 0.4
"""Load, as a share of the capacity. One worker of two can bear it."""
BEFORE_SECONDS: Final = 4
AFTER_SECONDS: Final = 40
MOST_SECONDS: Final = 30
"""Time to recover."""
ANSWERED: Final = traffic.GOOD | traffic.BUSY


class Fault(NamedTuple):
    what: str
    strike: Callable[[Server], None]


def _kill_worker(server: Server) -> None:
    next(iter(server.workers().values())).kill()


def _freeze_worker(server: Server) -> None:
    next(iter(server.workers().values())).suspend()


def _kill_readers(server: Server) -> None:
    found = server.readers()
    if not found:
        raise LoadError("no process reads DICOM files, though some were sent")
    for reader in found:
        reader.kill()


FAULTS: Final = (
    Fault("a worker is killed", _kill_worker),
    Fault("a worker is frozen (SIGSTOP)", _freeze_worker),
    Fault("the processes that read DICOM files are killed", _kill_readers),
)


async def measure(scale: float) -> list[Row]:
    """Cause each fault once; `scale` has no effect."""
    rows = []
    with serve() as server:
        async with traffic.Clients(server, 10, _images()) as clients:
            rate = SHARE * await traffic.capacity(clients, 5)
        for fault in FAULTS:
            rows.append(await _strike(server, fault, rate))
    rows.append(await asyncio.to_thread(_kill_supervisor))
    return rows


def _images() -> list[tuple[str, bytes]]:
    """Return 16 pictures and a DICOM file."""
    return [*pictures(16), ("application/dicom", dicom_file())]


async def _strike(server: Server, fault: Fault, rate: float) -> Row:
    count = len(server.workers())
    async with traffic.Clients(server, 10, _images()) as clients:
        load = asyncio.ensure_future(traffic.open_loop(clients, rate, BEFORE_SECONDS + AFTER_SECONDS))
        await asyncio.sleep(BEFORE_SECONDS)
        await asyncio.to_thread(fault.strike, server)
        outcomes = await load
    # Seconds from the fault to the end of each lost request.
    ended = [
        number / rate + outcome.seconds - BEFORE_SECONDS
        for number, outcome in enumerate(outcomes)
        if outcome.code not in ANSWERED
    ]
    recovered = max(ended, default=0)
    alive = len(server.workers())
    measured = f"{len(ended)} of {len(outcomes)} lost, well after {recovered:.1f} s, {alive} of {count} workers"
    return Row(f"{fault.what}, {rate:.0f} requests/s", measured, f"well within {MOST_SECONDS} s",
               recovered <= MOST_SECONDS and alive == count)  # fmt: skip


def _kill_supervisor() -> Row:
    """Kill the supervisor: all processes below it must end."""
    with serve() as server:
        family = psutil.Process(server.process.pid).children(recursive=True)
        os.kill(server.process.pid, signal.SIGKILL)
        started = time.monotonic()
        _, alive = psutil.wait_procs(family, timeout=MOST_SECONDS)
        seconds = time.monotonic() - started
        for process in alive:
            process.kill()
    measured = f"{len(alive)} of {len(family)} processes left after {seconds:.1f} s"
    return Row("the supervisor is killed", measured, "0 processes left", not alive)
