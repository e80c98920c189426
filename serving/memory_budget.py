"""The memory budget of the requests of this process, over every protocol."""

import math
import time
from typing import Final, Protocol

from serving.unavailable import Overloaded

REQUEST_BYTES: Final = 64 * 1024
"""Bytes of a request beside its body: the buffers of its connection, its task and its headers."""
STALL_SECONDS: Final = 1.0
"""Seconds without a byte after which an incomplete request may be the first to be evicted."""


class Holder(Protocol):
    """A request that holds memory."""

    progressed: float
    """Time of the last received byte (time.monotonic)."""

    def evict(self) -> None:
        """Stop receiving the request and refuse it as Overloaded, because another request gets its memory."""


class MemoryBudget:
    """Counts the bytes of each request, from before they are read until the request is answered.

    Slow or large requests must not keep out all others. So if the budget is spent, incomplete requests that stall are
    evicted first, then the largest incomplete request if it is larger than the one that needs memory.
    """

    def __init__(self, most: float = math.inf) -> None:
        """`most`: bytes of all requests together."""
        self._most = most
        self._held: dict[Holder, int] = {}
        self._receiving: set[Holder] = set()
        self.used = 0

    def reserve(self, holder: Holder, size: int) -> None:
        """Count `size` more bytes for an incomplete request. Raises Overloaded if there is no room.

        A request larger than the budget counts as large as the budget, so that it can be answered.
        """
        held = self._held.get(holder, 0)
        if holder not in self._held:
            size += REQUEST_BYTES
            self._receiving.add(holder)
        wanted = min(held + size, self._most)
        if self.used + wanted - held > self._most:
            self._make_room(holder, wanted)
        self._held[holder] = int(wanted)
        self.used += int(wanted) - held

    def keep(self, holder: Holder) -> None:
        """Note that the request is complete, so that it is not evicted any more."""
        self._receiving.discard(holder)

    def release(self, holder: Holder) -> None:
        """Free the memory of a request that is answered or abandoned."""
        self.used -= self._held.pop(holder, 0)
        self._receiving.discard(holder)

    def _make_room(self, holder: Holder, wanted: float) -> None:
        room = self._most - wanted + self._held.get(holder, 0)
        others = self._receiving - {holder}
        stalled = [other for other in others if time.monotonic() - other.progressed > STALL_SECONDS]
        for other in sorted(stalled, key=lambda other: other.progressed):
            self._evict(other)
            if self.used <= room:
                return
        largest = max(others.difference(stalled), key=self._held.__getitem__, default=None)
        if largest is None or self._held[largest] <= wanted:
            raise Overloaded(1, "the requests in progress take all memory set aside for them")
        self._evict(largest)

    def _evict(self, other: Holder) -> None:
        self.release(other)
        other.evict()
