"""A worker's side of supervision: it beats while it is alive, notices a dead supervisor, and dies with it."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final

from chestct.processes import die_with_parent
from serving.run_folder import SUPERVISOR
from serving.worker_states import WorkerStates

BEAT_SECONDS: Final = 1
"""Seconds between two beats."""
SUPERVISOR_SECONDS: Final = 60
"""Seconds without a beat of the supervisor after which it counts as hung."""


def die_with_supervisor() -> None:
    """On Linux, be killed when the supervisor dies. End at once if it is dead already."""
    supervisor = os.environ.get(SUPERVISOR)
    if supervisor is not None:
        die_with_parent(int(supervisor))


class Heartbeat:
    """Beats in memory that the supervisor reads, as long as the event loop runs and the engine finishes its batches."""

    def __init__(self, states: WorkerStates, busy_since: Callable[[], float]) -> None:
        """`busy_since` gives the start of the engine's batch (time.monotonic), or infinity if it has none.

        During a batch the beat is the batch's start. So the supervisor notices a batch that never ends.
        """
        self._states = states
        self._busy_since = busy_since
        self._supervisor_beat = 0.0
        self._silent = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def supervisor_alive(self) -> bool:
        """Whether the supervisor still beats. True without a supervisor of ours."""
        return self._silent < SUPERVISOR_SECONDS

    def start(self) -> None:
        """Beat from now on, until the running event loop ends."""
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            self._states.beat(min(time.monotonic(), self._busy_since()))
            beat = self._states.supervisor_beat
            self._silent = self._silent + BEAT_SECONDS if beat == self._supervisor_beat and beat else 0
            self._supervisor_beat = beat
            await asyncio.sleep(BEAT_SECONDS)
