"""The parser of HTTP/1.1. It ignores requests to change the protocol."""

from typing import Protocol

import httptools


class Connection(Protocol):
    """The connection whose messages are parsed. It also has httptools' callbacks."""

    repeated_head: bool
    """Whether `head_without_upgrade` is being parsed, whose callbacks are to be ignored."""

    def head_without_upgrade(self) -> bytes:
        """A head with only those lines of the latest request that its body needs to be parsed."""


class Parser(httptools.HttpRequestParser):
    """Parses a request with the header `Upgrade` like any other. Java's HttpClient and `curl --http2` send it.

    After such a head, httptools calls `on_message_complete` and stops, because it expects another protocol. So this
    class feeds it a head without `Upgrade`, and then the body.
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
