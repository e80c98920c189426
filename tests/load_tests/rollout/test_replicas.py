"""Replicas are started, stopped, killed and frozen as pods are, with a tool that only records what it is told."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from image.pod import Pod
from load_tests.rollout import replicas
from load_tests.verdict import LoadError
from tests.load_tests.rollout.backends import backends

TOOL = """#!{python}
import json, sys
with open({calls!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
print({{"inspect": {pid}, "wait": {code}}}.get(sys.argv[1], ""))
"""


class Record:
    """A balancer that records what it is told, beside what the tool is told."""

    def __init__(self, calls: Path) -> None:
        self._calls = calls
        self.asked = 0
        for name in ("take_in", "drain", "take_out"):
            setattr(self, name, self._recorder(name))

    def _recorder(self, name: str) -> Callable[[int], "asyncio.Future[None]"]:
        async def record(slot: int) -> None:
            with self._calls.open("a", encoding="utf-8") as file:
                file.write(json.dumps([f"balancer {name}", str(slot)]) + "\n")

        return record  # type: ignore[return-value]

    async def unanswered(self, slot: int) -> int:
        self.asked += 1
        return 5 if self.asked == 1 else 12


@pytest.fixture
def sleeper() -> Iterator[psutil.Process]:
    process = subprocess.Popen(["sleep", "600"])
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def made(tmp_path: Path, pid: int = 0, code: int = 0) -> tuple[replicas.Replicas, Path]:
    calls, tool = tmp_path / "calls", tmp_path / "tool"
    tool.write_text(TOOL.format(python=sys.executable, calls=str(calls), pid=pid, code=code), encoding="utf-8")
    tool.chmod(0o755)
    container = {
        "resources": {"limits": {"cpu": "2", "memory": "64Mi"}},
        "securityContext": {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": []},
        },
        "volumeMounts": [],
        "env": [],
        "startupProbe": {"periodSeconds": 0.01, "failureThreshold": 2},
        "livenessProbe": {"periodSeconds": 0.01, "failureThreshold": 2},
        "lifecycle": {"preStop": {"sleep": {"seconds": 0}}},
    }
    spec = {
        "containers": [container],
        "volumes": [],
        "terminationGracePeriodSeconds": 45,
        "securityContext": {"runAsUser": 1, "runAsGroup": 2},
    }
    places = replicas.slots(2)
    return replicas.Replicas(str(tool), Pod(spec, {}), places, Record(calls), tmp_path), calls  # type: ignore[arg-type]


def said(calls: Path) -> list[str]:
    """Return the first and the last word of each call, in order."""
    found = [json.loads(line) for line in calls.read_text(encoding="utf-8").splitlines()]
    return [f"{words[0]} {words[-1]}" for words in found]


def test_a_replica_starts_is_taken_in_and_stops_as_a_pod_does(tmp_path: Path) -> None:
    fleet, calls = made(tmp_path)
    slot = fleet.places[1]

    async def live() -> None:
        async with backends([place.ports for place in fleet.places]):
            await fleet.start(slot, "image:1")
            assert fleet.running == [slot]
            await fleet.stop(slot)
            await fleet.remove_all()

    asyncio.run(live())
    assert said(calls) == [
        "run image:1",
        "balancer take_in 1",
        "balancer drain 1",
        f"kill {slot.name}",
        f"wait {slot.name}",
        "balancer take_out 1",
        f"rm {slot.name}",
    ]
    words = json.loads(calls.read_text(encoding="utf-8").splitlines()[0])
    assert {"CHESTCT_WORKERS=1", f"BENTOML_PORT={slot.ports.http}", f"CHESTCT_GRPC_PORT={slot.ports.grpc}"} <= set(
        words
    )
    assert fleet.running == []


def test_a_replica_that_ends_with_an_error_gives_no_verdict(tmp_path: Path) -> None:
    fleet, _ = made(tmp_path, code=137)

    async def live() -> None:
        async with backends([place.ports for place in fleet.places]):
            await fleet.start(fleet.places[0], "image:1")
            await fleet.stop(fleet.places[0])

    with pytest.raises(LoadError, match="ended with the code 137, expected 0"):
        asyncio.run(live())


def test_a_replica_that_is_never_ready_gives_no_verdict(tmp_path: Path) -> None:
    fleet, _ = made(tmp_path)
    with pytest.raises(LoadError, match="is not ready"):
        asyncio.run(fleet.start(fleet.places[0], "image:1"))


def test_a_killed_replica_comes_back_and_what_it_had_under_way_is_counted(
    tmp_path: Path, sleeper: psutil.Process
) -> None:
    fleet, calls = made(tmp_path, pid=sleeper.pid)
    slot = fleet.places[0]

    async def live() -> int:
        async with backends([place.ports for place in fleet.places]):
            return await fleet.kill(slot)

    assert asyncio.run(live()) == 7
    assert said(calls) == [
        f"inspect {slot.name}",
        f"wait {slot.name}",
        "balancer take_out 0",
        f"start {slot.name}",
        "balancer take_in 0",
    ]
    assert not sleeper.is_running() or sleeper.status() == psutil.STATUS_ZOMBIE


def test_a_frozen_replica_stops_and_is_restarted_after_the_probes_failures(
    tmp_path: Path, sleeper: psutil.Process
) -> None:
    fleet, calls = made(tmp_path, pid=sleeper.pid)
    slot = fleet.places[0]

    async def live() -> None:
        await fleet.freeze(slot)
        while sleeper.status() != psutil.STATUS_STOPPED:
            await asyncio.sleep(0.01)
        with pytest.raises(LoadError, match="is not ready"):  # nothing listens, so every probe fails
            await fleet.restart_if_dead(slot)

    asyncio.run(live())
    assert f"start {slot.name}" in said(calls)
