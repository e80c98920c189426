"""What workers see of each other in shared memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from serving.worker_states import WorkerStates
from tests.server import ROOT

WORKER = """
import sys, pathlib
from serving.worker_states import WorkerStates
states = WorkerStates(3)
states.join(pathlib.Path(sys.argv[1]), 4)
states.beat(8.0)
states.set_idle(True)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "states"


def run_worker(file: Path) -> None:
    """Let worker 4 join, beat, call its engine idle, and end."""
    subprocess.run([sys.executable, "-c", WORKER, str(file)], cwd=ROOT, timeout=300, check=True)


def test_a_replacement_worker_starts_without_a_beat_and_not_idle(file: Path) -> None:
    others = WorkerStates(3)
    others.open(file)
    run_worker(file)
    assert list(others.worker_beats.values()) == [8.0]
    replacement = WorkerStates(3)
    assert replacement.join(file, 4)
    assert others.worker_beats == {}
    assert others.find_idle_worker() is None


def test_the_others_find_an_idle_worker_while_it_lives(file: Path) -> None:
    states = [WorkerStates(3) for _ in range(3)]
    for worker, state in enumerate(states, 1):
        state.join(file, worker)
    assert [state.find_idle_worker() for state in states] == [None, None, None]
    states[1].set_idle(True)
    assert [state.find_idle_worker() for state in states] == [1, None, 1]
    states[0].set_idle(True)
    assert [state.find_idle_worker() for state in states] == [1, 0, 0]
    assert states[2].find_idle_worker({0}) == 1
    assert states[2].find_idle_worker({0, 1}) is None
    states[1].set_idle(False)
    run_worker(file)
    assert states[0].find_idle_worker() is None
    states[0].join(file, 1)
    assert states[2].find_idle_worker() is None


def test_a_worker_knows_whether_all_others_are_idle_while_the_dead_ones_do_not_count(file: Path) -> None:
    states = [WorkerStates(3) for _ in range(3)]
    for worker, state in enumerate(states, 1):
        state.join(file, worker)
    assert [state.others_idle() for state in states] == [False, False, False]
    states[0].set_idle(True)
    states[1].set_idle(True)
    assert [state.others_idle() for state in states] == [False, False, True]
    states[2].set_idle(True)
    assert [state.others_idle() for state in states] == [True, True, True]
    run_worker(file)
    states[0].set_idle(False)
    assert [state.others_idle() for state in states] == [True, False, False]


def test_before_it_joins_a_worker_has_no_others() -> None:
    assert WorkerStates(3).others_idle()


def test_the_workers_see_why_the_supervisor_replaced_some(file: Path) -> None:
    supervisor, worker = WorkerStates(3), WorkerStates(3)
    supervisor.open(file)
    worker.join(file, 6)
    worker.beat(9.0)
    assert sum(worker.replaced.values()) == 0
    supervisor.count_replaced("hung")
    supervisor.count_replaced("exited")
    supervisor.count_replaced("exited")
    seen = {cause: count for cause, count in worker.replaced.items() if count}
    assert seen == {"hung": 1, "exited": 2}
    assert list(supervisor.worker_beats.values()) == [9.0]


def test_the_connections_of_workers_that_accept_some_are_counted(file: Path) -> None:
    states = [WorkerStates(3) for _ in range(3)]
    assert states[0].count_connections() == (0, 1)
    for worker, state in enumerate(states, 1):
        state.join(file, worker)
    assert states[0].count_connections() == (0, 1)
    states[1].publish_connections(0)
    assert states[0].count_connections() == (0, 2)
    states[0].publish_connections(7)
    states[2].publish_connections(2)
    assert [state.count_connections() for state in states] == [(9, 3)] * 3
    states[0].publish_connections(None)
    assert states[1].count_connections() == (2, 2)
    run_worker(file)
    assert states[1].count_connections() == (2, 2)
