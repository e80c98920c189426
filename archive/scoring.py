"""From files to rows, without a server: the same decoding, engine and decisions as in the service.

`score` is a pure function over Arrow record batches, so any engine that maps batches can spread it.
"""

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

import numpy as np

from archive import models, rows, series
from archive.models import Model
from archive.sources import read_local
from chestct import tables
from chestct.answer_columns import of_answer
from chestct.buckets import Object
from chestct.engine import load
from chestct.file_errors import CannotGoOn, FileError
from chestct.guarded_decoding import GuardedProcessFailed, check_kind, decode_guarded, decode_if_cheap
from chestct.image import Picture
from chestct.invalid_image import InvalidImage
from chestct.prediction import decide
from chestct.reader_process import ReaderProcess
from chestct.tables import RecordBatch, Row

READ_AHEAD: Final = 8
"""Files that are read before their turn, so that a bucket's latency does not count. Each has 20 MiB at most."""


class File(NamedTuple):
    name: str
    read: Callable[[], bytes]
    """Returns the content. Raises FileError."""


class Scorer:
    """A model that is ready. Use it from one thread, and close it."""

    def __init__(self, model: Model, *, threads: int = 1, by_series: bool = False) -> None:
        """`threads`: CPU threads for one inference; 0 for all cores. `by_series`: fill the column `series`."""
        self.model: Final = model
        self.schema: Final = rows.schema(model.card.classes)
        self._by_series = by_series
        self._engine = load(model.graph, model.card, threads=threads, batch_sizes=(1,))
        self._process = ReaderProcess()
        self._readers = ThreadPoolExecutor(READ_AHEAD, thread_name_prefix="read")

    def close(self) -> None:
        self._readers.shutdown(cancel_futures=True)
        self._process.stop()

    def score(self, files: Iterable[File]) -> Iterator[Row]:
        """A row for each file, in order. Raises CannotGoOn if the source fails."""
        ahead = deque[tuple[str, Future[tuple[bytes, str]]]]()
        for file in files:
            ahead.append((file.name, self._readers.submit(_read, file)))
            if len(ahead) == READ_AHEAD:
                yield self._score_one(*ahead.popleft())
        while ahead:
            yield self._score_one(*ahead.popleft())

    def score_batch(self, batch: object) -> RecordBatch:
        """The rows of a batch with the column `file`, local paths, and optionally `content`, the files' bytes."""
        found = tables.to_rows(batch)
        return tables.to_batch(list(self.score(map(_to_file, found))), self.schema)

    def _score_one(self, name: str, reading: Future[tuple[bytes, str]]) -> Row:
        row = rows.of_file(self.model, name)
        started = time.perf_counter()
        try:
            data, row["sha256"] = reading.result()
            started = time.perf_counter()
            if self._by_series:
                row["series"] = series.uid(data)
            row |= self._answer(self._decode(data))
        except (FileError, InvalidImage) as error:
            row |= {"error": error.code, "message": error.message}
        row["seconds"] = time.perf_counter() - started
        return row

    def _decode(self, data: bytes) -> Picture:
        spec = self.model.card.input
        check_kind(data)
        try:
            cheap = decode_if_cheap(data, spec)
            return cheap or decode_guarded(self._process, data, spec, math.inf, lambda _: None)
        except GuardedProcessFailed as failed:
            raise FileError("reader_failed", str(failed)) from None

    def _answer(self, picture: Picture) -> Row:
        try:
            scores = self._engine.infer(picture.pixels[np.newaxis])
        except RuntimeError as error:
            raise CannotGoOn(f"the engine failed: {str(error).partition(chr(10))[0]}") from error
        answer = decide(
            self.model.card,
            scores.probabilities[0],
            float(scores.ood_score[0]),
            float(scores.chest_ct[0]),
            picture.facts,
            request_id="",
            model=self.model.tag,
        )
        return of_answer(self.model.card, answer)


def score(batches: Iterable[object], model: str | None = None) -> Iterator[RecordBatch]:
    """Rows of each batch, with a model that is loaded once.

    A batch is any Arrow library's record batch with the column `file`: local paths, or names if the column `content`
    has the files' bytes. `model` is a tag or a folder. A file that can't be scored is a row with its error. Raises
    CannotGoOn if there is no model.
    """
    scorer = Scorer(models.find(model))
    try:
        for batch in batches:
            yield scorer.score_batch(batch)
    finally:
        scorer.close()


def _read(file: File) -> tuple[bytes, str]:
    """The content and its SHA-256."""
    data = file.read()
    return data, hashlib.sha256(data).hexdigest()


def _to_file(row: Row) -> File:
    name, content = row["file"], row.get("content")
    return File(name, lambda: read_local(name, Object(name, -1, "")) if content is None else bytes(content))
