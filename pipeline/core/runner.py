"""Runs a stage from the command line."""

import ctypes
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Final

from chestct.interrupts import INTERRUPTED
from pipeline.core.errors import StageError
from pipeline.core.params import Params

_TRIM_THRESHOLD: Final = -1
"""Numbers of glibc's mallopt(3)."""
_TOP_PAD: Final = -2
_MMAP_MAX: Final = -4


def run(stage: Callable[..., None], *arguments: object) -> None:
    """Run `stage` with params.yaml and `arguments`.

    On a StageError, print one line and exit with its code. On Ctrl-C, print one line and exit with INTERRUPTED. A stage
    that takes no arguments exits with 2 if the command line has any.
    """
    if not arguments and Path(sys.argv[0]).stem == stage.__name__:
        ArgumentParser(f"python -m pipeline.{stage.__name__}", description=stage.__doc__).parse_args()
    keep_freed_memory()
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


def keep_freed_memory() -> None:
    """Let glibc's allocator keep what is freed for the next tensor. Return at once elsewhere.

    Otherwise it gives tensors of 32 MiB and more back to the kernel, which clears the pages of the next one. That took
    half of the time of a training.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)  # never
        mallopt(_TOP_PAD, 256 << 20)  # grow in large steps
