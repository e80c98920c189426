"""The phases of a worker's start, for one line of the log."""

import logging
import time
from typing import Final

import psutil  # type: ignore[import-untyped]

_log = logging.getLogger(__name__)


class StartTimes:
    """Measures phases, each from the end of the one before. The first one begins when the process begins."""

    def __init__(self) -> None:
        self._began: Final = psutil.Process().create_time()
        self._phases: list[tuple[str, float, float]] = []

    def end(self, phase: str) -> None:
        """Note that this phase ends now."""
        self._phases.append((phase, time.time(), time.process_time()))

    def report(self, event: str) -> None:
        """Log the phases so far: the seconds that passed, and in brackets those of CPU time of all threads."""
        seconds, cpu = self._began, 0.0
        words = []
        for phase, now, now_cpu in self._phases:
            words.append(f"{phase} {now - seconds:.2f} ({now_cpu - cpu:.2f})")
            seconds, cpu = now, now_cpu
        _log.info("%s after %.2f s (%.2f): %s", event, seconds - self._began, cpu, ", ".join(words))
