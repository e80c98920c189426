"""Memory that the requests of this process take together, over every protocol, and who goes when there is no more."""

import math
import time
from typing import Final, Protocol

from serving.unavailable import Overloaded

REQUEST_BYTES: Final = 64 * 1024
"""Bytes that a request takes beside its body: its connection's buffers, its task and its headers."""
STALL_SECONDS: Final = 1.0
"""Seconds without a byte after which a request that is still coming may be the first to go."""


class Holder(Protocol):
    """A request, as the budget knows it."""

    progressed: float
    """When bytes of it came last, on time.monotonic's clock."""

    def evict(self) -> None:
        """What is here of it was given up for another request: receive no more of it and refuse it as Overloaded."""


class MemoryBudget:
    """Counts bytes from before they are read until their request is answered.

    Requests that are still coming and stall, or that want much, must not keep all others out. So when the budget is
    spent, who stalls goes first, then the largest that is still coming, where it is larger than the one that asks.
    """

    def __init__(self, most: float = math.inf) -> None:
        """At most so many bytes together."""
        self._most = most
        self._held: dict[Holder, int] = {}
        self._receiving: set[Holder] = set()
        self.used = 0

    def reserve(self, holder: Holder, size: int) -> None:
        """Count `size` more bytes for a request that is still coming. Raises Overloaded where there is no room.

        What alone is larger than the budget is taken for as large as the budget, so that it can be answered.
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
        """The request has come whole: from now on it does not go for another one."""
        self._receiving.discard(holder)

    def release(self, holder: Holder) -> None:
        """The request is answered, or given up."""
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
