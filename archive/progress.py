"""Shows how far the work is: the files that are done, the rate and the time left."""

import os
import time
from typing import Final, TextIO

_SECONDS_ON_A_TERMINAL: Final = 0.5
_SECONDS_IN_A_LOG: Final = 30


def tell(text: str, stream: TextIO) -> None:
    """Write to standard error. If it takes no more, as on a full disk, the rest is not told, and the work goes on."""
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        discard(stream)


def discard(stream: TextIO) -> None:
    """Let the stream forget what it could not write, and whatever follows. Otherwise Python would try it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Progress:
    """Writes a line now and then: over the last one on a terminal, below it in a log."""

    def __init__(self, total: int, done: int, stream: TextIO) -> None:
        """`done` of the `total` files were done before."""
        self._total, self._before, self._done, self._stream = total, done, done, stream
        self._started = self._shown = time.monotonic()
        self._terminal = stream.isatty()
        self._width = 0

    @property
    def done(self) -> int:
        return self._done

    def add(self, files: int) -> None:
        self._done += files

    def show(self, *, last: bool = False) -> None:
        """Write a line if it is time for one, or if it is the last."""
        now = time.monotonic()
        if not last and now - self._shown < (_SECONDS_ON_A_TERMINAL if self._terminal else _SECONDS_IN_A_LOG):
            return
        self._shown = now
        line = self.describe(now - self._started)
        if self._terminal:
            tell(f"\r{line.ljust(self._width)}" + ("\n" if last else ""), self._stream)
            self._width = len(line)
        else:
            tell(f"{line}\n", self._stream)

    def describe(self, seconds: float) -> str:
        """The line after so many seconds."""
        rate = (self._done - self._before) / seconds if seconds > 0 else 0
        line = f"{self._done:,} of {self._total:,} files, {rate:,.1f} a second"
        left = (self._total - self._done) / rate if rate else None
        return line if left is None else f"{line}, {_in_words(left)} left"


def _in_words(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
