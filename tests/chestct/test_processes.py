"""A pool of new processes: work and its errors, Ctrl-C in a terminal, and the end of the process that owns it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chestct.processes import SpawnedPool, is_alive
from tests.server import ROOT
from tests.waiting import PATIENCE, wait_until

OWNER = """
import time
from pathlib import Path
from chestct.processes import SpawnedPool
from tests.chestct import test_processes

if __name__ == "__main__":
    with SpawnedPool(2, test_processes.add_line, Path({file!r})) as pool:
        turns = [pool.submit(time.sleep, 600) for _ in range(2)]
        print("started", flush=True)
        turns[0].result()
"""
"""A program whose two processes write a line each, and then sleep."""


def add_line(file: Path) -> None:
    with file.open("a") as lines:
        lines.write(f"{os.getpid()}\n")


def start(tmp_path: Path) -> subprocess.Popen[str]:
    """Start OWNER in a session of its own, whose terminal can send it Ctrl-C."""
    (tmp_path / "owner.py").write_text(OWNER.format(file=str(tmp_path / "lines")), encoding="utf-8")
    # A shell's job in the background ignores SIGINT, and so would its child.
    command = ["env", "--default-signal=INT", sys.executable, str(tmp_path / "owner.py")]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def processes(tmp_path: Path) -> list[int]:
    lines = tmp_path / "lines"
    wait_until(lambda: lines.exists() and lines.read_text().count("\n") == 2, "both processes are prepared")
    return [int(line) for line in lines.read_text().split()]


def test_each_process_is_prepared_once_and_returns_results_and_errors(tmp_path: Path) -> None:
    with SpawnedPool(1, add_line, tmp_path / "lines") as pool:
        assert pool.submit(divmod, 7, 3).result() == (2, 1)
        with pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 7, 0).result()
    assert (tmp_path / "lines").read_text().count("\n") == 1


def test_an_error_in_the_block_ends_work_that_nobody_waits_for() -> None:
    with pytest.raises(LookupError), SpawnedPool(1) as pool:  # noqa: PT012 # the work must have begun
        pool.submit(int).result()
        pool.submit(time.sleep, 600)
        raise LookupError
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("passed", [0, 0.1, 0.3, 1])
def test_ctrl_c_reaches_the_owner_alone_at_any_time_of_its_processes_start(tmp_path: Path, passed: float) -> None:
    with start(tmp_path) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "started\n"
        time.sleep(passed)
        os.killpg(owner.pid, signal.SIGINT)
        _, errors = owner.communicate(timeout=300)
    assert owner.returncode == -signal.SIGINT
    assert errors.count("Traceback") == 1, errors  # the owner's own
    assert "KeyboardInterrupt" in errors.splitlines()[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' /proc")
def test_a_process_can_offer_itself_to_a_kernel_that_needs_memory() -> None:
    score = "/proc/self/oom_score_adj"
    code = f"from chestct.processes import die_first; die_first(); die_first(); print(open({score!r}).read())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) == min(1000, int(Path(score).read_text()) + 1000)


INTERRUPTED = """
import os, signal
from chestct.processes import SpawnedPool

class Interrupting:
    def __reduce__(self):  # while multiprocessing writes it to a new process
        os.kill(os.getpid(), signal.SIGINT)
        return int, ()

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
    with SpawnedPool(1, str, Interrupting()) as pool:
        try:
            pool.submit(int)
        except KeyboardInterrupt:
            print("interrupted", pool.submit(int, "7").result())
"""
"""A program that sends Ctrl-C to itself. In the tests' own process, a signal that comes late would end them."""


def test_ctrl_c_while_a_process_is_started_waits_until_it_is(tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text(INTERRUPTED, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "interrupted.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted 7\n"), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' signal at a parent's death")
def test_the_processes_end_with_their_owner(tmp_path: Path) -> None:
    with start(tmp_path) as owner:
        both = processes(tmp_path)
        assert all(is_alive(one) for one in both)
        owner.kill()
        owner.communicate(timeout=300)
    wait_until(lambda: not any(Path(f"/proc/{one}").exists() for one in both), "both have ended")
