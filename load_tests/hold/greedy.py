"""Do clients that send slowly, never finish, never read or send what is costly hurt everyone else?"""

import asyncio
import contextlib
import random
import zlib
from collections.abc import Awaitable, Callable, Sequence
from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image

from load_tests import traffic
from load_tests.hold import wire
from load_tests.hold.rows import Row, memory_row
from load_tests.images import pictures
from load_tests.server import Server, serve

ROUNDS: Final = 5
SECONDS: Final = 10
SHARE: Final = 0.3
"""Of the capacity, for the good clients."""
MOST_TIMES: Final = 3
HEAD: Final = "POST /v1/predict HTTP/1.1\r\nHost: chestct\r\nContent-Type: image/png\r\n"


async def measure(scale: float) -> list[Row]:
    with serve() as server:
        clients = traffic.Clients(server, 30, pictures(32))
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
        await clients.close()
    ratios = np.divide(beside, alone)
    times = float(np.median(ratios))
    told = f"{times:.2f} times ({ratios.min():.2f} to {ratios.max():.2f}), {1000 * np.median(alone):.0f} ms alone"
    return [
        Row("good requests answered beside slow and greedy clients", f"{sent - lost} of {sent}", "all", not lost),
        Row(f"their p99 at {rate:.0f} requests/s, {len(ratios)} rounds in alternation", told, f"{MOST_TIMES} times",
            times <= MOST_TIMES),
        memory_row(memory),
    ]  # fmt: skip


@contextlib.asynccontextmanager
async def _attackers(server: Server):  # type: ignore[no-untyped-def] # an async generator
    """All of them at once, each starting anew when the service ends it."""
    costly = _costly_pictures()
    kinds: Sequence[tuple[int, Callable[[], Awaitable[None]]]] = (
        (60, lambda: _hold(server.url, HEAD[:60].encode(), 3)),
        (86, lambda: _hold(server.url, f"{HEAD}Content-Length: 20000000\r\n\r\n".encode() + bytes(50_000), 3)),
        (20, lambda: _never_read(server.url)),
        (2, lambda: _send_costly(server.url, costly)),
        (6, lambda: _unfinished_streams(server.grpc)),
    )

    async def again(attack: Callable[[], Awaitable[None]]) -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                await attack()
            await asyncio.sleep(0.5 + random.random())

    tasks = [asyncio.ensure_future(again(attack)) for count, attack in kinds for _ in range(count)]
    await asyncio.sleep(3)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(2)


async def _hold(url: str, beginning: bytes, trickle_seconds: float) -> None:
    """Send the beginning of a request, then a byte now and then, until the service ends the connection."""
    reader, writer = await wire.connect(url)
    try:
        writer.write(beginning)
        while not reader.at_eof():
            await asyncio.sleep(trickle_seconds)
            writer.write(b"a")
            await writer.drain()
    finally:
        writer.close()


async def _never_read(url: str) -> None:
    """Ask again and again for the largest answer on one connection and read none."""
    _, writer = await wire.connect(url)
    body = pictures(1)[0][1]
    request = wire.post("/v1/predict?explain=true", body, {"Content-Type": "image/png"})
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    try:
        async with asyncio.timeout(SECONDS):
            while True:
                writer.write(request)
                await writer.drain()
                await asyncio.sleep(1)
    finally:
        writer.transport.abort()


def _costly_pictures() -> list[bytes]:
    """A wide PNG, a JPEG of a thousand scans, a PNG of many chunks."""
    wide = BytesIO()
    Image.new("L", (1, 1 << 24)).save(wide, "PNG")
    progressive = BytesIO()
    Image.new("L", (2048, 2048), 128).save(progressive, "JPEG", progressive=True)
    jpeg = progressive.getvalue()
    last = jpeg.rindex(b"\xff\xda")
    scans = jpeg[:last] + jpeg[last:-2] * 1000 + jpeg[-2:]
    small = BytesIO()
    Image.new("L", (64, 64)).save(small, "PNG")
    png = small.getvalue()
    chunk = b"\0\0\0\0tEXt" + zlib.crc32(b"tEXt").to_bytes(4, "big")
    return [wide.getvalue(), scans, png[:33] + chunk * 100_000 + png[33:]]


async def _send_costly(url: str, files: Sequence[bytes]) -> None:
    for data in files:
        await wire.exchange(url, wire.post("/v1/predict", data, {"Content-Type": "image/png"}))


async def _unfinished_streams(address: str) -> None:
    """Twenty gRPC calls on one connection, each with a message of 20 MB of which 60 kB come."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b""))
        headers = b"".join(
            b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
            for name, value in (
                (b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"chestct"),
                (b":path", b"/inference.GRPCInferenceService/ModelInfer"), (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
            )
        )  # fmt: skip
        for stream in range(1, 40, 2):
            writer.write(_frame(1, 4, stream, headers))
            message = b"\0" + (20_000_000).to_bytes(4, "big") + bytes(3000)
            writer.write(_frame(0, 0, stream, message))
        async with asyncio.timeout(SECONDS):
            while await reader.read(65536):
                pass
    finally:
        writer.close()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
