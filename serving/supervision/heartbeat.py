"""A worker's side of supervision: it beats while it is alive, notices who is silent, and dies with its supervisor."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Final

from chestct.processes import die_first, die_with_parent, is_alive
from serving.run_folder import SUPERVISOR
from serving.worker_states import WorkerStates

BEAT_SECONDS: Final = 1
"""Seconds between two beats."""
SUPERVISOR_SECONDS: Final = 60
"""Seconds without a beat of the supervisor after which it counts as hung."""
_LEAST_SILENCE: Final = 3
"""Seconds. Two workers beat at different moments, so one that is well may seem silent for a beat or two."""

_log = logging.getLogger(__name__)


def die_with_supervisor() -> None:
    """On Linux, be killed when the supervisor dies. End at once if it is dead already.

    If the memory is used up, the kernel kills the worker and not the supervisor, which then says why.
    """
    supervisor = os.environ.get(SUPERVISOR)
    if supervisor is not None:
        die_with_parent(int(supervisor))
        die_first()


class Heartbeat:
    """Beats in memory that the supervisor reads, as long as the event loop runs and the engine finishes its batches.

    It also watches the beats of the supervisor and of all workers, because a frozen worker can't say that it is not
    ready: others must say it for the service. Time is counted in own beats, so a paused machine finds no silence.
    """

    def __init__(
        self,
        states: WorkerStates,
        busy_since: Callable[[], float],
        hang_seconds: int,
        on_change: Callable[[bool], Awaitable[None]],
    ) -> None:
        """`busy_since` gives the start of the engine's batch (time.monotonic), or infinity if it has none.

        During a batch the beat is the batch's start. So the supervisor notices a batch that never ends. `on_change` is
        awaited with False if a living worker has been silent for a third of `hang_seconds`, and with True once all
        beat again.
        """
        self._states = states
        self._busy_since = busy_since
        self._limit = max(_LEAST_SILENCE, hang_seconds // 3)
        self._hang_seconds = hang_seconds
        self._on_change = on_change
        self._all_beat = True
        self._supervisor_beat = 0.0
        self._supervisor_silent = 0
        self._beats: dict[int, tuple[float, int]] = {}
        """Of each worker: its last beat, and the seconds since then."""
        self._silence = 0
        """Seconds since the last beat of the living worker that has been silent for longest."""
        self._task: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether the supervisor beats, and no worker hangs for so long that the supervisor should have replaced it.

        True without a supervisor of ours.
        """
        return self._supervisor_silent < SUPERVISOR_SECONDS and self._silence < 2 * self._hang_seconds

    def start(self) -> None:
        """Beat from now on, until the running event loop ends."""
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            self._states.beat(min(time.monotonic(), self._busy_since()))
            self._watch()
            all_beat = self._silence < self._limit
            if all_beat != self._all_beat:
                self._all_beat = all_beat
                said = (
                    "ready again: all workers beat"
                    if all_beat
                    else f"not ready: a worker is silent for {self._limit} s"
                )
                _log.warning("%s", said)
                await self._on_change(all_beat)
            await asyncio.sleep(BEAT_SECONDS)

    def _watch(self) -> None:
        beat = self._states.supervisor_beat
        same = beat == self._supervisor_beat and beat
        self._supervisor_silent = self._supervisor_silent + BEAT_SECONDS if same else 0
        self._supervisor_beat = beat
        beats = {}
        for pid, beat in self._states.worker_beats.items():
            before, silent = self._beats.get(pid, (0.0, 0))
            beats[pid] = (beat, silent + BEAT_SECONDS if beat == before else 0)
        self._beats = beats
        self._silence = max((silent for pid, (_, silent) in beats.items() if silent and is_alive(pid)), default=0)
