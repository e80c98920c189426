"""Waits for what happens in another process."""

import time
from collections.abc import Callable


def until(happened: Callable[[], object], seconds: float = 60) -> None:
    """Return when `happened` is true. Fails after this many seconds, which a busy machine may need."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"nothing happened within {seconds} s"
        time.sleep(0.1)
