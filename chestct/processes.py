"""What a process needs of other processes: to see that one is alive, and to end with its parent."""

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


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
