"""Containers of the image, started, stopped and restarted as the kubelet does it with pods."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from image.pod import Pod, Probe, run_options
from load_tests import wire
from load_tests.rollout.balancer import Balancer, Ports
from load_tests.server import free_ports
from load_tests.verdict import LoadError

SETTINGS: Final[Mapping[str, str]] = {"CHESTCT_WORKERS": "1"}
"""One worker each, because all replicas, HAProxy and the clients share this machine's cores."""
COMMAND_SECONDS: Final = 60
PREFIX: Final = "chestct-rollout"


class Slot(NamedTuple):
    """The place of one replica: its name and its ports."""

    number: int
    ports: Ports
    private: int

    @property
    def name(self) -> str:
        return f"{PREFIX}-{os.getpid()}-{self.number}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports.http}"


def slots(count: int) -> list[Slot]:
    ports = free_ports(3 * count)
    return [Slot(number, Ports(*ports[3 * number : 3 * number + 2]), ports[3 * number + 2]) for number in range(count)]


class Replicas:
    """The containers, by slot. Every method that changes one keeps the balancer informed."""

    def __init__(self, tool: str, pod: Pod, places: Sequence[Slot], balancer: Balancer, folder: Path) -> None:
        """`tool`: docker or podman. `folder` takes the volumes. The places share the cores of this machine equally."""
        self.places: Final = places
        self._tool = tool
        self._pod = pod
        self._balancer = balancer
        self._folder = folder
        limit = float(pod.container["resources"]["limits"]["cpu"])
        self._cores = min(limit, (os.cpu_count() or 1) / len(places))
        self.running: Final[list[Slot]] = []
        """Slots whose replica serves, the oldest first."""
        self._made: set[Slot] = set()

    async def start(self, slot: Slot, image: str) -> None:
        """Start a replica, wait until it is ready, and let the balancer send to it. Raises LoadError."""
        volumes = self._folder / slot.name
        shutil.rmtree(volumes, ignore_errors=True)
        volumes.mkdir()
        environment = {
            **SETTINGS,
            "BENTOML_PORT": slot.ports.http,
            "CHESTCT_GRPC_PORT": slot.ports.grpc,
            "CHESTCT_PRIVATE_PORT": slot.private,
        }
        words = [word for name, value in environment.items() for word in ("--env", f"{name}={value}")]
        options = [*run_options(self._pod, volumes), *words, "--cpus", f"{self._cores:g}"]
        self._made.add(slot)
        await self._do("run", "--detach", "--name", slot.name, "--network", "host", *options, image)
        await self._wait_until_ready(slot)
        self.running.append(slot)

    async def stop(self, slot: Slot) -> None:
        """Stop a replica as a cluster deletes a pod: no new requests, a pause, SIGTERM, the grace period.

        Raises LoadError if it ends by itself too late, or with an error.
        """
        self.running.remove(slot)
        await self._balancer.drain(slot.number)
        await asyncio.sleep(self._pod.pause_seconds)
        await self._do("kill", "--signal", "TERM", slot.name)
        code = await self._do("wait", slot.name, seconds=self._pod.grace_seconds - self._pod.pause_seconds)
        if code != "0":
            raise LoadError(f"{slot.name} ended with the code {code}, expected 0")
        await self._balancer.take_out(slot.number)
        await self._do("rm", slot.name)
        self._made.remove(slot)

    async def kill(self, slot: Slot) -> int:
        """Kill all processes of a replica and restart it as the kubelet does. Returns the requests it had under way.

        A killed process ends after some milliseconds. Requests that reach it in that time are under way, too.
        """
        main = await self._main(slot)
        earlier = await self._balancer.unanswered(slot.number)
        main.kill()
        await self._do("wait", slot.name)
        await self._balancer.take_out(slot.number)
        await self._do("start", slot.name)
        await self._wait_until_ready(slot)
        return await self._balancer.unanswered(slot.number) - earlier

    async def freeze(self, slot: Slot) -> None:
        """Stop all processes of a replica with SIGSTOP. Its ports still accept connections."""
        main = await self._main(slot)
        for process in (main, *main.children(recursive=True)):
            process.send_signal(signal.SIGSTOP)

    async def restart_if_dead(self, slot: Slot) -> None:
        """Ask /livez as the kubelet does. After so many failures in a row, kill the replica and restart it."""
        probe = self._pod.probe("livenessProbe")
        failures = 0
        while failures < probe.failures:
            await asyncio.sleep(probe.period)
            failures = 0 if await _succeeds(slot, "/livez", probe) else failures + 1
        await self.kill(slot)

    async def remove_all(self) -> None:
        await asyncio.gather(*(self._do("rm", "--force", slot.name) for slot in self._made))

    async def _wait_until_ready(self, slot: Slot) -> None:
        probe = self._pod.probe("startupProbe")
        for _ in range(probe.failures):
            if await _succeeds(slot, "/readyz", probe):
                await self._balancer.take_in(slot.number)
                return
            await asyncio.sleep(probe.period)
        raise LoadError(f"{slot.name} is not ready: {await self._do('logs', '--tail', '1', slot.name)}")

    async def _main(self, slot: Slot) -> psutil.Process:
        return psutil.Process(int(await self._do("inspect", "--format", "{{.State.Pid}}", slot.name)))

    async def _do(self, *words: str, seconds: float = COMMAND_SECONDS) -> str:
        return await asyncio.to_thread(run_tool, self._tool, *words, seconds=seconds)


def run_tool(tool: str, *words: str, seconds: float = COMMAND_SECONDS) -> str:
    """Run docker or podman and return what it prints. Raises LoadError."""
    try:
        done = subprocess.run([tool, *words], capture_output=True, text=True, timeout=seconds, check=False)
    except FileNotFoundError:
        raise LoadError("docker or podman is needed") from None
    except subprocess.TimeoutExpired:
        raise LoadError(f"`{tool} {words[0]} {words[-1]}` has not ended after {seconds:g} s") from None
    if done.returncode != 0:
        raise LoadError(f"`{tool} {words[0]} {words[-1]}`: {' '.join(done.stderr.split())}")
    return done.stdout.strip()


async def _succeeds(slot: Slot, path: str, probe: Probe) -> bool:
    """Whether the replica answers a probe in time."""
    try:
        async with asyncio.timeout(probe.timeout):
            return (await wire.exchange(slot.url, wire.get(path))).code == "200"
    except TimeoutError:
        return False
