"""A name server in small, on loopback: it answers every question for IPv4 addresses with the addresses of one name."""

import socket
import struct
import threading
from ipaddress import IPv4Address
from typing import Final

_A: Final = 1
_HEADER: Final = struct.Struct("!6H")
_RECORD: Final = struct.Struct("!3HIH")


class NameServer:
    """Answers over UDP until it is closed. `addresses` may change at any time, as those of a headless Service do."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        self._socket = socket.socket(type=socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: Final[int] = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        with socket.socket(type=socket.SOCK_DGRAM) as own:
            own.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            question, client = self._socket.recvfrom(512)
            if not question:
                return
            self._socket.sendto(self._answer(question), client)

    def _answer(self, query: bytes) -> bytes:
        number, flags, *_ = _HEADER.unpack_from(query)
        end = query.index(b"\0", _HEADER.size) + 5  # the name, and 2 bytes each of type and class
        (kind,) = struct.unpack_from("!H", query, end - 4)
        records = [
            # 0xC00C points to the name of the question. The time to live is 0, so that nobody keeps the answer.
            _RECORD.pack(0xC00C, _A, 1, 0, 4) + IPv4Address(address).packed
            for address in (self.addresses if kind == _A else [])
        ]
        header = _HEADER.pack(number, 0x8180 | flags & 0x0100, 1, len(records), 0, 0)
        return header + query[_HEADER.size : end] + b"".join(records)
