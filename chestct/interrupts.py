"""Ends a command in one line if Ctrl-C comes while it still imports, before its `main` can catch it."""

import os
import sys
from types import TracebackType
from typing import Final

INTERRUPTED: Final = 130
"""What a shell reports for a program that Ctrl-C has ended."""


def report_in_one_line() -> None:
    """Report an uncaught Ctrl-C in one line, if this process runs `python -m` on the package that calls this.

    Call it in the package's __init__.py, which runs before the module. A process that imports the package later keeps
    its own ways.
    """
    if sys.argv[:1] == ["-m"]:  # Python puts the module's path there once it has found it
        sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, at)
        return
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)  # libraries that are imported by half may crash or wait at a usual exit
