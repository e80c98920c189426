"""Engine sharing: a worker lends its idle engine to workers with images in their queues.

A connection stays with the worker that accepted it, so one worker may have many images while the next has none.
"""

import asyncio
import math
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from serving.inference.batches import PeerLost, Pixels, Row
from serving.telemetry import metrics
from serving.worker_states import WorkerStates

ANSWER_SECONDS: Final = 5
"""Seconds for a batch, after which the other worker counts as hung and the batch is computed here."""
RETRY_SECONDS: Final = 1
"""Seconds in which a lost worker gets no batch."""

_IMAGE_COUNT: Final = struct.Struct("=I")
_BUFFER: Final = 1 << 20


class EngineSharing:
    """Lends this worker's engine and borrows those of the others, over sockets in a shared folder."""

    def __init__(
        self,
        states: WorkerStates,
        socket_of: Callable[[int], Path],
        run: Callable[[Sequence[Pixels]], Awaitable[list[Row]]],
        image: tuple[int, ...],
        heatmap: tuple[int, ...],
    ) -> None:
        """`states` shows the idle workers. `socket_of` gives a worker's socket, which differs between models.

        `run` runs a batch on this worker's engine. `image` is the shape of an image's uint8 pixels, and `heatmap` that
        of its heat maps, (classes, h, w).
        """
        self._states = states
        self._socket_of = socket_of
        self._run = run
        self._image = image
        self._heatmap = heatmap
        self._row = 2 + heatmap[0] + math.prod(heatmap)
        """Numbers in an image's answer: its OOD score, `chest_ct`, probabilities and heat maps."""
        self._connections: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        self._not_before: dict[int, float] = {}
        """Earliest time (time.monotonic) to send a batch to a worker that has one of this worker's, or was lost."""
        self._server: asyncio.Server | None = None
        self._borrowers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Start to lend the engine. Raises OSError if the socket can't be made."""
        own = self._socket_of(self._states.slot)
        own.unlink(missing_ok=True)  # of a worker that crashed
        self._server = await asyncio.start_unix_server(self._lend, own, limit=_BUFFER)

    async def stop(self) -> None:
        """End lending and borrowing."""
        if self._server is None:
            return
        self._server.close()
        self._socket_of(self._states.slot).unlink(missing_ok=True)
        for writer in (*self._borrowers, *(writer for _, writer in self._connections.values())):
            writer.close()

    def publish_idle(self, idle: bool) -> None:
        """Publish to the other workers whether this engine is idle."""
        self._states.set_idle(idle)

    def others_idle(self) -> bool:
        """Whether the engines of all other workers have nothing to do."""
        return self._states.others_idle()

    def sees_idle_worker(self) -> bool:
        """Whether another engine is idle. Any thread may ask."""
        return self._states.find_idle_worker() is not None

    def find_idle_worker(self) -> int | None:
        """A worker with an idle engine and no batch of this worker; None if there is none."""
        now = time.monotonic()
        if self._not_before and min(self._not_before.values()) <= now:
            self._not_before = {worker: until for worker, until in self._not_before.items() if until > now}
        return self._states.find_idle_worker(self._not_before)

    def compute(self, worker: int, pixels: Sequence[Pixels]) -> Awaitable[list[Row]]:
        """Run a batch on the engine of `worker`. Until it ends, the worker is not found as idle. Raises PeerLost."""
        self._not_before[worker] = math.inf
        return self._borrow(worker, pixels)

    async def _borrow(self, worker: int, pixels: Sequence[Pixels]) -> list[Row]:
        writer = None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                if worker in self._connections:
                    reader, writer = self._connections.pop(worker)
                else:
                    reader, writer = await asyncio.open_unix_connection(self._socket_of(worker), limit=_BUFFER)
                writer.writelines([_IMAGE_COUNT.pack(len(pixels)), *(one.tobytes() for one in pixels)])
                answer = np.frombuffer(await reader.readexactly(4 * self._row * len(pixels)), np.float32)
        except (OSError, asyncio.IncompleteReadError) as error:  # TimeoutError is an OSError
            if writer:
                writer.close()
            self._not_before[worker] = time.monotonic() + RETRY_SECONDS
            raise PeerLost(f"worker {worker} did not answer: {error}") from error
        self._connections[worker] = reader, writer
        del self._not_before[worker]
        metrics.BORROWED.inc(len(pixels))
        classes = self._heatmap[0]
        return [
            (row[2 : 2 + classes], row[0], row[1], row[2 + classes :].reshape(self._heatmap))
            for row in answer.reshape(-1, self._row)
        ]

    async def _lend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._borrowers.add(writer)
        try:
            while True:
                (count,) = _IMAGE_COUNT.unpack(await reader.readexactly(_IMAGE_COUNT.size))
                pixels = np.frombuffer(await reader.readexactly(count * math.prod(self._image)), np.uint8)
                rows = await self._run(list(pixels.reshape(count, *self._image)))
                for probabilities, ood_score, chest_ct, heatmap in rows:
                    row = np.concatenate([[ood_score, chest_ct], probabilities, heatmap.ravel()], dtype=np.float32)
                    writer.write(row.tobytes())
        except (OSError, asyncio.IncompleteReadError):
            pass  # the borrower is gone
        finally:
            self._borrowers.discard(writer)
            writer.close()
