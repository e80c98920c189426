"""Which workers hang, and whether they die in a loop: rules over what the supervisor sees, without a clock.

Time is counted in looks, one a second. So a machine that was paused, or whose cores are too busy for the supervisor
itself, kills no worker: it looks less often, too.
"""

import signal
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from serving.run_folder import CANNOT_START

START_SECONDS: Final = 120
"""A worker that takes longer to be ready hangs. Some seconds are usual, a minute on a busy machine."""
DEATHS: Final = 5
"""So many in a row in one worker's place end the service ..."""
MINUTE: Final = 60
"""... where none of them lived longer, in seconds."""


class Death(NamedTuple):
    """Why a worker ended, and whether another one in its place would end, too."""

    reason: str
    fatal: bool


@dataclass(slots=True)
class _Worker:
    place: int
    age: int = 0
    """Looks since it was started."""
    beat: float | None = None
    """The last one seen; None: it is not ready yet."""
    silent: int = 0
    """Looks since then."""
    hung: bool = False


class Watch:
    """What is known of the workers that run, and of the deaths in their places."""

    def __init__(self, hang_seconds: int, start_seconds: int = START_SECONDS) -> None:
        """A worker without a new beat for `hang_seconds` hangs."""
        self._hang_seconds = hang_seconds
        self._start_seconds = start_seconds
        self._workers: dict[int, _Worker] = {}
        self._deaths: Counter[int] = Counter()

    def start(self, pid: int, place: int) -> None:
        """A worker was started; `place` is the one of who died before it."""
        self._workers[pid] = _Worker(place)

    def look(self, beats: Mapping[int, float], alive: Iterable[int]) -> list[tuple[int, str]]:
        """Look once more, and forget who is not `alive`. Who is found to hang now, by process id, and why.

        `beats`: of each worker that is ready, by process id, another number each time.
        """
        self._workers = {pid: worker for pid, worker in self._workers.items() if pid in set(alive)}
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

    def end(self, pid: int, code: int | None) -> Death:
        """A worker ended with this exit code, or less than zero: by this signal."""
        worker = self._workers.pop(pid, _Worker(0))
        if worker.age > MINUTE:
            self._deaths[worker.place] = 0
        self._deaths[worker.place] += 1
        reason = "it hung and was killed" if worker.hung else _explain(code)
        alone = all(other.beat is None for other in self._workers.values())
        fatal = (code == CANNOT_START and alone) or self._deaths[worker.place] >= DEATHS
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
