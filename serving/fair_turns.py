"""One at a time, and whoever had least so far is next."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

from serving.batcher import PATIENCE, Closed, Overloaded
from serving.call import Call

_PACE_MEMORY: Final = 8
"""Turns whose mean tells how long one takes."""


@dataclass(eq=False, slots=True)
class _Turn:
    call: Call
    granted: asyncio.Future[None]
    began: float = 0.0


class FairTurns:
    """Turns at something that can serve but one at a time. Used from one event loop.

    A request that takes many turns, or long ones, delays another by the turn that is being taken and no more: the next
    turn goes to the request that had the least time, and a new one begins with what the least served had.
    """

    def __init__(self, most_waiting: int) -> None:
        """So many requests wait at most."""
        self._most_waiting = most_waiting
        self._waiting: list[_Turn] = []
        self._used: dict[Call, float] = {}
        """Seconds, of each request that waits or has the turn."""
        self._least = 0.0
        """Seconds that the request with the last turn had before it."""
        self._current: _Turn | None = None
        self._recent: deque[float] = deque(maxlen=_PACE_MEMORY)
        self._closed = False

    async def enter(self, call: Call) -> None:
        """Wait for a turn, which `leave` ends.

        Raises Closed, and Overloaded where too many wait, or this turn would come late for the call's deadline.
        """
        if self._closed:
            raise Closed("the service is shutting down")
        if call not in self._used:
            self._check_room(call.deadline)
            self._used[call] = self._least
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
        before = sum(self._used[call] <= self._least for call in waiting) + (self._current is not None)
        pace = sum(self._recent) / max(1, len(self._recent))
        if len(waiting) >= self._most_waiting or before * pace > PATIENCE * max(0, deadline - time.monotonic()):
            raise Overloaded(before * pace)

    def _grant_next(self) -> None:
        while self._current is None and self._waiting:
            turn = min(self._waiting, key=lambda turn: self._used[turn.call])
            self._waiting.remove(turn)
            if turn.granted.done():  # given up in this turn of the loop
                self._forget(turn.call)
                continue
            self._current = turn
            self._least = self._used[turn.call]
            turn.began = time.monotonic()
            turn.granted.set_result(None)

    def _forget(self, call: Call) -> None:
        known = [*self._waiting, self._current]
        if not any(turn is not None and turn.call is call for turn in known):
            self._used.pop(call, None)
