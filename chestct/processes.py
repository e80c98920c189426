"""What a process needs of other processes: to see that one is alive, to start some, and to end with its parent."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeVar

_PR_SET_PDEATHSIG: Final = 1
_MOST_OOM_SCORE: Final = 1000
_OOM_SCORE: Final = 500
"""It counts like half of the memory that there is, which outweighs the memory of any parent."""

P = ParamSpec("P")
T = TypeVar("T")


def is_alive(pid: int) -> bool:
    """Whether this user has a process with this id."""
    try:
        os.kill(pid, 0)
    except OSError:  # no such process, or another user's by now
        return False
    return True


def die_with_parent(parent: int) -> None:
    """On Linux, have the kernel kill this process when its parent dies. End it at once if the parent is dead already.

    `parent` is the process id of the parent. The kernel watches the parent's thread that started this process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def die_first() -> None:
    """On Linux, have the kernel kill this process rather than its parent if the memory is used up."""
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError):  # another system
        score.write_text(str(min(_MOST_OOM_SCORE, int(score.read_text()) + _OOM_SCORE)))


class SpawnedPool(ProcessPoolExecutor):
    """New processes that end with this one, and that Ctrl-C does not reach: it is for this one alone.

    An exception that leaves its `with` block kills all processes that multiprocessing has started here. Use the pool in
    the main thread.
    """

    def __init__(self, processes: int, prepare: Callable[P, object] | None = None, *args: P.args, **kwargs: P.kwargs):
        """Have `processes` of them. Each calls `prepare` first."""
        context = multiprocessing.get_context("spawn")
        super().__init__(processes, context, _start, (os.getpid(), prepare, args, kwargs))

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        with _without_interrupts():  # it may start a process
            return super().submit(fn, *args, **kwargs)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> bool | None:
        if kind is not None:  # do not wait for work whose result nobody takes
            for child in multiprocessing.active_children():
                child.kill()
            self.shutdown(cancel_futures=True)
        return super().__exit__(kind, error, at)


def _start(parent: int, prepare: Callable[..., object] | None, args: Any, kwargs: Any) -> None:
    die_with_parent(parent)
    if prepare is not None:
        prepare(*args, **kwargs)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block. A process that starts in the block never receives it."""
    came = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))  # another thread may receive it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a new process keeps this
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)
