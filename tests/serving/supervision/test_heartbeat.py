"""A worker beats while it is alive, and dies with its supervisor."""

import asyncio
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
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

OTHER = """
import pathlib, sys, time
from serving.worker_states import WorkerStates
states = WorkerStates(2)
states.join(pathlib.Path(sys.argv[1]), 2)
while True:
    states.beat(time.monotonic())
    time.sleep(0.01)
"""


async def ignore(all_beat: bool) -> None:
    """Do nothing about a silent worker."""


def beats(busy_since: list[float], states: WorkerStates, turns: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The beat after each of these turns."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.02)
    seen = []

    async def main() -> None:
        Heartbeat(states, lambda: busy_since[0], 600, ignore).start()
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
        beating = Heartbeat(states, lambda: math.inf, 600, ignore)
        beating.start()
        for beat in range(20):
            states.supervisor_beat = beat + 1.0
            await asyncio.sleep(0.05)
        assert beating.alive
        deadline = time.monotonic() + 300
        while beating.alive and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        assert not beating.alive

    asyncio.run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="needs a signal that stops a process")
def test_it_notices_a_worker_that_is_frozen_until_it_beats_again(
    states: WorkerStates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(heartbeat, "_LEAST_SILENCE", 1)
    changes: list[bool] = []

    async def note(all_beat: bool) -> None:
        changes.append(all_beat)

    async def until(holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not holds() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    async def main(other: psutil.Process) -> None:
        beating = Heartbeat(states, lambda: math.inf, 3, note)
        beating.start()
        await until(lambda: len(states.worker_beats) == 2)
        await asyncio.sleep(0.2)
        assert changes == []
        other.suspend()
        await until(lambda: changes == [False])
        assert beating.alive
        await until(lambda: not beating.alive)
        other.resume()
        await until(lambda: changes == [False, True])
        assert beating.alive
        other.suspend()
        await until(lambda: changes == [False, True, False])
        other.kill()
        other.wait(300)
        await until(lambda: len(changes) == 4)
        assert changes == [False, True, False, True], "a dead one takes no calls"

    with subprocess.Popen([sys.executable, "-c", OTHER, str(tmp_path / "states")], cwd=ROOT) as other:
        try:
            asyncio.run(main(psutil.Process(other.pid)))
        finally:
            other.kill()


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
