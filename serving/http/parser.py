"""The parser of HTTP/1.1, where a client asks for another protocol and does not get it."""

from typing import Protocol

import httptools


class Connection(Protocol):
    """Whose messages are parsed; it has httptools' callbacks, too."""

    repeated_head: bool
    """Whether what is parsed is `head_without_upgrade`, which is nothing new."""

    def head_without_upgrade(self) -> bytes:
        """Of the last request, as much as its body needs to be parsed."""


class Parser(httptools.HttpRequestParser):
    """Reads on behind a head with `Upgrade`, as Java's HttpClient sends one with each request, and `curl --http2`.

    None is taken, so it is a request like any other. httptools takes what follows for the other protocol, and calls
    `on_message_complete` before it.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self._connection = connection

    def feed_data(self, data: bytes) -> None:  # type: ignore[override] # uvicorn has bytes
        while True:
            try:
                super().feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._connection.repeated_head = True
                super().feed_data(self._connection.head_without_upgrade())
                self._connection.repeated_head = False
            else:
                return
