"""Reads the service's inference log, a part at a time, from a folder, a file or a bucket."""

import re
from collections.abc import Callable, Iterator, Set
from datetime import date, timedelta
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Semaphore, Thread
from typing import Final, NamedTuple

from tqdm import tqdm

from chestct import tables
from chestct.buckets import SCHEMES, Object, Store, is_url
from chestct.file_errors import CannotGoOn, FileError
from pipeline.core.errors import DataError
from pipeline.foreign.folders import list_files
from pipeline.images.listing import in_utf8

SUFFIX: Final = ".parquet"
_DAY: Final = re.compile(r"(?:^|/)date=(\d{4}-\d\d-\d\d)/")
"""The folder of a day, which the service writes its parts to."""
_TOGETHER: Final = 10_000
"""Rows that are in memory at the same time."""
_AHEAD: Final = 8
"""Parts of a bucket that are asked for at the same time, because each answer takes a while."""
_MOST_BYTES: Final = 64 * 2**20
"""Largest part that is read from a bucket. The service's parts are much smaller."""
_LOOK_SECONDS: Final = 0.5
"""A wait without an end would not see a Ctrl-C that came just before it."""
_RETRY_FOR: Final = timedelta(seconds=10)
"""Time in which a failed request to a bucket is tried again."""


class Part(NamedTuple):
    """A Parquet file of the log."""

    name: str
    """Its place, for messages."""
    content: Path | bytes


def parts_of(place: str, since: date | None = None) -> Iterator[Part]:
    """The parts at `place`: a Parquet file, a folder or the URL of a bucket. There may be none.

    `since` leaves out the days before it, and parts that are in no folder of a day. In a bucket, earlier days are not
    even listed. Raises DataError if the place can't be read.
    """
    if is_url(place):
        return _in_bucket(place, since)
    if "://" in place:
        raise DataError(f"{place}: expected a folder, or the URL of a bucket with {', '.join(SCHEMES)}")
    if Path(place).is_file():
        return iter([Part(in_utf8(place), Path(place))])
    return _in_folder(Path(place), since)


def rows_of(parts: Iterator[Part], columns: Set[str]) -> Iterator[list[tables.Row]]:
    """The rows of the parts, some at a time, with progress on stderr.

    Raises DataError for a part that can't be read or lacks one of the columns.
    """
    for part in tqdm(parts, desc="reading the log", unit="part"):
        try:
            for rows in tables.read(part.content, _TOGETHER):
                if missing := columns - rows[0].keys():
                    raise DataError(f"{part.name}: this is no inference log, for it has no column {min(missing)}")
                yield rows
        except (tables.Unreadable, OSError) as error:
            raise DataError(f"{part.name}: can't be read as Parquet: {' '.join(str(error).split())}") from error


def _is_since(name: str, since: date | None) -> bool:
    found = _DAY.search(name)
    return since is None or (found is not None and found[1] >= since.isoformat())


def _in_folder(folder: Path, since: date | None) -> Iterator[Part]:
    for path in list_files(folder):
        if path.suffix == SUFFIX and _is_since(path.as_posix(), since):
            yield Part(in_utf8(str(path)), path)


def _in_bucket(place: str, since: date | None) -> Iterator[Part]:
    try:
        store = Store(place, retry_for=_RETRY_FOR)
        listed = store.names(after=f"date={since.isoformat()}" if since else "")
        wanted = (each for each in listed if each.name.endswith(SUFFIX) and _is_since(each.name, since))
        yield from _read_ahead(wanted, lambda each: _read(store, each))
    except CannotGoOn as error:
        raise DataError(str(error)) from None


def _read(store: Store, part: Object) -> Part:
    name = f"{store.place}/{part.name}"
    try:
        return Part(name, store.read(part, _MOST_BYTES))
    except FileError as error:
        raise DataError(f"{name}: {error.message}") from None


def _read_ahead(wanted: Iterator[Object], read: Callable[[Object], Part]) -> Iterator[Part]:
    """Read what is wanted, in any order, with _AHEAD of them in memory or under way.

    Listing and reading happen in daemon threads, so Ctrl-C need not wait for a bucket that does not answer.
    """
    found: SimpleQueue[Part | Exception | None] = SimpleQueue()
    room, one_lists, stopped = Semaphore(_AHEAD), Lock(), Event()

    def work() -> None:
        try:
            while room.acquire() and not stopped.is_set():
                with one_lists:
                    each = next(wanted, None)
                if each is None:
                    break
                found.put(read(each))
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller's thread raises it
            found.put(error)
        room.release()
        found.put(None)

    threads = [Thread(target=work, daemon=True) for _ in range(_AHEAD)]
    for thread in threads:
        thread.start()
    try:
        while threads:
            try:
                part = found.get(timeout=_LOOK_SECONDS)
            except Empty:
                continue
            if part is None:
                threads.pop()
            elif isinstance(part, Exception):
                raise part
            else:
                yield part
                room.release()
    finally:
        stopped.set()
        room.release(_AHEAD)
