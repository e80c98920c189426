"""The TCP connections below gRPC. gRPC shows neither the bytes that came on one nor those that a client does not take.

The connections are found in /proc, so this works on Linux only. Elsewhere no connection is found.
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
"""Seconds for a client to take an answer, beside those that LEAST_RATE allows for its bytes."""

_OPEN_FILES: Final = Path("/proc/self/fd")
_RECEIVED: Final = slice(128, 136)
"""Bytes of tcpi_bytes_received in Linux' `struct tcp_info`."""
_GATHER_SECONDS: Final = 0.1
"""Seconds in which connections to close are gathered, so that one pass over the open files finds all."""

Address = tuple[str, str]
Context = grpc.aio.ServicerContext[Any, Any]


class DeliveryTimeouts:
    """Closes the connections of clients that do not take their answers in time.

    gRPC keeps such a call, and its place among all calls, as long as the connection: four clients could block all.
    """

    def __init__(self) -> None:
        self._peers: set[str] = set()

    def start(self, context: Context, size: int = 0) -> asyncio.TimerHandle:
        """Start the time for an answer of `size` bytes. Cancel the handle when the answer is taken."""
        seconds = DELIVERY_SECONDS + size / LEAST_RATE
        return asyncio.get_running_loop().call_later(seconds, self.close_connection, context)

    @contextlib.contextmanager
    def limit(self, context: Context, size: int = 0) -> Iterator[None]:
        """Limit the time of the block, which sends an answer of `size` bytes."""
        timer = self.start(context, size)
        try:
            yield
        finally:
            timer.cancel()

    def close_connection(self, context: Context) -> None:
        """Close the connection of this call within _GATHER_SECONDS."""
        if not self._peers:
            asyncio.get_running_loop().call_later(_GATHER_SECONDS, self._shut_down)
        self._peers.add(context.peer())

    def _shut_down(self) -> None:
        addresses = set(map(address, self._peers))
        self._peers.clear()
        for found, connection in _connections():
            if found in addresses:
                with contextlib.suppress(OSError):  # it has ended
                    connection.shutdown(socket.SHUT_RDWR)


def received_by_address() -> dict[Address, int]:
    """Bytes received on each TCP connection of this process."""
    received = {}
    for found, connection in _connections():
        try:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED.stop)
        except OSError:  # not a TCP socket
            continue
        received[found] = int.from_bytes(info[_RECEIVED], "little")
    return received


def address(peer: str) -> Address:
    """The client's address in gRPC's name of a peer: ipv4:127.0.0.1:50000 or ipv6:%5B::1%5D:50000."""
    host, _, port = unquote(peer).partition(":")[2].rpartition(":")
    return host.strip("[]"), port


def _connections() -> Iterator[tuple[Address, socket.socket]]:
    """Address and socket of each connection. A socket is gRPC's own; use it only until the next iteration."""
    for file in _OPEN_FILES.iterdir() if _OPEN_FILES.is_dir() else ():
        try:
            if not file.is_socket():
                continue
            borrowed = socket.socket(fileno=int(file.name))
        except OSError:  # closed meanwhile
            continue
        try:
            host, port = borrowed.getpeername()[:2]
            yield (str(host).removeprefix("::ffff:"), str(port)), borrowed
        except (OSError, ValueError):  # not a TCP socket, or not connected
            continue
        finally:
            borrowed.detach()
