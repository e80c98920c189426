"""Runs a stage from the command line."""

import sys
from collections.abc import Callable
from io import TextIOWrapper

from chestct.interrupts import INTERRUPTED
from pipeline.core.errors import StageError
from pipeline.core.params import Params


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
