"""State that the workers of a run share with each other and with their supervisor, in mapped memory."""

import mmap
import os
from collections.abc import Container
from pathlib import Path
from typing import Final, Literal, get_args

from chestct.processes import is_alive
from serving.run_folder import reserve_blocks

DeathCause = Literal["hung", "not_ready", "out_of_memory", "killed", "crashed", "exited"]
"""Why a worker was replaced: it hung; it was not ready in time; the container's memory was used up; somebody killed it
(SIGKILL); another signal ended it, as after an error in native code; it exited."""
CAUSES: Final[tuple[DeathCause, ...]] = get_args(DeathCause)
_NOT_ACCEPTING: Final = -1


class WorkerStates:
    """For each worker: its process id, connections, last beat, and whether its engine is idle.

    Also why workers were replaced.

    Before `open` or `join` it covers this process alone.
    """

    def __init__(self, workers: int) -> None:
        self._slots = 2 * workers  # BentoML's supervisor numbers its workers up to this
        self.slot = 0
        """Index of this worker."""
        self._size = (8 + 4 + 4 + 1) * self._slots + 8 + 8 * len(CAUSES)
        self._map(mmap.mmap(-1, self._size))

    def open(self, file: Path) -> None:
        """Share the state through this file. Create the file if it is missing. Raises OSError if that fails."""
        reserve_blocks(file, self._size)
        with file.open("r+b") as opened:
            self._map(mmap.mmap(opened.fileno(), self._size))

    def join(self, file: Path, worker: int) -> bool:
        """Share the state through this file and take the slot of this worker. Returns whether it was taken before.

        `worker` is 1 or more and differs between living workers. Raises OSError like `open`.
        """
        self.open(file)
        self.slot = worker - 1
        replaces = self._pids[self.slot] != 0
        self._beats[self.slot] = 0
        self.publish_connections(None)
        self._pids[self.slot] = os.getpid()
        self.set_idle(False)
        return replaces

    def _map(self, memory: mmap.mmap) -> None:
        self._memory = memory
        view, slots = memoryview(memory), self._slots
        self._beats = view[: 8 * (slots + 1)].cast("d")  # the last one is the supervisor's
        start = 8 * (slots + 1 + len(CAUSES))
        self._replaced = view[8 * (slots + 1) : start].cast("q")  # the supervisor writes them
        self._first_idle = start + 8 * slots
        self._pids = view[start : start + 4 * slots].cast("i")
        self._connections = view[start + 4 * slots : self._first_idle].cast("i")

    def beat(self, at: float) -> None:
        """Show that this worker is alive, by a number that differs from the last one."""
        self._beats[self.slot] = at

    @property
    def worker_beats(self) -> dict[int, float]:
        """Last beat of each worker that has had one, by process id."""
        return {pid: beat for pid, beat in zip(self._pids, self._beats, strict=False) if pid and beat}

    @property
    def supervisor_beat(self) -> float:
        """Last beat of the supervisor, 0 before the first."""
        return self._beats[self._slots]

    @supervisor_beat.setter
    def supervisor_beat(self, at: float) -> None:
        self._beats[self._slots] = at

    @property
    def replaced(self) -> dict[str, int]:
        """Number of workers that were replaced, by cause."""
        return dict(zip(CAUSES, self._replaced, strict=True))

    def count_replaced(self, cause: DeathCause) -> None:
        """Count a worker that is replaced. Only the supervisor may call this."""
        self._replaced[CAUSES.index(cause)] += 1

    def set_idle(self, idle: bool) -> None:
        """Publish whether the engine of this worker has nothing to do."""
        self._memory[self._first_idle + self.slot] = idle

    def others_idle(self) -> bool:
        """Whether the engines of all other living workers have nothing to do."""
        idle = self._memory[self._first_idle :]
        return all(
            slot == self.slot or idle[slot] or not pid or not is_alive(pid) for slot, pid in enumerate(self._pids)
        )

    def publish_connections(self, count: int | None) -> None:
        """Publish the number of open HTTP connections of this worker; None if it accepts none."""
        self._connections[self.slot] = _NOT_ACCEPTING if count is None else count

    def count_connections(self) -> tuple[int, int]:
        """Open HTTP connections of all living workers that accept any, and the number of these workers."""
        counts = [
            max(0, count) if slot == self.slot else count
            for slot, (pid, count) in enumerate(zip(self._pids, self._connections, strict=True))
            if slot == self.slot or (pid and count != _NOT_ACCEPTING and is_alive(pid))
        ]
        return sum(counts), len(counts)

    def find_idle_worker(self, excluded: Container[int] = ()) -> int | None:
        """Slot of another living worker whose engine is idle and that is not `excluded`; None if there is none."""
        after_own = self._first_idle + self.slot + 1
        for start, end in ((after_own, self._size), (self._first_idle, after_own - 1)):
            while (start := self._memory.find(b"\1", start, end) + 1) > 0:
                worker = start - 1 - self._first_idle
                if worker not in excluded and is_alive(self._pids[worker]):
                    return worker
        return None
