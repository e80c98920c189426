"""Small servers that stand for replicas."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from load_tests.rollout.balancer import Ports


class Backend:
    """A server that says its name over HTTP, and whether it is ready. It closes each connection after an answer."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready = True
        self.answers = asyncio.Event()
        self.answers.set()
        self.asked = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            status = "200 OK" if self.ready else "503 Service Unavailable"
            if not head.startswith(b"GET /readyz"):
                self.asked += 1
                await self.answers.wait()
                status = "200 OK"
            fields = f"Connection: close\r\nContent-Length: {len(self.name)}"
            writer.write(f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n{self.name}".encode())
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def backends(ports: Sequence[Ports]) -> AsyncIterator[list[Backend]]:
    """Serve on the HTTP port of each."""
    made = [Backend(str(number)) for number in range(len(ports))]
    tasks: set[asyncio.Task[None]] = set()

    def serving(one: Backend) -> object:
        def start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.add(asyncio.ensure_future(one.serve(reader, writer)))

        return start

    servers = [
        await asyncio.start_server(serving(one), "127.0.0.1", each.http)  # type: ignore[arg-type]
        for one, each in zip(made, ports, strict=True)
    ]
    try:
        yield made
    finally:
        for server in servers:
            server.close()
        await asyncio.gather(*tasks)
