"""Decodes a cheap PNG or JPEG in a decoder's thread and queues it from there, past the event loop.

GuardedReader decodes the files that may be costly or hostile.
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

from chestct.guarded_decoding import decode_if_cheap
from serving.telemetry import metrics

if TYPE_CHECKING:
    from chestct.card import InputSpec
    from chestct.image import Picture
    from serving.inference.batcher import Batcher
    from serving.inference.batches import QueuedImage


class Decoding:
    """A file that waits for a decoder's thread, with a place in the queue."""

    def __init__(self, data: bytes, spec: InputSpec, batcher: Batcher, queued: QueuedImage, *, hashing: bool) -> None:
        """`queued` is the file's place in the batcher's queue. `hashing`: also make the file's SHA-256."""
        self._data = data
        self._spec = spec
        self._batcher = batcher
        self._queued = queued
        self._hashing = hashing
        self.picture: Picture | None = None
        """The decoded picture. None if only the guarded process may decode the file, or it can't be decoded."""
        self.seconds = 0.0
        """Time of decoding."""
        self.sha256: str | None = None
        """Of the file, if it is hashed and decoded."""

    def run(self) -> None:
        """Decode the file, unless nobody waits for it any more. Its place in the queue is filled or given up.

        The picture's facts are counted here, in a decoder's thread, to keep the event loop free.
        """
        if self._queued.score.done():
            return
        try:
            self._decode()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised where the score is awaited
            self._batcher.leave(self._queued, error)
            return
        if self.picture is None:
            self._batcher.leave(self._queued)
        else:
            self._batcher.fill(self._queued, self.picture.pixels)

    def _decode(self) -> None:
        started = time.perf_counter()
        picture = decode_if_cheap(self._data, self._spec)
        if picture is None:
            return
        self.seconds = time.perf_counter() - started
        metrics.observe_input(picture.facts)
        self.sha256 = hashlib.sha256(self._data).hexdigest() if self._hashing else None
        self.picture = picture
