"""Waits for a condition, as long as a busy machine needs."""

import time
from collections.abc import Callable

PATIENCE = 300
"""Most seconds to wait. A few are enough on an idle machine."""


def wait_until(holds: Callable[[], object], what: str) -> None:
    """Wait until `holds` returns something true. The test fails with `what` if it never does."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"not in {PATIENCE} s: {what}"
        time.sleep(0.05)
