"""Limits of the container that this process runs in, from Linux' control groups of version 2 or 1."""

import math
import os
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/sys/fs/cgroup")
_NO_LIMIT: Final = 1 << 62
"""Version 1 shows a number above this if there is no limit on memory."""


def usable_cores() -> int:
    """Number of cores that this process may use, within the CPU limit of its container."""
    return math.ceil(min(_allowed_cores(), cpu_limit()))


def cores_are_shared() -> bool:
    """Whether a CPU limit gives this process less time than its cores have. Then other containers use them, too."""
    return cpu_limit() < _allowed_cores()


def _allowed_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS


def cpu_limit() -> float:
    """CPU cores that the container may use; infinity without a limit."""
    quota, _, period = _read("cpu.max").partition(" ")
    if not quota:
        quota, period = _read("cpu/cpu.cfs_quota_us"), _read("cpu/cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else math.inf


def memory_limit() -> float:
    """Bytes of memory that the container may use; infinity without a limit."""
    limit = _read("memory.max") or _read("memory/memory.limit_in_bytes")
    return int(limit) if limit.isdecimal() and int(limit) < _NO_LIMIT else math.inf


def memory_kills() -> int:
    """Number of processes that the kernel has killed because the container's memory was used up."""
    counts = _read("memory.events") or _read("memory/memory.oom_control")
    return next((int(line.split()[1]) for line in counts.splitlines() if line.startswith("oom_kill ")), 0)


def _read(name: str) -> str:
    """The content of a file; empty if there is none, as on the host and on other systems than Linux."""
    try:
        return (_ROOT / name).read_text(encoding="ascii").strip()
    except OSError:
        return ""
