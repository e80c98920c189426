"""The TCP connections below gRPC, which shows neither what came on one nor what is not taken from it.

They are found in /proc, so only on Linux; elsewhere nothing is.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import grpc

from serving.telemetry.request_record import LEAST_RATE

DELIVERY_SECONDS: Final = 10.0
"""In which an answer is taken, beside what LEAST_RATE allows for its bytes. It fits into each client's first window."""

_OPEN_FILES: Final = Path("/proc/self/fd")
_RECEIVED: Final = slice(128, 136)
"""Where Linux' `struct tcp_info` has tcpi_bytes_received."""
_TOGETHER: Final = 0.1
"""Seconds in which connections are gathered, to be looked up at once."""

Address = tuple[str, str]
Context = grpc.aio.ServicerContext[Any, Any]


class DeliveryTimeouts:
    """Ends the connections of clients that do not take what they asked for.

    gRPC keeps such a call, and its place among all calls, as long as the connection: four could keep everybody out.
    """

    def __init__(self) -> None:
        self._peers: set[str] = set()

    def expect(self, context: Context, size: int = 0) -> asyncio.TimerHandle:
        """An answer of so many bytes is sent from now on; cancel the handle when it is taken."""
        seconds = DELIVERY_SECONDS + size / LEAST_RATE
        return asyncio.get_running_loop().call_later(seconds, self.end, context)

    @contextlib.contextmanager
    def expecting(self, context: Context, size: int = 0) -> Iterator[None]:
        """An answer of so many bytes is sent, and taken, within."""
        handle = self.expect(context, size)
        try:
            yield
        finally:
            handle.cancel()

    def end(self, context: Context) -> None:
        """End the connection of this call, in a moment."""
        if not self._peers:
            asyncio.get_running_loop().call_later(_TOGETHER, self._shut)
        self._peers.add(context.peer())

    def _shut(self) -> None:
        addresses = set(map(address, self._peers))
        self._peers.clear()
        for found, connection in _connections():
            if found in addresses:
                with contextlib.suppress(OSError):  # it has ended
                    connection.shutdown(socket.SHUT_RDWR)


def received_by_address() -> dict[Address, int]:
    """Bytes that came on each TCP connection of this process."""
    received = {}
    for found, connection in _connections():
        try:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED.stop)
        except OSError:  # not of TCP
            continue
        received[found] = int.from_bytes(info[_RECEIVED], "little")
    return received


def address(peer: str) -> Address:
    """Of the other end, by gRPC's name of it: ipv4:127.0.0.1:50000 or ipv6:%5B::1%5D:50000."""
    host, _, port = unquote(peer).partition(":")[2].rpartition(":")
    return host.strip("[]"), port


def _connections() -> Iterator[tuple[Address, socket.socket]]:
    """Each with the other end's address. The sockets stay gRPC's, and are for the caller until it asks for the next."""
    for file in _OPEN_FILES.iterdir() if _OPEN_FILES.is_dir() else ():
        try:
            if not file.is_socket():
                continue
            looked_at = socket.socket(fileno=int(file.name))
        except OSError:  # closed meanwhile
            continue
        try:
            host, port = looked_at.getpeername()[:2]
            yield (str(host).removeprefix("::ffff:"), str(port)), looked_at
        except (OSError, ValueError):  # not of TCP, or not connected
            continue
        finally:
            looked_at.detach()
