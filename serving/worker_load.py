"""What the workers of a run tell each other, in memory that they share."""

import mmap
import os
from collections.abc import Container
from pathlib import Path
from types import TracebackType
from typing import Final

from serving.run_folder import reserve

LEAST: Final = 3
"""So many requests above the mean of all workers make one crowded. Fewer are chance."""
SHARE: Final = 1 / 8
"""And so much of the mean, where that is more."""


class WorkerLoad:
    """What the workers of a run tell each other and their supervisor, in memory that they share.

    How many requests each has taken and not answered, over HTTP and gRPC, whether its engine idles, and its last beat.
    As a context manager it counts one request more meanwhile. Until `open` or `join` it knows of this process alone.
    """

    def __init__(self, workers: int) -> None:
        self._slots = 2 * workers  # BentoML's supervisor numbers its workers up to this
        self.own = 0
        """This worker's place."""
        self._size = (8 + 4 + 4 + 1) * self._slots + 8
        self._share(mmap.mmap(-1, self._size))

    def open(self, file: Path) -> None:
        """Share by this file, which is made where it is not. Raises OSError where that can't be."""
        reserve(file, self._size)
        with file.open("r+b") as opened:
            self._share(mmap.mmap(opened.fileno(), self._size))

    def join(self, file: Path, worker: int) -> bool:
        """Share by this file, in the place of this worker; whether another one had it before.

        `worker`: 1 and up, different for each that is alive. Raises OSError as `open` does.
        """
        self.open(file)
        self.own = worker - 1
        replaces = self._pids[self.own] != 0
        self._counts[self.own] = 0
        self._beats[self.own] = 0
        self._pids[self.own] = os.getpid()
        self.set_idle(False)
        return replaces

    def _share(self, memory: mmap.mmap) -> None:
        self._memory = memory
        view, slots = memoryview(memory), self._slots
        self._beats = view[: 8 * (slots + 1)].cast("d")  # the last one is the supervisor's
        start = 8 * (slots + 1)
        self._first_idle = start + 8 * slots
        numbers = view[start : self._first_idle].cast("i")
        self._pids, self._counts = numbers[:slots], numbers[slots:]

    def beat(self, at: float) -> None:
        """Show that this worker is alive: a number that was not there before."""
        self._beats[self.own] = at

    @property
    def beats(self) -> dict[int, float]:
        """The last beat of each worker that had one, by process id."""
        return {pid: beat for pid, beat in zip(self._pids, self._beats, strict=False) if pid and beat}

    @property
    def watcher(self) -> float:
        """The supervisor's last beat; 0 where it has had none."""
        return self._beats[self._slots]

    @watcher.setter
    def watcher(self, at: float) -> None:
        self._beats[self._slots] = at

    def set_idle(self, idle: bool) -> None:
        """Say whether this worker's engine has nothing to do."""
        self._memory[self._first_idle + self.own] = idle

    def find_idle(self, without: Container[int] = ()) -> int | None:
        """The place of another worker whose engine idles and that is not in `without`; None where there is none."""
        after_own = self._first_idle + self.own + 1
        for start, end in ((after_own, self._size), (self._first_idle, after_own - 1)):
            while (start := self._memory.find(b"\1", start, end) + 1) > 0:
                worker = start - 1 - self._first_idle
                if worker not in without and is_alive(self._pids[worker]):
                    return worker
        return None

    def __enter__(self) -> None:
        self._counts[self.own] += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._counts[self.own] -= 1

    def is_crowded(self) -> bool:
        """Whether this worker has clearly more than the mean of those that are alive."""
        own = self._counts[self.own]
        if own < LEAST:
            return False
        counts = [count for pid, count in zip(self._pids, self._counts, strict=True) if pid and is_alive(pid)]
        mean = sum(counts) / len(counts) if counts else own
        return own - mean >= max(LEAST, SHARE * mean)


def is_alive(pid: int) -> bool:
    """Whether there is such a process of this user."""
    try:
        os.kill(pid, 0)
    except OSError:  # there is none, or by now another user's
        return False
    return True
