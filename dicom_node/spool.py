"""The spool: received slices and results on disk. What it has taken survives a crash of the process and the machine.

    incoming/                     files that are being written; emptied at the start
    series/KEY/slices/NAME.dcm    the slices of a series, as received
    series/KEY/revision-N/        the slices of a complete series (slices.json) and what became of them
    dead/KEY/                     a series that was given up, in the same form, with reason.txt

KEY and NAME are digests of UIDs, so no file name tells whose slice it is.
"""

import contextlib
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Final

REASON: Final = "reason.txt"
KEPT_FREE: Final = 16 * 1024 * 1024
"""Bytes of the disk that slices leave free for the results. Without a result no series would leave the spool."""
_DIGITS: Final = 24
"""Hexadecimal digits of a key."""


class SpoolFull(Exception):
    """The spool or its disk has no room for this file."""


class OtherContent(Exception):
    """The spool has another file under the same SOP Instance UID."""


def key_of(*uids: str) -> str:
    """Name for these UIDs that does not show them."""
    return sha256("|".join(uids).encode()).hexdigest()[:_DIGITS]


def write_durably(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and return when it is on the disk. Replaces an older file."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        _write(partial, data)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Return when the names in the folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


class Spool:
    """The folder of one node. Receiving threads and the worker share it.

    `now` is a clock in seconds that never goes back.
    """

    def __init__(self, folder: Path, max_bytes: int, now: Callable[[], float] = time.monotonic) -> None:
        """Open the spool, and make it if necessary. Raises OSError."""
        self._folder = folder
        self._incoming, self._series, self._dead = (folder / name for name in ("incoming", "series", "dead"))
        self._max_bytes = max_bytes
        self._now = now
        self._lock = threading.Lock()
        for part in (self._incoming, self._series, self._dead):
            part.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.rmtree(self._incoming)  # what is left there was never acknowledged
        self._incoming.mkdir(mode=0o700)
        sync_folder(folder)
        self._bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        self._arrived: dict[str, float] = {}
        """When the last slice of each series came. A restart counts as an arrival, so that senders can go on."""
        self._opened = now()

    @property
    def used_bytes(self) -> int:
        return self._bytes

    def take(self, key: str, name: str, data: bytes) -> bool:
        """Store a slice. When this returns, the slice is on the disk.

        Returns False if the same slice is there already. Raises SpoolFull, OtherContent and OSError.
        """
        place = self._series / key / "slices" / f"{name}.dcm"
        if shutil.disk_usage(self._folder).free < len(data) + KEPT_FREE:
            raise SpoolFull
        with self._lock:
            if self._bytes + len(data) > self._max_bytes:
                raise SpoolFull
            self._bytes += len(data)
        partial = self._incoming / uuid.uuid4().hex
        try:
            _write(partial, data)
            with self._lock:
                retry(self._folder, key)  # a new slice is a reason to try again
                place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                os.link(partial, place)  # unlike a rename, it fails if the name is taken
                for folder in (place.parent, place.parent.parent, self._series):
                    sync_folder(folder)
                self._arrived[key] = self._now()
        except FileExistsError:
            self._count(-len(data))
            if place.read_bytes() != data:
                raise OtherContent from None
            return False
        except BaseException:
            self._count(-len(data))
            raise
        finally:
            partial.unlink(missing_ok=True)
        return True

    def series(self) -> list[str]:
        """The series that are not dead letters, the one that was quiet longest first."""
        with contextlib.suppress(FileNotFoundError):
            return sorted((path.name for path in self._series.iterdir()), key=self.last_arrival)
        return []

    def dead_letters(self) -> int:
        """Number of dead letters."""
        return sum(1 for _ in dead_letters(self._folder))

    def last_arrival(self, key: str) -> float:
        """When the last slice of this series came, by the clock of the spool."""
        return self._arrived.get(key, self._opened)

    def folder(self, key: str) -> Path:
        return self._series / key

    def slices(self, key: str) -> list[str]:
        """Names of a series' slices."""
        return sorted(path.stem for path in (self._series / key / "slices").glob("*.dcm"))

    def slice_path(self, key: str, name: str) -> Path:
        return self._series / key / "slices" / f"{name}.dcm"

    def write(self, path: Path, data: bytes) -> None:
        """Write a result into the folder of a series, whole and on the disk."""
        path.parent.mkdir(exist_ok=True, mode=0o700)
        sync_folder(path.parent.parent)
        write_durably(path, data)
        self._count(len(data))

    def remove(self, key: str, slices: list[str]) -> bool:
        """Delete a series, unless it has other slices by now. Returns whether it was deleted."""
        with self._lock:
            if self.slices(key) != slices:
                return False
            gone = self._incoming / uuid.uuid4().hex
            (self._series / key).rename(gone)
            self._arrived.pop(key, None)
        freed = sum(path.stat().st_size for path in gone.rglob("*") if path.is_file())
        shutil.rmtree(gone)
        self._count(-freed)
        return True

    def bury(self, key: str, reason: str) -> None:
        """Make a series a dead letter. The reason must name no patient."""
        self.write(self._series / key / REASON, f"{reason}\n".encode())
        with self._lock:
            (self._series / key).rename(self._dead / key)
            sync_folder(self._dead)
            sync_folder(self._series)

    def _count(self, size: int) -> None:
        with self._lock:
            self._bytes += size


def retry(folder: Path, key: str) -> bool:
    """Take a dead letter in the spool's folder up again, beside a running node too. Returns False if there is none."""
    try:
        (folder / "dead" / key).rename(folder / "series" / key)
    except FileNotFoundError:
        return False
    (folder / "series" / key / REASON).unlink(missing_ok=True)
    sync_folder(folder / "series")
    sync_folder(folder / "dead")
    return True


def dead_letters(folder: Path) -> Iterator[tuple[str, str]]:
    """Key and reason of each dead letter in the spool's folder."""
    for path in sorted((folder / "dead").glob(f"*/{REASON}")):
        yield path.parent.name, path.read_text(encoding="utf-8").strip()
