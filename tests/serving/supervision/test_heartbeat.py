"""A worker beats while it is alive, and dies with its supervisor."""

import asyncio
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from serving.supervision import heartbeat
from serving.supervision.heartbeat import Heartbeat
from serving.worker_states import WorkerStates
from tests.server import ROOT

WORKER = """
import time
from serving.supervision import heartbeat
heartbeat.die_with_supervisor()
print("here", flush=True)
time.sleep(99)
"""
SUPERVISOR = """
import os, subprocess, sys, time
environment = {**os.environ, "_CHESTCT_SUPERVISOR": sys.argv[2] or str(os.getpid())}
worker = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=environment, stdout=subprocess.PIPE)
print(worker.pid, worker.stdout.readline().decode().strip(), flush=True)
time.sleep(99)
"""


def beats(busy_since: list[float], states: WorkerStates, turns: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The beat after each of these turns."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.02)
    seen = []

    async def main() -> None:
        Heartbeat(states, lambda: busy_since[0]).start()
        for _ in range(turns):
            await asyncio.sleep(0.1)
            seen.append(states.worker_beats[os.getpid()])

    asyncio.run(main())
    return seen


@pytest.fixture
def states(tmp_path: Path) -> WorkerStates:
    states = WorkerStates(2)
    states.join(tmp_path / "states", 1)
    return states


def test_it_beats_while_the_loop_turns(states: WorkerStates, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = beats([math.inf], states, 3, monkeypatch)
    assert seen[0] < seen[1] < seen[2]


def test_it_stands_still_while_the_engine_is_at_one_batch(
    states: WorkerStates, monkeypatch: pytest.MonkeyPatch
) -> None:
    since = time.monotonic()
    assert beats([since], states, 3, monkeypatch) == [since] * 3


def test_the_place_of_a_worker_tells_the_next_one_that_it_replaces_somebody(tmp_path: Path) -> None:
    assert not WorkerStates(2).join(tmp_path / "states", 1)
    assert not WorkerStates(2).join(tmp_path / "states", 2)
    assert WorkerStates(2).join(tmp_path / "states", 1)


def test_it_notices_a_supervisor_that_shows_nothing(states: WorkerStates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(heartbeat, "SUPERVISOR_SECONDS", 0.3)

    async def main() -> None:
        beating = Heartbeat(states, lambda: math.inf)
        beating.start()
        for beat in range(20):
            states.supervisor_beat = beat + 1.0
            await asyncio.sleep(0.05)
        assert beating.supervisor_alive
        deadline = time.monotonic() + 300
        while beating.supervisor_alive and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        assert not beating.supervisor_alive

    asyncio.run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, whose kernel tells a process of its parent's death")
@pytest.mark.parametrize("dead", [False, True], ids=["dies later", "is dead before the worker asks"])
def test_a_worker_ends_with_its_supervisor(dead: bool) -> None:
    claimed = "1" if dead else ""
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, WORKER, claimed], cwd=ROOT, stdout=subprocess.PIPE
    ) as supervisor:
        assert supervisor.stdout is not None
        pid, _, said = supervisor.stdout.readline().decode().strip().partition(" ")
        assert said == ("" if dead else "here")
        worker = psutil.Process(int(pid)) if psutil.pid_exists(int(pid)) else None
        supervisor.kill()
    if worker:
        worker.wait(300)
