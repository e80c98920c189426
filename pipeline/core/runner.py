"""What every stage's `main` does: read params.yaml, run, and end a known failure with one line and its exit code."""

import sys
from collections.abc import Callable
from io import TextIOWrapper

from pipeline.core.errors import StageError
from pipeline.core.params import Params


def run(stage: Callable[[Params], None]) -> None:
    """Run `stage` with params.yaml of the current directory; a StageError becomes one line and its exit code."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may not fit the terminal
    try:
        stage(Params.read())
    except StageError as error:
        print(f"{stage.__name__}: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
