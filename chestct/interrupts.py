"""Ends a command in one line if Ctrl-C comes while it still imports, before its `main` can catch it.

`python -m chestct.interrupts MODULE ARGUMENTS` runs a command of a library in the same way.
"""

import os
import runpy
import sys
from types import TracebackType
from typing import Final

INTERRUPTED: Final = 130
"""What a shell reports for a program that Ctrl-C has ended."""
_COMMAND: Final = "chestct"
"""Name of the script that runs archive.command."""


def report_in_one_line() -> None:
    """Report an uncaught Ctrl-C in one line, if this process is a command of the package that calls this.

    That is `python -m` on one of its modules, or `chestct`. Call it in the package's __init__.py, which runs before the
    module. A process that imports the package later keeps its own ways.
    """
    program = sys.argv[0] if sys.argv else ""
    if program == "-m" or program.rpartition("/")[2] == _COMMAND:  # -m until Python has found the module's path
        sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    # Python 3.11 wraps what comes while a class gets its attributes' names.
    if not isinstance(error.__cause__ if kind is RuntimeError else error, KeyboardInterrupt):
        sys.__excepthook__(kind, error, at)
        return
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)  # libraries that are imported by half may crash or wait at a usual exit


if __name__ == "__main__":
    sys.excepthook = _report
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
