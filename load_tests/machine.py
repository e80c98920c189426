"""Describes this machine for the pages that figures are written to."""

import platform
import re
from pathlib import Path


def cpu_name() -> str:
    """The name of the CPU, or of its architecture if Linux gives none."""
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else platform.machine()
