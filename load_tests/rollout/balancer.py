"""HAProxy in front of the replicas. It asks each one whether it is ready, as often as the kubelet does."""

import asyncio
import contextlib
import csv
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from image.pod import Probe
from load_tests.verdict import LoadError

BACKENDS: Final = ("http", "grpc")
START_SECONDS: Final = 10


class Ports(NamedTuple):
    """Loopback ports of one replica, or of the balancer."""

    http: int
    grpc: int


def configuration(folder: Path, front: Ports, slots: Sequence[Ports], probe: Probe) -> str:
    """Return HAProxy's configuration. Each slot is the place of one replica, and is out at first.

    A request is sent to another replica only if its connection was refused, so none is computed twice.
    """
    lines = [
        "global",
        f"  stats socket {folder}/haproxy.sock mode 600 level admin",
        "defaults",
        "  mode http",
        "  timeout connect 1s",
        "  timeout client 75s",
        "  timeout server 75s",
        f"  timeout check {probe.timeout}s",
        "  retries 3",
        "  option redispatch 1",
        "  default-server disabled on-marked-down shutdown-sessions",
        "frontend http",
        f"  bind 127.0.0.1:{front.http}",
        "  default_backend http",
        "frontend grpc",
        f"  bind 127.0.0.1:{front.grpc} proto h2",
        "  default_backend grpc",
        "backend http",
        "  option httpchk GET /readyz",
    ]
    check = f"check inter {probe.period}s fall {probe.failures}"
    lines += [f"  server {slot} 127.0.0.1:{ports.http} {check}" for slot, ports in enumerate(slots)]
    lines += ["backend grpc"]
    lines += [f"  server {slot} 127.0.0.1:{ports.grpc} proto h2 track http/{slot}" for slot, ports in enumerate(slots)]
    return "\n".join(lines) + "\n"


class Balancer:
    """A running HAProxy, told by its socket which slots are in."""

    def __init__(self, socket: Path, process: subprocess.Popen[bytes]) -> None:
        self.process: Final = process
        self._socket = socket

    async def take_in(self, slot: int) -> None:
        """Send requests to a replica that is ready."""
        await self._set(slot, "state ready")

    async def drain(self, slot: int) -> None:
        """Send no new requests to the slot. The ones under way go on."""
        await self._set(slot, "state drain")

    async def take_out(self, slot: int) -> None:
        """Close the connections to a replica that has ended."""
        await self._set(slot, "state maint")

    async def unanswered(self, slot: int) -> int:
        """Return how many requests the slot has received in all whose answer never came, or came in part."""
        rows = [row for row in await self._rows() if row["svname"] == str(slot)]
        return sum(int(row["eresp"]) + int(row["srv_abrt"]) for row in rows)

    async def retried(self) -> int:
        """Return how many times a request was sent again because its connection was refused."""
        rows = [row for row in await self._rows() if row["svname"] == "BACKEND"]
        return sum(int(row["wretr"]) + int(row["wredis"]) for row in rows)

    async def _set(self, slot: int, what: str) -> None:
        for backend in BACKENDS:
            if answer := (await self._ask(f"set server {backend}/{slot} {what}")).strip():
                raise LoadError(f"HAProxy: {answer}")

    async def _rows(self) -> list[dict[str, str]]:
        rows = csv.DictReader((await self._ask("show stat")).removeprefix("# ").strip().splitlines())
        return [row for row in rows if row["pxname"] in BACKENDS and row["svname"] != "FRONTEND"]

    async def _ask(self, command: str) -> str:
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket)
        except OSError as error:
            raise LoadError(f"HAProxy does not answer on {self._socket}: {error}") from error
        writer.write(f"{command}\n".encode())
        answer = await reader.read()
        writer.close()
        return answer.decode()


@contextlib.contextmanager
def balance(folder: Path, front: Ports, slots: Sequence[Ports], probe: Probe) -> Iterator[Balancer]:
    """Run HAProxy until the end of the block. Raises LoadError if it is not installed or does not start."""
    file = folder / "haproxy.cfg"
    file.write_text(configuration(folder, front, slots, probe), encoding="utf-8")
    program = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        raise LoadError("haproxy is needed (Debian: apt-get install haproxy)")
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([program, "-db", "-f", file], stdout=log, stderr=subprocess.STDOUT)
    try:
        asyncio.run(_wait_for(folder / "haproxy.sock", process))
        yield Balancer(folder / "haproxy.sock", process)
    finally:
        process.terminate()
        process.wait()


async def _wait_for(socket: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(START_SECONDS * 20):
        if socket.exists():
            return
        if process.poll() is not None:
            break
        await asyncio.sleep(0.05)
    raise LoadError(f"HAProxy has not started; {socket.parent / 'haproxy.log'} says why")
