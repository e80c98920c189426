"""Messages are read within bounds of time and memory, whoever sends them.

gRPC hands a message over once it is whole, and tells nobody of one that grows. So what unfinished ones have sent is
looked up in the kernel, and only of those that are not whole at once.
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
from serving.unavailable import Overloaded

MEMORY: Final = 1.25
"""Bytes that a byte of a message takes until the call is answered."""
_LOOK_SECONDS: Final = 0.25
"""So often unfinished messages are looked at; most are whole before."""
_MOST_PEERS: Final = 4096


class TooSlow(TimeoutError):
    """A message came too slowly."""

    code: Final = "body_timeout"

    def __init__(self) -> None:
        expected = f"at least {LEAST_RATE} bytes a second, no pause of {LONGEST_PAUSE:g} seconds, and its end in time"
        super().__init__(f"the message came too slowly: expected {expected}")


class NoMessage(ValueError):
    """A call ended without a message, or without another one."""


@dataclass(eq=False, slots=True)
class _Read:
    """A message that is not whole yet."""

    call: RequestRecord
    peer: str
    task: asyncio.Task[Any]
    begun: float = field(default_factory=time.monotonic)
    received: int = 0
    """Bytes on its connection, when it was last looked at."""
    counted: int = 0
    """Bytes of it in the memory budget."""
    moved: int = 0
    """Bytes that came on its connection while it was read. A proxy sends many clients' messages on one, some of which
    stall: each one's own part, which nobody knows, is not held against the least rate."""
    refusal: Exception | None = None

    def end(self, refusal: Exception | None = None) -> None:
        if not self.task.cancelling():
            self.refusal = refusal
            self.task.cancel()

    def is_slow(self, now: float) -> bool:
        patience = LONGEST_PAUSE + min(self.call.progressed, self.begun + self.moved / LEAST_RATE)
        return now > min(patience, self.call.deadline)


class MessageReader:
    """Reads messages, and ends those that stall or trickle, or whose memory goes to others."""

    def __init__(self, largest: int) -> None:
        """`largest`: bytes of a message at most."""
        self._largest = largest
        self._reads: dict[_Read, None] = {}  # the oldest first
        self._delivered: dict[str, int] = {}
        """Bytes of the messages that came whole, by connection."""
        self._looking = False

    async def read(self, context: Context, call: RequestRecord) -> bytes:
        """The next message of a call, whose bytes are counted until the call is finished.

        Raises TooSlow, NoMessage, and Overloaded where there is no memory for it.
        """
        call.reserve_bytes(1)  # and what any request takes
        task = asyncio.current_task()
        assert task is not None
        read = _Read(call, context.peer(), task)
        call.stop_receiving = read.end
        self._reads[read] = None
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)
        try:
            message = await context.read()
        except asyncio.CancelledError:
            if not call.evicted and read.refusal is None:
                raise
            task.uncancel()
            call.reserve_bytes(0)  # where it was evicted this says so
            raise read.refusal or NoMessage from None
        finally:
            call.stop_receiving = None
            del self._reads[read]
        if message is grpc.aio.EOF:
            raise NoMessage
        self._delivered[read.peer] = self._delivered.get(read.peer, 0) + len(message)
        if read.counted:  # perhaps too much of it, for what came of other calls
            call.memory.release(call)
        call.reserve_bytes(math.ceil(len(message) * MEMORY))
        call.memory.keep(call)
        return message  # type: ignore[no-any-return]

    def _look(self) -> None:
        now = time.monotonic()
        slow: dict[str, list[_Read]] = {}
        for read in self._reads:
            if now - read.begun < _LOOK_SECONDS:
                break
            slow.setdefault(read.peer, []).append(read)
        if slow or len(self._delivered) > _MOST_PEERS:
            self._look_at(slow, now)
        self._looking = bool(self._reads)
        if self._looking:
            took = time.monotonic() - now  # with thousands of connections some hundredths
            asyncio.get_running_loop().call_later(max(_LOOK_SECONDS, 20 * took), self._look)

    def _look_at(self, slow: dict[str, list[_Read]], now: float) -> None:
        received = connections.received_by_address()
        busy = {read.peer for read in self._reads}
        # What came on an idle connection and was not read is no message, or of a call that has ended.
        self._delivered = {
            peer: self._delivered.get(peer, 0) if peer in busy else received[address]
            for peer in {*busy, *self._delivered}
            if (address := connections.address(peer)) in received
        }
        for peer, reads in slow.items():
            came = received.get(connections.address(peer), 0)
            share = min((came - self._delivered.get(peer, 0)) // len(reads), self._largest)
            for read in reads:
                self._count(read, came, share)
                if read.is_slow(now):
                    read.end(TooSlow())

    def _count(self, read: _Read, came: int, share: int) -> None:
        """`came`: bytes on the connection, in all; `share`: those of them that this message may have."""
        if came <= read.received or read.call.evicted:
            return
        read.moved += came - read.received if read.received else max(0, share)
        read.received = came
        try:
            read.call.reserve_bytes(max(0, share - read.counted))
            read.counted = max(share, read.counted)
        except Overloaded as error:
            read.end(error)
