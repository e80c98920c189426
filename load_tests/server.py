"""Starts the real service in its own processes, on free loopback ports. The load tests, benchmarks and tests use it."""

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from load_tests.verdict import LoadError

ROOT: Final = Path(__file__).parents[1]
OUTPUT: Final = ROOT / "build" / "load"
READY_SECONDS: Final = 300
"""Most seconds until a server is ready. A few are enough on an idle machine."""
STOP_SECONDS: Final = 60


class Server(NamedTuple):
    """A running service."""

    url: str
    grpc: str
    """host:port."""
    process: subprocess.Popen[bytes]
    """BentoML's supervisor."""
    log: Path
    """Standard output and error."""

    def workers(self) -> dict[int, psutil.Process]:
        """Return the worker processes by process id."""
        return {process.pid: process for process in self.processes() if "--worker-id" in _command_line(process)}

    def readers(self) -> list[psutil.Process]:
        """Return the guarded processes, which decode DICOM files and costly pictures for the workers."""
        return [child for worker in self.workers().values() for child in worker.children()]

    def processes(self) -> list[psutil.Process]:
        """Return the supervisor and all processes below it."""
        supervisor = psutil.Process(self.process.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def memory(self) -> int:
        """Return the bytes that all processes occupy. Shared pages count once."""
        return self._sum(lambda process: process.memory_full_info().pss)

    def written_memory(self) -> int:
        """Return the bytes that the processes have written. A leak makes them grow.

        `memory` is no measure of a leak: its share of a library also grows when another user of the library ends.
        """
        return self._sum(lambda process: sum(part.private_dirty + part.shared_dirty for part in process.memory_maps()))

    def _sum(self, measure: Callable[[psutil.Process], int]) -> int:
        total = 0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += measure(process)
        return total


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def served_commit() -> str:
    """The name that git gives to the code that is served, or `not in git`."""
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "not in git"


def free_ports(count: int) -> list[int]:
    """Return ports on which nothing listens. Until this process ends, the kernel gives them to nobody who asks for any.

    A server that asks for one of them by its number gets it, if it binds with SO_REUSEADDR, as nearly all do.
    """
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        atexit.register(one.close)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", 0))
    return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def serve(
    what: str = ".",
    *,
    cwd: Path = ROOT,
    environment: Mapping[str, str] = os.environ,
    log: Path = OUTPUT / "server.log",
    drain_seconds: float = 0,
    ports: Sequence[int] = (),
    python: Sequence[str] = (sys.executable,),
) -> Iterator[Server]:
    """Run `bentoml serve WHAT` in `cwd`. Yields when it is ready, and ends it with all its workers.

    `ports`: of HTTP and of gRPC; default two free ones. `python`: the command of the interpreter. Raises LoadError.
    """
    http, grpc = ports or free_ports(2)
    settings = {"CHESTCT_GRPC_PORT": str(grpc), "CHESTCT_DRAIN_SECONDS": str(drain_seconds)}
    command = ["bentoml", "serve", what, "--host", "127.0.0.1", "--port", str(http), "--timeout-keep-alive", "75"]
    variables = {**environment, **settings}
    with start(command, http, f"127.0.0.1:{grpc}", cwd=cwd, environment=variables, log=log, python=python) as server:
        yield server


@contextlib.contextmanager
def start(
    module: Sequence[str],
    http: int,
    grpc: str = "",
    *,
    cwd: Path = ROOT,
    environment: Mapping[str, str],
    log: Path,
    python: Sequence[str] = (sys.executable,),
) -> Iterator[Server]:
    """Run `python -m MODULE ...` in `cwd`. Yields when /readyz answers on the port `http`, and ends all its processes.

    `python`: the command of the interpreter. Raises LoadError.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*python, "-m", *module],
            cwd=cwd,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{http}", grpc, process, log)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        _stop(process)


def _wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        with contextlib.suppress(OSError):
            if urllib.request.urlopen(f"{server.url}/readyz", timeout=10).status == 200:
                return
        time.sleep(0.05)
    last = server.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    raise LoadError(f"the server is not ready; {server.log} ends with: {''.join(last)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    for stop in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, stop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
            return
