"""Sends gRPC requests with grpcio's asyncio client. Requests are serialised once, and answers stay bytes.

No client in C checks gRPC's status. This one takes more of the cores, so its CPU time is measured beside the rate.
"""

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Final

import grpc
import numpy as np

from benchmarks.wrk import Sample
from load_tests import payloads
from load_tests.verdict import LoadError

TIMEOUT_SECONDS: Final = 30


async def load(
    address: str, requests: Sequence[bytes], connections: int, warm_up: float, seconds: float, *, images: int = 1
) -> Sample:
    """Send the requests, each of so many images, one after another over each connection.

    What happens after `warm_up` seconds counts. The rate is in images a second. Raises LoadError if an answer is not
    good.
    """
    times: list[float] = []
    shares: list[float] = []
    begin = time.perf_counter() + warm_up
    end = begin + seconds

    async def ask_on(first: int) -> None:
        async with payloads.channel(address) as channel:
            ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(payloads.MODEL_INFER)
            for request in itertools.islice(itertools.cycle(requests), first, None):
                started = time.perf_counter()
                if started >= end:
                    return
                await ask(request, timeout=TIMEOUT_SECONDS)
                answered = time.perf_counter()
                shares.append(share_within(started, answered, begin, end))
                if begin <= answered < end:
                    times.append(answered - started)

    used = time.process_time()
    try:
        await asyncio.gather(*(ask_on(number) for number in range(connections)))
    except grpc.aio.AioRpcError as error:
        words = f"{error.code().name} {error.details()}"
        raise LoadError(f"gRPC {address}: expected good answers alone, got {words}") from error
    used = time.process_time() - used
    if not times:
        raise LoadError(f"gRPC {address}: no request was answered within {seconds:g} s")
    p50, p99 = 1000 * np.quantile(times, [0.5, 0.99])
    return Sample(images * sum(shares) / seconds, float(p50), float(p99), used / (warm_up + seconds))


def share_within(started: float, answered: float, begin: float, end: float) -> float:
    """The part of a request's time that lies between `begin` and `end`.

    Calls of several images start and end together, in waves. If whole answers were counted, one wave more or less would
    be a tenth of the rate.
    """
    return max(0.0, min(answered, end) - max(started, begin)) / (answered - started)
