"""Sends HTTP requests as bytes on a socket, so that they may be wrong in any way."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

HUNG_SECONDS: Final = 60
"""A request without an answer for this long hangs. The service's own limit is half of it."""

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE: Final = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)


class Answer(NamedTuple):
    code: str
    """HTTP status; `closed` if the connection ended without one; `hung` if nothing came."""
    body: bytes = b""
    closes: bool = False
    """Whether the service closes the connection after this answer."""


def get(path: str) -> bytes:
    """Return a GET request after whose answer the connection ends."""
    return f"GET {path} HTTP/1.1\r\nHost: chestct\r\nConnection: close\r\n\r\n".encode()


def post(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return a POST request with its Content-Length."""
    lines = {"Host": "chestct", **headers, "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1", "replace") + body


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def read_answer(reader: asyncio.StreamReader, *, to_head: bool = False) -> Answer:
    """Read one answer. Raises OSError or asyncio.IncompleteReadError if the connection ends first.

    `to_head`: the request was HEAD, so the answer has no body, although it states a length.
    """
    head = await reader.readuntil(b"\r\n\r\n")
    body = b""
    if not to_head and (length := _LENGTH.search(head)):
        body = await reader.readexactly(int(length[1]))
    elif not to_head and _CHUNKED.search(head):
        body = await reader.readuntil(b"0\r\n\r\n")
    return Answer(head[9:12].decode("ascii", "replace"), body, bool(_CLOSE.search(head)))


async def exchange(url: str, request: bytes) -> Answer:
    """Send the bytes on a new connection and read one answer."""
    writer = None
    try:
        async with asyncio.timeout(HUNG_SECONDS):
            reader, writer = await connect(url)
            writer.write(request)
            return await read_answer(reader, to_head=request.startswith(b"HEAD "))
    except TimeoutError:
        return Answer("hung")
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return Answer("closed")
    finally:
        if writer is not None:
            writer.close()


@asynccontextmanager
async def slow_link(url: str, seconds: float) -> AsyncIterator[str]:
    """Start a relay to `url` that delays each direction by `seconds`. Yields its URL."""
    relays: set[asyncio.Task[None]] = set()  # the event loop keeps only weak references

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            there, onward = await connect(url)
            ends.append(onward)
            await asyncio.gather(_deliver(reader, onward, seconds), _deliver(there, writer, seconds))
        except OSError:
            pass  # the service is gone
        finally:
            for end in ends:
                end.close()

    def start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(relay(reader, writer))
        relays.add(task)
        task.add_done_callback(relays.discard)

    server = await asyncio.start_server(start, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in relays:
            task.cancel()
        await asyncio.gather(*relays, return_exceptions=True)


async def _deliver(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """Copy pieces in order, each `seconds` late. No bytes mean the end of the stream, None means a reset."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(64)

    async def receive() -> None:
        piece: bytes | None = b"-"
        while piece:
            try:
                piece = await reader.read(65536)
            except OSError:
                piece = None
            await pieces.put((loop.time() + seconds, piece))

    receiving = asyncio.ensure_future(receive())
    try:
        while True:
            due, piece = await pieces.get()
            await asyncio.sleep(max(0, due - loop.time()))
            if piece is None:
                writer.transport.abort()
                return
            if not piece:
                writer.write_eof()
                return
            writer.write(piece)
            await writer.drain()
    except OSError:  # the other end is gone
        pass
    finally:
        receiving.cancel()
