"""Waits for what happens in another process."""

from collections.abc import Callable

from tests.waiting import wait_until


def until(happened: Callable[[], object]) -> None:
    """Return when `happened` is true, as long as a busy machine needs."""
    wait_until(happened, "what the test waits for")
