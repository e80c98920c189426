"""Traffic of two protocols: requests at set times whatever the service does (open loop), or one after another.

It has its own small HTTP client, and gRPC messages made ahead, since it runs on the cores of the service that it
measures.
"""

import asyncio
import contextlib
import itertools
import re
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Final, NamedTuple

import grpc
import uvloop
from open_inference.grpc import protocol

from load_tests.images import phantom
from load_tests.server import Server
from load_tests.verdict import LoadError

CHANNELS: Final = 8
"""A gRPC connection stays with one worker; so many reach two or three."""
PROTOCOLS: Final = ("HTTP", "gRPC")
GOOD: Final = frozenset({"200", "OK"})
BUSY: Final = frozenset({"429", "RESOURCE_EXHAUSTED"})

_MODEL_INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Outcome(NamedTuple):
    protocol: str
    code: str
    """HTTP status or gRPC code; `lost` where a connection ended without an answer."""
    seconds: float
    """From when the request was due to its answer."""


class Clients:
    """Sends images in turn, over HTTP connections that are kept and over gRPC channels. For one event loop."""

    def __init__(
        self, server: Server, deadline: float, images: Sequence[tuple[str, bytes]] = (), channels: int = CHANNELS
    ) -> None:
        """`deadline`: seconds that a request may take, told to the service too.

        `images`: media type and bytes of each, else one phantom. `channels`: gRPC connections.
        """
        images = images or [("image/png", phantom())]
        self.log: Final = server.log
        self._netloc = server.url.removeprefix("http://")
        head = f"POST /v1/predict HTTP/1.1\r\nHost: {self._netloc}\r\nX-Request-Timeout: {deadline}\r\n"
        self._messages = itertools.cycle(
            f"{head}Content-Type: {media_type}\r\nContent-Length: {len(image)}\r\n\r\n".encode() + image
            for media_type, image in images
        )
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.aio.insecure_channel(server.grpc, options=options) for _ in range(channels)]
        parse = protocol.ModelInferResponse.FromString
        self._methods = itertools.cycle(
            [channel.unary_unary(_MODEL_INFER, response_deserializer=parse) for channel in self._channels]
        )
        tensors = [
            {"name": "image", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [image]}}
            for _, image in images
        ]
        self._requests = itertools.cycle(
            [
                protocol.ModelInferRequest(model_name="chestct", inputs=[tensor]).SerializeToString()
                for tensor in tensors
            ]
        )
        self._deadline = deadline

    async def ask(self, kind: str, due: float) -> Outcome:
        """The outcome of one request by that protocol; never raises for what the service does."""
        code = await (self._ask_http() if kind == "HTTP" else self._ask_grpc())
        return Outcome(kind, code, time.monotonic() - due)

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
        for channel in self._channels:
            await channel.close()

    async def _ask_grpc(self) -> str:
        try:
            await next(self._methods)(next(self._requests), timeout=self._deadline)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "OK"

    async def _ask_http(self) -> str:
        try:
            async with asyncio.timeout(self._deadline + 5):
                while self._idle:
                    reader, writer = self._idle.pop()
                    if not reader.at_eof():
                        break
                    writer.close()
                else:
                    host, port = self._netloc.split(":")
                    reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(next(self._messages))
                head = await reader.readuntil(b"\r\n\r\n")
                length = _LENGTH.search(head)
                await reader.readexactly(int(length[1]) if length else 0)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            return "lost"
        if b"\r\nconnection: close" in head.lower():
            writer.close()
        else:
            self._idle.append((reader, writer))
        return head[9:12].decode()


async def open_loop(
    clients: Clients,
    rate: float,
    seconds: float,
    going: Callable[[str], bool] = lambda _: True,
    protocols: Sequence[str] = PROTOCOLS,
) -> list[Outcome]:
    """The outcomes of `rate` requests a second, the protocols in turn, each sent while `going(protocol)`."""
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


async def capacity(clients: Clients, seconds: float, connections: int = 16) -> float:
    """Good answers a second when each of the connections asks again as soon as it has its answer.

    Measured for `seconds`, after a third of that to get warm. Raises LoadError where nothing was answered.
    """

    begin = time.monotonic() + seconds / 3
    end = begin + seconds

    async def ask_on(kind: str) -> int:
        good = 0
        while (now := time.monotonic()) < end:
            answered = (await clients.ask(kind, now)).code in GOOD
            good += answered and begin <= time.monotonic() < end
        return good

    kinds = itertools.islice(itertools.cycle(PROTOCOLS), connections)
    good = sum(await asyncio.gather(*(ask_on(kind) for kind in kinds)))
    if not good:
        raise LoadError(f"no request was answered; {clients.log} says why")
    return good / seconds


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of that work in the faster event loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


@contextlib.contextmanager
def each_second(measure: Callable[[], float]) -> Iterator[list[float]]:
    """What `measure` gives once a second meanwhile; for a running event loop."""
    values: list[float] = []

    async def keep() -> None:
        while True:
            values.append(await asyncio.to_thread(measure))
            await asyncio.sleep(1)

    task = asyncio.ensure_future(keep())
    try:
        yield values
    finally:
        task.cancel()
