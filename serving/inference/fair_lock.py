"""One at a time, and nobody waits long for others with much to do."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

from serving.inference.batcher import PATIENCE
from serving.telemetry.request_record import RequestRecord
from serving.unavailable import Closed, Overloaded

_PACE_MEMORY: Final = 8
"""Turns whose mean tells how long one takes."""


@dataclass(eq=False, slots=True)
class _Turn:
    call: RequestRecord
    granted: asyncio.Future[None]
    began: float = 0.0


class FairLock:
    """Turns at something that can serve but one at a time. Used from one event loop.

    They go by turns to requests that had none yet, as they came, and to the others, of which the one with the least
    time so far is next. So a request of many slow files delays one of a single file by two of them at most, and a
    stream of single ones does not keep it from its own.
    """

    def __init__(self, most_waiting: int) -> None:
        """So many requests wait at most."""
        self._most_waiting = most_waiting
        self._waiting: list[_Turn] = []
        self._used: dict[RequestRecord, float] = {}
        """Seconds, of each request that has or had a turn, while it waits for another."""
        self._current: _Turn | None = None
        self._last_was_first = False
        """The last turn was its request's first."""
        self._recent: deque[float] = deque(maxlen=_PACE_MEMORY)
        """Seconds of the last turns."""
        self._closed = False

    async def enter(self, call: RequestRecord) -> None:
        """Wait for a turn, which `leave` ends.

        Raises Closed, and of a request's first turn Overloaded, where too many wait or it would come late for the
        call's deadline.
        """
        if self._closed:
            raise Closed("the service is shutting down")
        if call not in self._used and not any(turn.call is call for turn in self._waiting):
            self._check_room(call.deadline)
        turn = _Turn(call, asyncio.get_running_loop().create_future())
        self._waiting.append(turn)
        self._grant_next()
        try:
            await turn.granted
        except BaseException:
            if turn is self._current:  # granted in the moment in which its request was given up
                self.leave()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            self._forget(call)
            raise

    def leave(self) -> None:
        """End the turn, and grant the next."""
        turn = self._current
        assert turn is not None
        seconds = time.monotonic() - turn.began
        self._recent.append(seconds)
        self._used[turn.call] += seconds
        self._current = None
        self._forget(turn.call)
        self._grant_next()

    def close(self) -> None:
        """Refuse who waits, and who comes; the turn that is taken goes on."""
        self._closed = True
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            self._forget(turn.call)
            if not turn.granted.done():
                turn.granted.set_exception(Closed("the service is shutting down"))

    def _check_room(self, deadline: float) -> None:
        waiting = {turn.call for turn in self._waiting}
        first = len(waiting - self._used.keys())
        before = (self._current is not None) + first + min(first + 1, len(waiting) - first)
        wait = before * sum(self._recent) / max(1, len(self._recent))
        if len(waiting) >= self._most_waiting or wait > PATIENCE * max(0, deadline - time.monotonic()):
            raise Overloaded(wait)

    def _grant_next(self) -> None:
        self._waiting = [turn for turn in self._waiting if not turn.granted.done()]  # others were given up just now
        if self._current is not None or not self._waiting:
            return
        first = [turn for turn in self._waiting if turn.call not in self._used]
        further = [turn for turn in self._waiting if turn.call in self._used]
        self._last_was_first = bool(first) and not (further and self._last_was_first)
        turn = first[0] if self._last_was_first else min(further, key=lambda turn: self._used[turn.call])
        self._waiting.remove(turn)
        self._used.setdefault(turn.call, 0.0)
        self._current = turn
        turn.began = time.monotonic()
        turn.granted.set_result(None)

    def _forget(self, call: RequestRecord) -> None:
        known = [*self._waiting, self._current]
        if not any(turn is not None and turn.call is call for turn in known):
            self._used.pop(call, None)
