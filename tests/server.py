"""The real service in processes of its own, on free ports of loopback and a model store of its own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import httpx

from chestct.store import CARD
from tests.graphs import tiny_model

ROOT = Path(__file__).parents[1]
READY_SECONDS = 60
STOP_SECONDS = 30


class Server(NamedTuple):
    url: str
    grpc: str
    """host:port."""
    tag: str
    """The model that was imported."""
    process: subprocess.Popen[bytes]
    """BentoML's supervisor."""
    log: Path


def environment(home: Path, **settings: str) -> dict[str, str]:
    """This process's, with a BentoML home of its own and only these settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CHESTCT_", "BENTOML_"))}
    return {**inherited, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", **settings}


def import_tiny_model(home: Path, data_source: Literal["local", "synthetic"] = "local", run_id: str = "5eed") -> str:
    """Put the tiny model into the store of this home; its tag. Another `run_id` makes it another model."""
    folder = home.with_name(f"{home.name}-model")
    card = tiny_model(folder, data_source=data_source)
    card.model_copy(update={"lineage": card.lineage.model_copy(update={"run_id": run_id})}).write(folder / CARD)
    code = "import sys, pathlib, chestct.store as store; print(store.import_model(pathlib.Path(sys.argv[1])))"
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment(home), check=True, capture_output=True, timeout=60)
    return done.stdout.decode().split()[-1]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def serve(home: Path, tag: str, *, what: str = ".", cwd: Path = ROOT, **settings: str) -> Iterator[Server]:
    """`bentoml serve WHAT` in `cwd`, ready to answer; ended with all its workers."""
    http, grpc = free_ports(2)
    log = home.with_name(f"{home.name}-{http}.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bentoml", "serve", what, "--host", "127.0.0.1", "--port", str(http)],
            cwd=cwd,
            env=environment(home, CHESTCT_GRPC_PORT=str(grpc), **settings),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{http}"
        _wait_until_ready(process, url, log)
        yield Server(url, f"127.0.0.1:{grpc}", tag, process, log)
    finally:
        _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", timeout=1).is_success:
                return
        time.sleep(0.05)
    raise AssertionError(f"the server is not ready:\n{log.read_text(errors='replace')[-4000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    for stop in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, stop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
            return
