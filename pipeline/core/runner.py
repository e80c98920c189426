"""Runs a stage from the command line."""

import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import Final

from pipeline.core.errors import StageError
from pipeline.core.params import Params

INTERRUPTED: Final = 130
"""What a shell reports for a program that Ctrl-C has ended."""


def run(stage: Callable[..., None], *arguments: object) -> None:
    """Run `stage` with params.yaml and `arguments`.

    On a StageError, print one line and exit with its code. On Ctrl-C, print one line and exit with INTERRUPTED.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the terminal may lack characters of a file name
    try:
        stage(Params.read(), *arguments)
    except StageError as error:
        print(f"{stage.__name__}: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print(f"\n{stage.__name__}: stopped", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
