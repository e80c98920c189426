"""Starts the real service in its own processes, on free loopback ports. The load tests, benchmarks and tests use it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from load_tests.verdict import LoadError

ROOT: Final = Path(__file__).parents[1]
OUTPUT: Final = ROOT / "build" / "load"
READY_SECONDS: Final = 60
STOP_SECONDS: Final = 60


class Server(NamedTuple):
    url: str
    grpc: str
    """host:port."""
    process: subprocess.Popen[bytes]
    """BentoML's supervisor."""
    log: Path
    """Standard output and error."""

    def memory(self) -> int:
        """Bytes that all its processes take, what they share counted once."""
        return self._sum(lambda process: process.memory_full_info().pss)

    def written_memory(self) -> int:
        """Of these the bytes that its processes have written, which is what a leak lets grow.

        What `memory` counts of a library grows also if another program that uses the library ends.
        """
        return self._sum(lambda process: sum(part.private_dirty + part.shared_dirty for part in process.memory_maps()))

    def _sum(self, measure: Callable[[psutil.Process], int]) -> int:
        supervisor = psutil.Process(self.process.pid)
        total = 0
        for process in (supervisor, *supervisor.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += measure(process)
        return total


def served_commit() -> str:
    """The name that git gives to the code that is served, or `not in git`."""
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "not in git"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
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
) -> Iterator[Server]:
    """`bentoml serve WHAT` in `cwd`, ready to answer; ended with all its workers. Raises LoadError.

    `ports`: that of HTTP and that of gRPC, else free ones.
    """
    http, grpc = ports or free_ports(2)
    settings = {"CHESTCT_GRPC_PORT": str(grpc), "CHESTCT_DRAIN_SECONDS": str(drain_seconds)}
    command = ["bentoml", "serve", what, "--host", "127.0.0.1", "--port", str(http), "--timeout-keep-alive", "75"]
    with start(command, http, f"127.0.0.1:{grpc}", cwd=cwd, environment={**environment, **settings}, log=log) as server:
        yield server


@contextlib.contextmanager
def start(
    module: Sequence[str], http: int, grpc: str = "", *, cwd: Path = ROOT, environment: Mapping[str, str], log: Path
) -> Iterator[Server]:
    """`python -m MODULE ...` in `cwd`, once it answers /readyz on the port `http`; ended with all its processes.

    Raises LoadError.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
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
        with contextlib.suppress(urllib.error.URLError, OSError):
            if urllib.request.urlopen(f"{server.url}/readyz", timeout=1).status == 200:
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
