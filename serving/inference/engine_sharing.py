"""Workers lend each other their engines: what waits in one's queue is computed where another's engine idles.

A connection stays with the worker that took it, so that one may have many images while the next has none.
"""

import asyncio
import math
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from serving.inference.batcher import PeerLost, Pixels, Row
from serving.telemetry import metrics
from serving.worker_load import WorkerLoad

ANSWER_SECONDS: Final = 5
"""A worker that takes longer for a batch hangs, and the batch is done at home."""
AGAIN_SECONDS: Final = 1
"""So long a worker that was lost is not asked."""

_COUNT: Final = struct.Struct("=I")
_BUFFER: Final = 1 << 20


class EngineSharing:
    """This worker's engine for the others, and theirs for it, over sockets in a folder that they share."""

    def __init__(
        self,
        load: WorkerLoad,
        name: Callable[[int], Path],
        run: Callable[[Sequence[Pixels]], Awaitable[list[Row]]],
        image: tuple[int, ...],
        heatmap: tuple[int, ...],
    ) -> None:
        """`load` tells who idles. `name`: a worker's socket, another one for another model. `run` is the own engine.

        `image`: shape of one in pixels, uint8. `heatmap`: (classes, h, w).
        """
        self._load = load
        self._name = name
        self._run = run
        self._image = image
        self._heatmap = heatmap
        self._row = 1 + heatmap[0] + math.prod(heatmap)
        """Numbers of an answer: the score, the probabilities, the heat map."""
        self._open: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        self._not_before: dict[int, float] = {}
        """When, on time.monotonic's clock, a worker may be asked: one that has a batch of this one, or was lost."""
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Lend to who asks. Raises OSError where the socket can't be made."""
        own = self._name(self._load.slot)
        own.unlink(missing_ok=True)  # of a worker that crashed
        self._server = await asyncio.start_unix_server(self._lend, own, limit=_BUFFER)

    async def stop(self) -> None:
        """Lend no more, and borrow no more."""
        if self._server is None:
            return
        self._server.close()
        self._name(self._load.slot).unlink(missing_ok=True)
        for writer in (*self._serving, *(writer for _, writer in self._open.values())):
            writer.close()

    def announce(self, idle: bool) -> None:
        """Tell the others whether this engine idles."""
        self._load.set_idle(idle)

    def find_idle_worker(self) -> int | None:
        """A worker whose engine idles, and that has no batch of this one; None where there is none."""
        now = time.monotonic()
        if self._not_before and min(self._not_before.values()) <= now:
            self._not_before = {worker: until for worker, until in self._not_before.items() if until > now}
        return self._load.find_idle_worker(self._not_before)

    def compute(self, worker: int, pixels: Sequence[Pixels]) -> Awaitable[list[Row]]:
        """A batch by that worker's engine, which is not found until it is done. Raises PeerLost where the worker is."""
        self._not_before[worker] = math.inf
        return self._ask(worker, pixels)

    async def _ask(self, worker: int, pixels: Sequence[Pixels]) -> list[Row]:
        writer = None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                if worker in self._open:
                    reader, writer = self._open.pop(worker)
                else:
                    reader, writer = await asyncio.open_unix_connection(self._name(worker), limit=_BUFFER)
                writer.writelines([_COUNT.pack(len(pixels)), *(one.tobytes() for one in pixels)])
                answer = np.frombuffer(await reader.readexactly(4 * self._row * len(pixels)), np.float32)
        except (OSError, asyncio.IncompleteReadError) as error:  # TimeoutError is an OSError
            if writer:
                writer.close()
            self._not_before[worker] = time.monotonic() + AGAIN_SECONDS
            raise PeerLost(f"worker {worker} did not answer: {error}") from error
        self._open[worker] = reader, writer
        del self._not_before[worker]
        metrics.BORROWED.inc(len(pixels))
        classes = self._heatmap[0]
        return [
            (row[1 : 1 + classes], row[0], row[1 + classes :].reshape(self._heatmap))
            for row in answer.reshape(-1, self._row)
        ]

    async def _lend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.add(writer)
        try:
            while True:
                (count,) = _COUNT.unpack(await reader.readexactly(_COUNT.size))
                pixels = np.frombuffer(await reader.readexactly(count * math.prod(self._image)), np.uint8)
                rows = await self._run(list(pixels.reshape(count, *self._image)))
                for probabilities, ood_score, heatmap in rows:
                    row = np.concatenate([[ood_score], probabilities, heatmap.ravel()], dtype=np.float32)
                    writer.write(row.tobytes())
        except (OSError, asyncio.IncompleteReadError):
            pass  # who asked is gone
        finally:
            self._serving.discard(writer)
            writer.close()
