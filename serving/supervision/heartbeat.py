"""A worker's side of being watched: it shows that it is alive, notices a dead watcher, and ends with its supervisor."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final

from serving.parent_process import end_with
from serving.run_folder import SUPERVISOR
from serving.worker_load import WorkerLoad

SECONDS: Final = 1
"""Between two beats."""
WATCHER_SECONDS: Final = 60
"""A supervisor that shows nothing for so long hangs."""


def end_with_supervisor() -> None:
    """Linux: be killed when the supervisor dies, however it does; end at once where it is dead already."""
    supervisor = os.environ.get(SUPERVISOR)
    if supervisor is not None:
        end_with(int(supervisor))


class Heartbeat:
    """Beats in memory that the supervisor reads while the event loop turns and the engine comes back."""

    def __init__(self, load: WorkerLoad, busy_since: Callable[[], float]) -> None:
        """`busy_since`: when the engine's batch began, on time.monotonic's clock; infinity where there is none.

        While a batch is in the engine the beat is its beginning. So one that never ends is seen as a hung loop is.
        """
        self._load = load
        self._busy_since = busy_since
        self._watcher = 0.0
        self._silent = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def watched(self) -> bool:
        """Whether the supervisor does its part: who hangs is replaced. True where there is none of ours."""
        return self._silent < WATCHER_SECONDS

    def start(self) -> None:
        """Beat from now on, until the running event loop ends."""
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            self._load.beat(min(time.monotonic(), self._busy_since()))
            watcher = self._load.watcher
            self._silent = self._silent + SECONDS if watcher == self._watcher and watcher else 0
            self._watcher = watcher
            await asyncio.sleep(SECONDS)
