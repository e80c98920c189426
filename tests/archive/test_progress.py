"""The line that shows how far the work is, on a terminal and in a log."""

from io import StringIO

import pytest

from archive.progress import Progress


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("done", "seconds", "expected"),
    [
        (150, 10, "150 of 10,000 files, 5.0 a second, 33 min left"),
        (9_900, 100, "9,900 of 10,000 files, 98.0 a second, 1 s left"),
        (101, 10, "101 of 10,000 files, 0.1 a second, 27.5 h left"),
        (100, 10, "100 of 10,000 files, 0.0 a second"),
    ],
)
def test_it_says_rate_and_time_left_of_this_run(done: int, seconds: float, expected: str) -> None:
    progress = Progress(10_000, 100, StringIO())
    progress.add(done - 100)
    assert progress.describe(seconds) == expected


def test_a_terminal_has_one_line_and_a_log_few() -> None:
    terminal, log = Terminal(), StringIO()
    for stream in (terminal, log):
        progress = Progress(10, 0, stream)
        for _ in range(10):
            progress.add(1)
            progress.show()
        progress.show(last=True)
    assert terminal.getvalue().startswith("\r10 of 10 files")
    assert terminal.getvalue().count("\n") == log.getvalue().count("\n") == 1
