"""Sends requests over HTTP and gRPC: at fixed times (open loop), or each one after an answer (closed loop).

The client shares its cores with the service that it measures. It is therefore small: its own HTTP client, and gRPC
messages that are serialised once.
"""

import asyncio
import contextlib
import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, Self, TypeVar

import grpc
import uvloop
from open_inference.grpc import protocol
from tqdm import tqdm

from load_tests import payloads, wire
from load_tests.images import phantom
from load_tests.server import Server
from load_tests.verdict import LoadError

T = TypeVar("T")

CHANNELS: Final = 8
"""gRPC connections. Each stays with one worker; this many reach two or three workers."""
PROTOCOLS: Final = ("HTTP", "gRPC")
GOOD: Final = frozenset({"200", "OK"})
BUSY: Final = frozenset({"429", "RESOURCE_EXHAUSTED"})


class Outcome(NamedTuple):
    protocol: str
    code: str
    """HTTP status or gRPC code; `lost` if the connection ended without an answer."""
    seconds: float
    """Time from the moment when the request was due to its answer."""


class Clients:
    """Sends images in turn over kept HTTP connections and gRPC channels, in one event loop."""

    def __init__(
        self, server: Server, deadline: float, images: Sequence[tuple[str, bytes]] = (), channels: int = CHANNELS
    ) -> None:
        """Open the channels. HTTP connections are opened when they are needed.

        `deadline`: seconds that a request may take; the service receives it too. `images`: media type and bytes of
        each; default one phantom. `channels`: number of gRPC connections.
        """
        images = images or [("image/png", phantom())]
        self.log: Final = server.log
        self._netloc = server.url.removeprefix("http://")
        headers = {"Host": self._netloc, "X-Request-Timeout": str(deadline)}
        self._posts = itertools.cycle(
            [wire.post("/v1/predict", image, {**headers, "Content-Type": kind}) for kind, image in images]
        )
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._channels = [payloads.channel(server.grpc) for _ in range(channels)]
        parse = protocol.ModelInferResponse.FromString
        self._methods = itertools.cycle(
            [channel.unary_unary(payloads.MODEL_INFER, response_deserializer=parse) for channel in self._channels]
        )
        self._messages = itertools.cycle([payloads.image_message(image).SerializeToString() for _, image in images])
        self._deadline = deadline

    async def ask(self, kind: str, due: float) -> Outcome:
        """Send one request over the protocol `kind`. Failures of the service are outcomes, not exceptions."""
        code = await (self._ask_http() if kind == "HTTP" else self._ask_grpc())
        return Outcome(kind, code, time.monotonic() - due)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for _, writer in self._idle:
            writer.close()
        for channel in self._channels:
            await channel.close()

    async def _ask_grpc(self) -> str:
        try:
            await next(self._methods)(next(self._messages), timeout=self._deadline)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "OK"

    async def _ask_http(self) -> str:
        writer = None
        try:
            async with asyncio.timeout(self._deadline + 5):
                reader, writer = self._take_idle() or await wire.connect(self._netloc)
                writer.write(next(self._posts))
                answer = await wire.read_answer(reader)
        except (OSError, asyncio.IncompleteReadError):
            if writer is not None:
                writer.close()
            return "lost"
        if answer.closes:
            writer.close()
        else:
            self._idle.append((reader, writer))
        return answer.code

    def _take_idle(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Take the connection that was used last. Close those that the service has ended."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None


async def open_loop(
    clients: Clients,
    rate: float,
    seconds: float,
    going: Callable[[str], bool] = lambda _: True,
    protocols: Sequence[str] = PROTOCOLS,
) -> list[Outcome]:
    """Send `rate` requests a second, over the protocols in turn, as long as `going(protocol)`. Returns the outcomes."""
    started = time.monotonic()
    running: list[asyncio.Task[Outcome]] = []
    for number in range(int(rate * seconds)):
        due = started + number / rate
        if (early := due - time.monotonic()) > 0:
            await asyncio.sleep(early)
        kind = protocols[number % len(protocols)]
        if going(kind):
            running.append(asyncio.ensure_future(clients.ask(kind, due)))
        elif not any(going(kind) for kind in protocols):
            break
    return await asyncio.gather(*running)


async def capacity(clients: Clients, seconds: float, connections: int = 16, within: float = math.inf) -> float:
    """Return the good answers a second in a closed loop: each connection sends again as soon as it has its answer.

    Measures for `seconds`, after a third of that as warm-up. Counts only answers within `within` seconds. Raises
    LoadError if nothing was answered.
    """
    begin = time.monotonic() + seconds / 3
    end = begin + seconds

    async def ask_on(kind: str) -> int:
        good = 0
        while (now := time.monotonic()) < end:
            outcome = await clients.ask(kind, now)
            if outcome.code in GOOD and begin <= time.monotonic() < end:
                answered.add(kind)
                good += outcome.seconds <= within
        return good

    answered: set[str] = set()
    kinds = itertools.islice(itertools.cycle(PROTOCOLS), connections)
    good = sum(await asyncio.gather(*(ask_on(kind) for kind in kinds)))
    if not answered:
        raise LoadError(f"no request was answered; {clients.log} says why")
    return good / seconds


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in uvloop's event loop, which is faster, and return its result."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


async def tally(ask: Callable[[], Awaitable[T]], times: int, at_once: int, name: str) -> Counter[T]:
    """Call `ask` so many times, `at_once` at a time, and count the results. `name` labels the progress bar."""
    counts: Counter[T] = Counter()
    left = iter(range(times))
    with tqdm(total=times, desc=name) as bar:

        async def ask_on() -> None:
            for _ in left:
                counts[await ask()] += 1
                bar.update()

        await asyncio.gather(*(ask_on() for _ in range(at_once)))
    return counts


@contextlib.contextmanager
def each_second(measure: Callable[[], float]) -> Iterator[list[float]]:
    """Collect a value of `measure` now, and each second inside the `with` block. Raises its errors at the end."""
    values = [measure()]
    done = threading.Event()

    def keep() -> None:
        while not done.wait(1):
            values.append(measure())

    with ThreadPoolExecutor(1) as pool:
        keeping = pool.submit(keep)
        try:
            yield values
        finally:
            done.set()
        keeping.result()
