"""Rules by which the supervisor finds workers that hang or that die again and again. They use no clock.

Time is counted in checks, one a second. A machine that was paused or that is too busy for the supervisor makes fewer
checks, so it kills no worker.
"""

import signal
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from serving.run_folder import CANNOT_START
from serving.worker_states import DeathCause

START_SECONDS: Final = 120
"""Checks after which a worker that is not ready counts as hung. A start takes seconds, on a busy machine a minute."""
LIFE_SECONDS: Final = 60
"""Checks that a worker has to be ready for, so that its death is not one of a row."""


class Death(NamedTuple):
    """Why a worker ended. If `fatal` is not empty, a replacement would end, too, and it says how one knows."""

    reason: str
    cause: DeathCause
    fatal: str


@dataclass(slots=True)
class _Worker:
    place: int
    ready: int = 0
    """Checks since its first beat."""
    beat: float | None = None
    """Last beat; None before the worker is ready."""
    silent: int = 0
    """Checks since the last beat."""
    killed_as: Literal["hung", "not_ready"] | None = None


class WorkerHealth:
    """State of the running workers, and the number of deaths in each place."""

    def __init__(self, hang_seconds: int, max_deaths: int, start_seconds: int = START_SECONDS) -> None:
        """A worker without a new beat for `hang_seconds` counts as hung.

        `max_deaths` in a row in one place are fatal, if none of the dead was ready for LIFE_SECONDS.
        """
        self._hang_seconds = hang_seconds
        self._max_deaths = max_deaths
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
            worker.silent += 1
            worker.ready += worker.beat is not None
            if (beat := beats.get(pid)) is not None and beat != worker.beat:
                worker.beat, worker.silent = beat, 0
            limit = self._start_seconds if worker.beat is None else self._hang_seconds
            if worker.silent == limit:
                worker.killed_as = "not_ready" if worker.beat is None else "hung"
                found.append((pid, f"{'not ready' if worker.beat is None else 'silent'} for {limit} s"))
        return found

    def record_death(self, pid: int, code: int | None, full: str = "") -> Death:
        """Remove a worker that ended with this exit code. A negative code is a signal's number.

        `full` names the memory that was used up, if the kernel has killed a process for it since the last death.
        """
        worker = self._workers.pop(pid, _Worker(0))
        if worker.ready > LIFE_SECONDS:
            self._deaths[worker.place] = 0
        self._deaths[worker.place] += 1
        cause = worker.killed_as or _cause(code, full)
        fatal = ""
        if code == CANNOT_START and all(other.beat is None for other in self._workers.values()):
            fatal = "no worker can start"
        elif self._deaths[worker.place] >= self._max_deaths:
            fatal = f"{self._max_deaths} workers in a row have died within {LIFE_SECONDS} s of being ready"
        return Death(_explain(cause, code, full), cause, fatal)


def _cause(code: int | None, full: str) -> DeathCause:
    if code == -signal.SIGKILL:
        return "out_of_memory" if full else "killed"
    return "crashed" if code is not None and code < 0 else "exited"


def _explain(cause: DeathCause, code: int | None, full: str) -> str:
    """What ended a worker and what to do, in one line."""
    match cause:
        case "hung":
            return "it hung and was killed"
        case "not_ready":
            return "it was not ready in time and was killed; look for busy cores or a slow disk"
        case "out_of_memory":
            return f"killed by the kernel because {full} was used up; raise the limit or lower CHESTCT_WORKERS"
        case "killed":
            return (
                "killed by SIGKILL: by somebody, or by the kernel when the memory was used up; look at the memory and "
                "its limit"
            )
    if code is None:
        return "its exit code is unknown; look at the log above"
    if code >= 0:
        return f"exit code {code}; look at the log above"
    if code == -signal.SIGBUS:
        return "killed by SIGBUS: a file that it maps has lost its blocks; look for a full or failing file system"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"killed by {name}; look at the log above"
