"""The folder of one run of the service: its metrics, what its workers share in memory, their sockets.

It is in memory where the machine has room there, so that no full or slow disk holds up a worker. Nobody else uses it:
two services of one user have one each. The blocks of what is mapped into memory are taken ahead by `reserve`: a write
to a mapped page for which there is no block ends the process (SIGBUS).
"""

import contextlib
import fcntl
import os
import shutil
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NoReturn

SUPERVISOR: Final = "_CHESTCT_SUPERVISOR"
"""Variable of a worker: the process id of its supervisor."""
CANNOT_START: Final = 78
"""Exit code of a worker whose start failed for a reason that another try does not change."""
LOAD: Final = "load"
"""The file of serving.worker_load.Load."""

_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Variable of a worker: this folder. prometheus_client reads it."""
_PREFIX: Final = "chestct-run-"
_MEMORY: Final = Path("/dev/shm")
_ROOM: Final = 16 * 1024 * 1024
"""Bytes that must be free: more than the metrics of some ten workers take."""
_FAILURE: Final = "failure"
_METRICS: Final = {"counter": 1 << 17, "histogram": 1 << 18, "gauge_livesum": 1 << 14, "gauge_livemax": 1 << 14}
"""prometheus_client's files of a process, and bytes: several times what all series of all labels take."""
_USED: Final = struct.Struct("i")
"""How such a file begins: with the bytes that are used, these and four more included."""
_LONGEST: Final = 500
_MINUTE: Final = 60


def make() -> Path:
    """A new folder of this process, which holds a lock on it until it ends. Those of dead runs are removed.

    Raises OSError where there is no room for one.
    """
    parents = [_MEMORY, Path(tempfile.gettempdir())]
    parent = next(filter(_has_room, parents), parents[-1])
    for old in parent.glob(f"{_PREFIX}*"):
        _remove_if_dead(old)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    fcntl.flock(os.open(folder, os.O_RDONLY | os.O_DIRECTORY), fcntl.LOCK_EX)  # the kernel lets go of it
    return folder


def variables(folder: Path) -> dict[str, str]:
    """What the workers of this process need in their environment to use the folder."""
    return {SUPERVISOR: str(os.getpid()), _FOLDER: str(folder)}


def current() -> Path | None:
    """The folder of the run that this process is a worker of; None where it is no worker."""
    return Path(os.environ[_FOLDER]) if SUPERVISOR in os.environ else None


def remove(folder: Path) -> None:
    """Remove the folder with all that is in it."""
    shutil.rmtree(folder, ignore_errors=True)


def reserve(file: Path, size: int) -> None:
    """Make the file, or let it grow, with blocks for `size` bytes. Raises OSError where the file system is full."""
    with file.open("ab") as opened:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(opened.fileno(), 0, size)
            elif os.fstat(opened.fileno()).st_size < size:  # macOS
                opened.write(bytes(size - os.fstat(opened.fileno()).st_size))
        except OSError as error:
            raise OSError(error.errno, f"no room for {size:,} bytes: {error.strerror}", str(file)) from None


def reserve_metrics(folder: Path, pid: int) -> None:
    """Take the room for a process' metrics, which prometheus_client would only map. Raises what `reserve` does."""
    for kind, size in _METRICS.items():
        reserve(folder / f"{kind}_{pid}.db", size)


def trim_metrics(folder: Path, pid: int) -> None:
    """Give back the room that a process which has ended did not use. Its counters still count."""
    for kind in _METRICS:
        with contextlib.suppress(OSError, struct.error):
            file = folder / f"{kind}_{pid}.db"
            with file.open("rb") as opened:
                (used,) = _USED.unpack(opened.read(_USED.size))
            os.truncate(file, max(used, 8))


def give_up(folder: Path, error: Exception) -> NoReturn:
    """End this worker with CANNOT_START, and leave the supervisor one line of why. The first to do so is heard."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST]
    try:
        with (folder / _FAILURE).open("x", encoding="utf-8") as file:
            file.write(reason)
    except FileExistsError:
        pass
    except OSError:
        print(f"error: {reason}", file=sys.stderr, flush=True)
    os._exit(CANNOT_START)


def take_failure(folder: Path) -> str:
    """The word that a worker left, once; else nothing."""
    try:
        reason = (folder / _FAILURE).read_text(encoding="utf-8")
        (folder / _FAILURE).unlink()
    except OSError:
        return ""
    return reason


def _has_room(parent: Path) -> bool:
    try:
        found = os.statvfs(parent)
    except OSError:
        return False
    return os.access(parent, os.W_OK | os.X_OK) and found.f_bavail * found.f_frsize >= _ROOM


def _remove_if_dead(folder: Path) -> None:
    """Remove the folder of a run that was killed, which nobody locks; a new one may not be locked yet."""
    with contextlib.suppress(OSError):
        found = folder.stat()
        if found.st_uid != os.geteuid() or time.time() - found.st_mtime < _MINUTE:
            return
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(folder)
        finally:
            os.close(descriptor)
