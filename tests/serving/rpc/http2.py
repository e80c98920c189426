"""A minimal HTTP/2 client for gRPC. Unlike a library it can send half a message and wait."""

import select
import socket
import struct
import time
from types import TracebackType
from typing import Self

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
_WINDOW = 65_535
_LARGEST_FRAME = 16_384


class Connection:
    """Sends and reads frames on one connection, within the server's windows. `open` gives calls their odd numbers."""

    def __init__(self, port: int, *, greet: bool = True, takes: int = _WINDOW) -> None:
        """`takes`: bytes of an answer that the server may send."""
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=300)
        self._buffer = b""
        self._window = _WINDOW
        self._first_window = _WINDOW
        self._windows: dict[int, int] = {}
        self.sent: dict[int, int] = {}
        """Bytes of DATA, by call."""
        self.ended: set[int] = set()
        """Calls that the server has ended."""
        self.headers: dict[int, bytes] = {}
        """The encoded HEADERS of each call."""
        self.closed = False
        if greet:
            self._socket.sendall(
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, 0, 0, struct.pack(">HI", 4, takes))
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def open(self, path: str, **metadata: str) -> int:
        """Start a gRPC call."""
        call = 2 * len(self._windows) + 1
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "test",
            "content-type": "application/grpc",
            "te": "trailers",
            **metadata,
        }
        block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
        self._windows[call] = self._first_window
        self.sent[call] = 0
        self._send(_frame(HEADERS, END_HEADERS, call, block))
        return call

    def send(self, call: int, data: bytes, *, patience: float = 2) -> int:
        """Send data while the server's windows allow it. Returns the number of bytes sent."""
        at = 0
        deadline = time.monotonic() + patience
        while at < len(data) and not self.closed and call not in self.ended and time.monotonic() < deadline:
            size = min(len(data) - at, self._window, self._windows[call], _LARGEST_FRAME)
            if size > 0:
                self._send(_frame(DATA, 0, call, data[at : at + size]))
                self._window -= size
                self._windows[call] -= size
                self.sent[call] += size
                at += size
                deadline = time.monotonic() + patience
            self.receive(0 if size > 0 else 0.05)
        return at

    def finish(self, call: int) -> None:
        self._send(_frame(DATA, END_STREAM, call))

    def receive(self, seconds: float) -> None:
        """Read frames for this time."""
        deadline = time.monotonic() + seconds
        while not self.closed:
            ready, _, _ = select.select([self._socket], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                return
            try:
                data = self._socket.recv(1 << 16)
            except ConnectionError:
                data = b""
            self.closed = not data
            self._buffer += data
            self._read_frames()

    def _read_frames(self) -> None:
        while len(self._buffer) >= 9 and len(self._buffer) >= 9 + (size := int.from_bytes(self._buffer[:3])):
            kind, flags = self._buffer[3:5]
            call = int.from_bytes(self._buffer[5:9]) & 0x7FFFFFFF
            payload, self._buffer = self._buffer[9 : 9 + size], self._buffer[9 + size :]
            if kind == SETTINGS and not flags & ACK:
                for at in range(0, size, 6):
                    name, value = struct.unpack(">HI", payload[at : at + 6])
                    if name == 4:
                        self._windows = {call: w + value - self._first_window for call, w in self._windows.items()}
                        self._first_window = value
                self._send(_frame(SETTINGS, ACK, 0))
            elif kind == PING and not flags & ACK:
                self._send(_frame(PING, ACK, 0, payload))
            elif kind == WINDOW_UPDATE and call == 0:
                self._window += int.from_bytes(payload)
            elif kind == WINDOW_UPDATE and call in self._windows:
                self._windows[call] += int.from_bytes(payload)
            elif kind == HEADERS:
                self.headers[call] = self.headers.get(call, b"") + payload
            if kind == RESET or (kind in (HEADERS, DATA) and flags & END_STREAM):
                self.ended.add(call)

    def _send(self, frame: bytes) -> None:
        try:
            self._socket.sendall(frame)
        except OSError:
            self.closed = True


def message(size: int) -> bytes:
    """The five bytes before a gRPC message."""
    return struct.pack(">BI", 0, size)


def _frame(kind: int, flags: int, call: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", call) + payload


def _text(value: str) -> bytes:
    """A literal of HPACK, without Huffman's code."""
    size = len(value)
    if size < 127:
        return bytes((size,)) + value.encode()
    rest, length = size - 127, b"\x7f"
    while rest >= 128:
        length += bytes((rest % 128 + 128,))
        rest //= 128
    return length + bytes((rest,)) + value.encode()
