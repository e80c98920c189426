"""`python -m load_tests.promises.attackers URL GRPC`: runs greedy clients until this process is ended.

Prints a line when all have started. Each starts again when the service closes its connection.
"""

import asyncio
import contextlib
import random
import sys
import zlib
from collections.abc import Awaitable, Callable, Sequence
from io import BytesIO
from typing import Final

from PIL import Image

from load_tests import payloads, wire
from load_tests.images import phantom

HEAD: Final = "POST /v1/predict HTTP/1.1\r\nHost: chestct\r\nContent-Type: image/png\r\n"
TRICKLE_SECONDS: Final = 3
"""Time between two bytes of a slow client."""
TURN_SECONDS: Final = 10
START_SECONDS: Final = 5
MOST_SECONDS: Final = 600


async def attack(url: str, grpc: str) -> None:
    """Run all greedy clients at once, for MOST_SECONDS at most."""
    costly = _costly_pictures()
    explain = wire.post("/v1/predict?explain=true", phantom(), {"Content-Type": "image/png"})
    body = f"{HEAD}Content-Length: 20000000\r\n\r\n".encode() + bytes(50_000)
    kinds: Sequence[tuple[int, Callable[[], Awaitable[None]]]] = (
        (60, lambda: _hold(url, HEAD[:60].encode())),
        (86, lambda: _hold(url, body)),
        (20, lambda: _never_read(url, explain)),
        (2, lambda: _send_costly(url, costly)),
        (6, lambda: _unfinished_streams(grpc)),
    )

    async def again(one: Callable[[], Awaitable[None]]) -> None:
        await asyncio.sleep(TRICKLE_SECONDS * random.random())  # starts are spread, not one burst of load
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                await one()
            await asyncio.sleep(0.5 + random.random())

    tasks = [asyncio.ensure_future(again(one)) for count, one in kinds for _ in range(count)]
    await asyncio.sleep(START_SECONDS)
    print(f"{len(tasks)} greedy clients", flush=True)
    await asyncio.wait(tasks, timeout=MOST_SECONDS, return_when=asyncio.FIRST_EXCEPTION)


async def _hold(url: str, beginning: bytes) -> None:
    """Send the beginning of a request, then a byte every few seconds, until the service closes the connection."""
    reader, writer = await wire.connect(url)
    try:
        writer.write(beginning)
        while not reader.at_eof():
            await asyncio.sleep(TRICKLE_SECONDS)
            writer.write(b"a")
            await writer.drain()
    finally:
        writer.close()


async def _never_read(url: str, request: bytes) -> None:
    """Send requests on one connection and read no answer."""
    _, writer = await wire.connect(url)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    try:
        async with asyncio.timeout(TURN_SECONDS):
            while True:
                writer.write(request)
                await writer.drain()
                await asyncio.sleep(TRICKLE_SECONDS)
    finally:
        writer.transport.abort()


def _costly_pictures() -> list[bytes]:
    """Return a tall PNG, a JPEG of a thousand scans, and a PNG of many chunks."""
    tall = BytesIO()
    Image.new("L", (1, 1 << 24)).save(tall, "PNG")
    progressive = BytesIO()
    Image.new("L", (2048, 2048), 128).save(progressive, "JPEG", progressive=True)
    jpeg = progressive.getvalue()
    last = jpeg.rindex(b"\xff\xda")
    scans = jpeg[:last] + jpeg[last:-2] * 1000 + jpeg[-2:]
    small = BytesIO()
    Image.new("L", (64, 64)).save(small, "PNG")
    png = small.getvalue()
    chunk = b"\0\0\0\0tEXt" + zlib.crc32(b"tEXt").to_bytes(4, "big")
    return [tall.getvalue(), scans, png[:33] + chunk * 100_000 + png[33:]]


async def _send_costly(url: str, files: Sequence[bytes]) -> None:
    for data in files:
        await wire.exchange(url, wire.post("/v1/predict", data, {"Content-Type": "image/png"}))


async def _unfinished_streams(address: str) -> None:
    """Start twenty gRPC calls on one connection. Each announces a message of 20 MB and sends 3 kB of it."""
    reader, writer = await wire.connect(address)
    try:
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b""))
        headers = b"".join(
            b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
            for name, value in (
                (b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"chestct"),
                (b":path", payloads.MODEL_INFER.encode()), (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
            )
        )  # fmt: skip
        for stream in range(1, 40, 2):
            writer.write(_frame(1, 4, stream, headers))
            message = b"\0" + (20_000_000).to_bytes(4, "big") + bytes(3000)
            writer.write(_frame(0, 0, stream, message))
        async with asyncio.timeout(TURN_SECONDS):
            while await reader.read(65536):
                pass
    finally:
        writer.close()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


if __name__ == "__main__":
    asyncio.run(attack(*sys.argv[1:]))
