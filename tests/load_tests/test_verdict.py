"""How the commands of load tests and benchmarks end."""

import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from chestct.interrupts import INTERRUPTED
from load_tests.verdict import BAD_INPUT, LoadError, command
from tests.server import ROOT

WORK = """
import contextlib, sys, time
from load_tests.verdict import command

@contextlib.contextmanager
def server():
    try:
        yield
    finally:
        print("ended", flush=True)

@command("load")
def main() -> int:
    with server():
        print("started", flush=True)
        time.sleep(300)
    return 0

sys.exit(main())
"""


def fail() -> int:
    raise LoadError("start it first")


def interrupt() -> int:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("main", "code", "line"),
    [(fail, BAD_INPUT, "load: start it first\n"), (interrupt, INTERRUPTED, "load: interrupted\n")],
)
def test_an_error_and_ctrl_c_end_in_one_line(
    main: Callable[[], int], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert command("load")(main)() == code
    assert capsys.readouterr() == ("", line)
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_ends_what_the_command_has_started() -> None:
    with subprocess.Popen([sys.executable, "-c", WORK], cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "started\n"
        running.send_signal(signal.SIGTERM)
        assert running.communicate(timeout=300) == ("ended\n", None)
    assert running.returncode == 143
