"""How a command ends: its exit code, PASS or FAIL, and one line for each error."""

import contextlib
import functools
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Final, ParamSpec

from chestct.interrupts import INTERRUPTED

BAD_INPUT: Final = 2
MISSED: Final = 3
TERMINATED: Final = 143
"""What a shell reports for a program that SIGTERM has ended."""

P = ParamSpec("P")


class LoadError(Exception):
    """No verdict is possible. The message says what to do."""


def command(
    name: str, *errors: type[Exception], interrupted: str = "interrupted"
) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Make a `main` report LoadError, `errors` and Ctrl-C in one line that begins with `name`.

    It then returns BAD_INPUT, or INTERRUPTED after Ctrl-C. SIGTERM ends it with TERMINATED and the servers that it has
    started. Call it in the main thread.
    """

    known = (LoadError, *errors)

    def decorate(main: Callable[P, int]) -> Callable[P, int]:
        @functools.wraps(main)
        def run(*args: P.args, **kwargs: P.kwargs) -> int:
            try:
                with _unwound_by_sigterm():
                    return main(*args, **kwargs)
            except known as error:
                print(f"{name}: {error}", file=sys.stderr)
                return BAD_INPUT
            except KeyboardInterrupt:
                print(f"{name}: {interrupted}", file=sys.stderr)
                return INTERRUPTED

        return run

    return decorate


@contextlib.contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def conclude(misses: Sequence[str], passed: str = "PASS") -> int:
    """Print each miss and the verdict. Returns the exit code: 0, or MISSED."""
    print(*(f"FAIL  {miss}" for miss in misses), "FAIL" if misses else passed, sep="\n")
    return MISSED if misses else 0
