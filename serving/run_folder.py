"""The folder of one run of the service: its metrics, the memory that its workers share, and their sockets.

The folder is in memory if the machine has room there, so that a full or slow disk holds up no worker. Each run has a
folder of its own. `reserve_blocks` allocates the blocks of mapped files in advance, because a write to a mapped page
without a block ends the process (SIGBUS).
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
"""Environment variable of a worker: process id of its supervisor."""
CANNOT_START: Final = 78
"""Exit code of a worker that failed to start and would fail again."""
WORKER_STATES: Final = "states"
"""Name of the file of serving.worker_states.WorkerStates."""

_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable of a worker: this folder. prometheus_client reads it."""
_PREFIX: Final = "chestct-run-"
_MEMORY: Final = Path("/dev/shm")
_MIN_FREE: Final = 16 * 1024 * 1024
"""Bytes that must be free, more than the metrics of ten workers take."""
_FAILURE: Final = "failure"
_METRICS: Final = {
    "counter": 1 << 17,
    "histogram": 1 << 18,
    "gauge_livesum": 1 << 14,
    "gauge_livemax": 1 << 14,
    "gauge_livemin": 1 << 14,
}
"""prometheus_client's files of a process and their bytes, several times what all series need."""
_USED: Final = struct.Struct("i")
"""Head of such a file: the bytes in use, including these and four more."""
_LONGEST_REASON: Final = 500
"""Characters of a failure's reason."""
_MINUTE: Final = 60


def create() -> Path:
    """Make a new folder and lock it until this process ends. Remove the folders of dead runs.

    Raises OSError if there is no room for one.
    """
    parents = [_MEMORY, Path(tempfile.gettempdir())]
    parent = next(filter(_has_room, parents), parents[-1])
    for old in parent.glob(f"{_PREFIX}*"):
        _remove_if_dead(old)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    fcntl.flock(os.open(folder, os.O_RDONLY | os.O_DIRECTORY), fcntl.LOCK_EX)  # the kernel unlocks it
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Environment variables by which the workers of this process find the folder."""
    return {SUPERVISOR: str(os.getpid()), _FOLDER: str(folder)}


def current() -> Path | None:
    """The folder of this worker's run; None if this process is no worker."""
    return Path(os.environ[_FOLDER]) if SUPERVISOR in os.environ else None


def remove(folder: Path) -> None:
    """Remove the folder with all that is in it."""
    shutil.rmtree(folder, ignore_errors=True)


def reserve_blocks(file: Path, size: int) -> None:
    """Make the file, or grow it, with blocks for `size` bytes. Raises OSError if the file system is full."""
    with file.open("ab") as opened:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(opened.fileno(), 0, size)
            elif os.fstat(opened.fileno()).st_size < size:  # macOS
                opened.write(bytes(size - os.fstat(opened.fileno()).st_size))
        except OSError as error:
            raise OSError(error.errno, f"no room for {size:,} bytes: {error.strerror}", str(file)) from None


def reserve_metrics(folder: Path, pid: int) -> None:
    """Reserve the blocks of a process' metrics, which prometheus_client only maps. Raises OSError."""
    for kind, size in _METRICS.items():
        reserve_blocks(folder / f"{kind}_{pid}.db", size)


def trim_metrics(folder: Path, pid: int) -> None:
    """Free the blocks that an ended process did not use. Its counters still count."""
    for kind in _METRICS:
        with contextlib.suppress(OSError, struct.error):
            file = folder / f"{kind}_{pid}.db"
            with file.open("rb") as opened:
                (used,) = _USED.unpack(opened.read(_USED.size))
            os.truncate(file, max(used, 8))


def exit_cannot_start(folder: Path, error: Exception) -> NoReturn:
    """End this worker with CANNOT_START. Leave the supervisor the reason in one line, unless another worker has."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
    try:
        with (folder / _FAILURE).open("x", encoding="utf-8") as file:
            file.write(reason)
    except FileExistsError:
        pass
    except OSError:
        print(f"error: {reason}", file=sys.stderr, flush=True)
    os._exit(CANNOT_START)


def pop_failure(folder: Path) -> str:
    """Read and remove the reason that a worker left; empty if there is none."""
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
    return os.access(parent, os.W_OK | os.X_OK) and found.f_bavail * found.f_frsize >= _MIN_FREE


def _remove_if_dead(folder: Path) -> None:
    """Remove the folder of a killed run, which nobody locks. A folder of the last minute may not be locked yet."""
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
