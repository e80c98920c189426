"""Rules by which the supervisor finds workers that hang or that die again and again. They use no clock.

Time is counted in checks, one a second. A machine that was paused or that is too busy for the supervisor makes fewer
checks, so it kills no worker.
"""

import signal
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from serving.run_folder import CANNOT_START

START_SECONDS: Final = 120
"""Checks after which a worker that is not ready counts as hung. A start takes seconds, on a busy machine a minute."""
MAX_DEATHS: Final = 5
"""Deaths in a row in one place that end the service, if none of the dead lived longer than LIFE_SECONDS."""
LIFE_SECONDS: Final = 60


class Death(NamedTuple):
    """Why a worker ended, and whether a replacement would end, too."""

    reason: str
    fatal: bool


@dataclass(slots=True)
class _Worker:
    place: int
    age: int = 0
    """Checks since its start."""
    beat: float | None = None
    """Last beat; None before the worker is ready."""
    silent: int = 0
    """Checks since the last beat."""
    hung: bool = False


class WorkerHealth:
    """State of the running workers, and the number of deaths in each place."""

    def __init__(self, hang_seconds: int, start_seconds: int = START_SECONDS) -> None:
        """A worker without a new beat for `hang_seconds` counts as hung."""
        self._hang_seconds = hang_seconds
        self._start_seconds = start_seconds
        self._workers: dict[int, _Worker] = {}
        self._deaths: Counter[int] = Counter()

    def add(self, pid: int, place: int) -> None:
        """Add a worker that was started. A replacement has the `place` of the worker that died."""
        self._workers[pid] = _Worker(place)

    def find_hung(self, beats: Mapping[int, float], alive: Container[int]) -> list[tuple[int, str]]:
        """Make one check. Returns the process id of each worker found hung now, with the reason.

        `beats` holds the last beat of each ready worker by process id. Workers that are not `alive` are forgotten.
        """
        self._workers = {pid: worker for pid, worker in self._workers.items() if pid in alive}
        found = []
        for pid, worker in self._workers.items():
            worker.age += 1
            worker.silent += 1
            if (beat := beats.get(pid)) is not None and beat != worker.beat:
                worker.beat, worker.silent = beat, 0
            limit = self._start_seconds if worker.beat is None else self._hang_seconds
            if worker.silent == limit:
                worker.hung = True
                found.append((pid, f"{'not ready' if worker.beat is None else 'silent'} for {limit} s"))
        return found

    def record_death(self, pid: int, code: int | None) -> Death:
        """Remove a worker that ended with this exit code. A negative code is a signal's number."""
        worker = self._workers.pop(pid, _Worker(0))
        if worker.age > LIFE_SECONDS:
            self._deaths[worker.place] = 0
        self._deaths[worker.place] += 1
        reason = "it hung and was killed" if worker.hung else _explain(code)
        alone = all(other.beat is None for other in self._workers.values())
        fatal = (code == CANNOT_START and alone) or self._deaths[worker.place] >= MAX_DEATHS
        return Death(reason, fatal)


def _explain(code: int | None) -> str:
    if code is None:
        return "its exit code is unknown"
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hints = {
        "SIGKILL": ": by somebody, or by the kernel when the memory or its limit was used up",
        "SIGBUS": ": a file that it maps has lost its blocks; look for a full or failing file system",
    }
    return f"killed by {name}{hints.get(name, '')}"
