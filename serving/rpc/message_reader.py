"""Reads messages within bounds of time and memory.

gRPC delivers a message when it is complete and says nothing of one that grows. So the reader looks up in the kernel
how much of the incomplete messages has come, and only if they do not come at once.
"""

import asyncio
import math
import time
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from serving.rpc import connections
from serving.rpc.connections import Context
from serving.telemetry.request_record import LEAST_RATE, LONGEST_PAUSE, RequestRecord
from serving.tensors import InvalidRequest
from serving.unavailable import Overloaded

MEMORY_PER_BYTE: Final = 1.25
"""Bytes of memory for a byte of a message, until the call is answered."""
_CHECK_SECONDS: Final = 0.25
"""Seconds between checks of incomplete messages. Most messages are complete before the first check."""
_MOST_PEERS: Final = 4096


class TooSlow(Exception):
    """A message came too slowly."""

    code: Final = "body_timeout"

    def __init__(self) -> None:
        expected = f"at least {LEAST_RATE} bytes a second, no pause of {LONGEST_PAUSE:g} seconds, and its end in time"
        super().__init__(f"the message came too slowly: expected {expected}")


class NoMessage(InvalidRequest):
    """The call ended without a message, or without another one."""

    def __init__(self) -> None:
        super().__init__("expected a message, got none")


@dataclass(eq=False, slots=True)
class _IncompleteMessage:
    record: RequestRecord
    peer: str
    task: asyncio.Task[Any]
    begun: float = field(default_factory=time.monotonic)
    received: int = 0
    """Bytes on its connection at the last check."""
    counted: int = 0
    """Bytes of it in the memory budget."""
    moved: int = 0
    """Bytes that came on its connection since it began. A proxy may send the messages of many clients on one
    connection. The part of each is unknown, so a message that stalls among others is not counted as slow."""
    refusal: Exception | None = None

    def end(self, refusal: Exception | None = None) -> None:
        """Stop reading it. The reader raises `refusal`."""
        if not self.task.cancelling():
            self.refusal = refusal
            self.task.cancel()

    def is_slow(self, now: float) -> bool:
        patience = LONGEST_PAUSE + min(self.record.progressed, self.begun + self.moved / LEAST_RATE)
        return now > min(patience, self.record.deadline)


class MessageReader:
    """Reads messages. Ends those that stall or trickle, and those whose memory goes to other requests."""

    def __init__(self, largest: int) -> None:
        """`largest`: bytes of a message at most."""
        self._largest = largest
        self._incomplete: dict[_IncompleteMessage, None] = {}  # the oldest first
        self._delivered: dict[str, int] = {}
        """Bytes of the complete messages, by connection."""
        self._checking = False

    async def read(self, context: Context, record: RequestRecord) -> bytes:
        """Read the next message of a call. Its bytes are counted until the record is finished.

        Raises TooSlow, NoMessage, and Overloaded if there is no memory for it.
        """
        record.reserve_bytes(1)  # and the bytes that any request takes
        task = asyncio.current_task()
        assert task is not None
        reading = _IncompleteMessage(record, context.peer(), task)
        record.stop_receiving = reading.end
        self._incomplete[reading] = None
        if not self._checking:
            self._checking = True
            asyncio.get_running_loop().call_later(_CHECK_SECONDS, self._check)
        try:
            message = await context.read()
        except asyncio.CancelledError:
            if not record.evicted and reading.refusal is None:
                raise
            task.uncancel()
            record.reserve_bytes(0)  # raises Overloaded if the request was evicted
            assert reading.refusal is not None
            raise reading.refusal from None
        finally:
            record.stop_receiving = None
            del self._incomplete[reading]
        if message is grpc.aio.EOF:
            raise NoMessage
        self._delivered[reading.peer] = self._delivered.get(reading.peer, 0) + len(message)
        if reading.counted:  # perhaps too much, because bytes of other calls may be in it
            record.memory.release(record)
        record.reserve_bytes(math.ceil(len(message) * MEMORY_PER_BYTE))
        record.memory.keep(record)
        return message  # type: ignore[no-any-return]

    def _check(self) -> None:
        now = time.monotonic()
        by_peer: dict[str, list[_IncompleteMessage]] = {}
        for reading in self._incomplete:
            if now - reading.begun < _CHECK_SECONDS:
                break
            by_peer.setdefault(reading.peer, []).append(reading)
        if by_peer or len(self._delivered) > _MOST_PEERS:
            self._check_connections(by_peer, now)
        self._checking = bool(self._incomplete)
        if self._checking:
            took = time.monotonic() - now  # with thousands of connections some hundredths
            asyncio.get_running_loop().call_later(max(_CHECK_SECONDS, 20 * took), self._check)

    def _check_connections(self, by_peer: dict[str, list[_IncompleteMessage]], now: float) -> None:
        received = connections.received_by_address()
        busy = {reading.peer for reading in self._incomplete}
        # Unread bytes on an idle connection belong to no message, or to a call that has ended.
        self._delivered = {
            peer: self._delivered.get(peer, 0) if peer in busy else received[address]
            for peer in {*busy, *self._delivered}
            if (address := connections.address(peer)) in received
        }
        for peer, messages in by_peer.items():
            came = received.get(connections.address(peer), 0)
            share = min((came - self._delivered.get(peer, 0)) // len(messages), self._largest)
            for reading in messages:
                self._count(reading, came, share)
                if reading.is_slow(now):
                    reading.end(TooSlow())

    def _count(self, reading: _IncompleteMessage, came: int, share: int) -> None:
        """`came`: bytes received on the connection. `share`: those of them that this message may have."""
        if came <= reading.received or reading.record.evicted:
            return
        reading.moved += came - reading.received if reading.received else max(0, share)
        reading.received = came
        try:
            reading.record.reserve_bytes(max(0, share - reading.counted))
            reading.counted = max(share, reading.counted)
        except Overloaded as error:
            reading.end(error)
