"""A lock that requests with much work can't keep from other requests for long."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

from serving.inference.batcher import MOST_WAIT
from serving.telemetry.request_record import RequestRecord
from serving.unavailable import Closed, Overloaded

_RECENT_TURNS: Final = 8
"""Turns that the expected wait is estimated from."""


@dataclass(eq=False, slots=True)
class _Turn:
    record: RequestRecord
    granted: asyncio.Future[None]
    began: float = 0.0


class FairLock:
    """Grants one turn at a time. Use it from one event loop.

    Turns alternate between requests that had none yet, in order of arrival, and the others, of which the one with the
    least time so far is next. So a request of many slow files delays a request of one file by two of them at most, and
    a stream of small requests does not starve it.
    """

    def __init__(self, most_waiting: int) -> None:
        """`most_waiting`: requests that wait at most."""
        self._most_waiting = most_waiting
        self._waiting: list[_Turn] = []
        self._used: dict[RequestRecord, float] = {}
        """Seconds used by each request that has a turn, or had one and waits for another."""
        self._current: _Turn | None = None
        self._last_was_first = False
        """Whether the last turn was its request's first."""
        self._recent: deque[float] = deque(maxlen=_RECENT_TURNS)
        """Seconds of the recent turns."""
        self._closed = False

    async def acquire(self, record: RequestRecord) -> None:
        """Wait for a turn, which `release` ends.

        Raises Closed. For a request's first turn it raises Overloaded if too many requests wait, or if the turn would
        probably come too late for the deadline.
        """
        if self._closed:
            raise Closed("the service is shutting down")
        if record not in self._used and not any(turn.record is record for turn in self._waiting):
            self._check_room(record.deadline)
        turn = _Turn(record, asyncio.get_running_loop().create_future())
        self._waiting.append(turn)
        self._grant_next()
        try:
            await turn.granted
        except BaseException:
            if turn is self._current:  # the request was cancelled just when the turn was granted
                self.release()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            self._forget(record)
            raise

    def release(self) -> None:
        """End the turn and grant the next."""
        turn = self._current
        assert turn is not None
        seconds = time.monotonic() - turn.began
        self._recent.append(seconds)
        self._used[turn.record] += seconds
        self._current = None
        self._forget(turn.record)
        self._grant_next()

    def close(self) -> None:
        """Refuse waiting and new requests. The current turn goes on."""
        self._closed = True
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            self._forget(turn.record)
            if not turn.granted.done():
                turn.granted.set_exception(Closed("the service is shutting down"))

    def _check_room(self, deadline: float) -> None:
        waiting = {turn.record for turn in self._waiting}
        first = len(waiting - self._used.keys())
        before = (self._current is not None) + first + min(first + 1, len(waiting) - first)
        wait = before * sum(self._recent) / max(1, len(self._recent))
        if len(waiting) >= self._most_waiting or wait > MOST_WAIT * max(0, deadline - time.monotonic()):
            raise Overloaded(wait)

    def _grant_next(self) -> None:
        self._waiting = [turn for turn in self._waiting if not turn.granted.done()]  # without those just cancelled
        if self._current is not None or not self._waiting:
            return
        first = [turn for turn in self._waiting if turn.record not in self._used]
        further = [turn for turn in self._waiting if turn.record in self._used]
        self._last_was_first = bool(first) and not (further and self._last_was_first)
        turn = first[0] if self._last_was_first else min(further, key=lambda turn: self._used[turn.record])
        self._waiting.remove(turn)
        self._used.setdefault(turn.record, 0.0)
        self._current = turn
        turn.began = time.monotonic()
        turn.granted.set_result(None)

    def _forget(self, record: RequestRecord) -> None:
        """Drop the record's time if it has no turn and waits for none."""
        known = [*self._waiting, self._current]
        if not any(turn is not None and turn.record is record for turn in known):
            self._used.pop(record, None)
