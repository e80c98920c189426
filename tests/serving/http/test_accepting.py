"""Connections to a shared socket are spread evenly over real processes with uvicorn's server."""

import contextlib
import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from serving.worker_states import WorkerStates
from tests.certificates import write_certificate
from tests.server import ROOT
from tests.waiting import PATIENCE, wait_until

WORKER = """
import json, os, resource, socket, sys
import uvicorn
from pathlib import Path
from serving.http import accepting, connections
from serving.worker_states import WorkerStates

fd, number, file, options = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
accepting.PATIENCE = options.pop("patience", accepting.PATIENCE)
accepting.EXHAUSTED_PAUSE = 0.1

async def app(scope, receive, send):
    body = str(os.getpid()).encode()
    if scope["path"] == "/full":
        files = len(os.listdir("/proc/self/fd")) - 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (files + 1, 4096))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})

states = WorkerStates(2)
states.join(file, number)
accepting.install(states)
connections.install()
server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, ws="none", **options))
server.run(sockets=[socket.socket(fileno=fd)])
"""


class Workers(NamedTuple):
    port: int
    processes: list["subprocess.Popen[bytes]"]
    states: WorkerStates
    """As the first worker sees it."""

    def connect(self, tls: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
        if tls is None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=PATIENCE, context=tls)

    def stay_connected(self, count: int, kept: list[http.client.HTTPConnection]) -> Counter[int]:
        """Open connections one after another, and keep them. Returns how many each process has accepted."""
        accepted: Counter[int] = Counter()
        for _ in range(count):
            kept.append(self.connect())
            accepted[ask(kept[-1])] += 1
        return accepted


def ask(connection: http.client.HTTPConnection, path: str = "/") -> int:
    """The process id of who answers."""
    connection.request("GET", path)
    return int(connection.getresponse().read())


@contextlib.contextmanager
def started(folder: Path, count: int, **options: Any) -> Iterator[Workers]:
    """So many workers on one socket, all of which listen."""
    file = folder / "states"
    states = WorkerStates(2)
    states.open(file)
    with contextlib.ExitStack() as stack:
        shared = stack.enter_context(socket.socket())
        shared.bind(("127.0.0.1", 0))
        processes = []
        for number in range(1, count + 1):
            command = [sys.executable, "-c", WORKER, str(shared.fileno()), str(number), str(file), json.dumps(options)]
            worker = stack.enter_context(subprocess.Popen(command, cwd=ROOT, pass_fds=[shared.fileno()]))
            stack.callback(worker.kill)
            processes.append(worker)
        seen = WorkerStates(2)
        seen.open(file)
        seen.slot = 3  # a place that no worker has
        wait_until(lambda: seen.count_connections()[1] == count + 1, "all workers listen")
        yield Workers(shared.getsockname()[1], processes, states)


@pytest.fixture
def kept() -> Iterator[list[http.client.HTTPConnection]]:
    connections: list[http.client.HTTPConnection] = []
    yield connections
    for connection in connections:
        connection.close()


def test_each_of_two_workers_gets_half_of_the_connections(
    tmp_path: Path, kept: list[http.client.HTTPConnection]
) -> None:
    with started(tmp_path, 2, patience=PATIENCE) as workers:
        accepted = workers.stay_connected(16, kept)
        assert accepted == {worker.pid: 8 for worker in workers.processes}


def test_connections_that_come_at_once_do_not_all_go_to_one_worker(
    tmp_path: Path, kept: list[http.client.HTTPConnection]
) -> None:
    with started(tmp_path, 2, patience=PATIENCE) as workers:
        for worker in workers.processes:
            worker.send_signal(signal.SIGSTOP)
        for _ in range(32):
            kept.append(workers.connect())
            kept[-1].connect()
        for worker in workers.processes:
            worker.send_signal(signal.SIGCONT)
        accepted = Counter(ask(connection) for connection in kept)
        assert min(accepted.values()) >= 8
        assert accepted.total() == 32


def test_the_worker_with_fewer_connections_gets_the_next_ones(
    tmp_path: Path, kept: list[http.client.HTTPConnection]
) -> None:
    with started(tmp_path, 2, patience=PATIENCE) as workers:
        first = workers.processes[0].pid
        workers.stay_connected(8, kept)
        for connection in [one for one in kept if ask(one) == first]:
            connection.close()
            kept.remove(connection)
        wait_until(lambda: workers.states.count_connections()[0] == 4, "the first worker has seen the ends")
        assert workers.stay_connected(4, kept) == {first: 4}


def test_a_worker_that_hangs_keeps_no_connection_waiting(
    tmp_path: Path, kept: list[http.client.HTTPConnection]
) -> None:
    with started(tmp_path, 2) as workers:
        hung, well = workers.processes
        hung.send_signal(signal.SIGSTOP)
        assert workers.stay_connected(6, kept) == {well.pid: 6}
        hung.send_signal(signal.SIGCONT)
        wait_until(lambda: workers.stay_connected(1, kept)[hung.pid], "it accepts again")


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_that_ends_leaves_its_share_to_the_others(
    tmp_path: Path, kept: list[http.client.HTTPConnection], ending: signal.Signals
) -> None:
    with started(tmp_path, 2, patience=PATIENCE) as workers:
        ended, well = workers.processes
        ended.send_signal(ending)
        ended.wait(PATIENCE)
        assert workers.stay_connected(5, kept) == {well.pid: 5}


def test_tls_is_balanced_too_and_a_failed_handshake_does_not_count(
    tmp_path: Path, kept: list[http.client.HTTPConnection]
) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    write_certificate(certificate, key)
    trusting = ssl.create_default_context(cafile=str(certificate))
    tls = {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}
    with started(tmp_path, 1, **tls) as workers:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", workers.port), PATIENCE) as plain:
                plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
                while plain.recv(4096):
                    pass
        for _ in range(2):
            kept.append(workers.connect(trusting))
            assert ask(kept[-1]) == workers.processes[0].pid
        wait_until(lambda: workers.states.count_connections()[0] == 2, "two connections are open")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="only Linux lists a process' open files there")
def test_a_worker_without_a_free_file_accepts_again_once_it_has_one(
    tmp_path: Path, kept: list[http.client.HTTPConnection]
) -> None:
    with started(tmp_path, 1) as workers:
        kept.append(workers.connect())
        ask(kept[0], "/full")
        for _ in range(3):
            kept.append(workers.connect())
            kept[-1].connect()
        answering = kept[1]
        assert ask(answering) == workers.processes[0].pid
        answering.close()
        assert ask(kept[2]) == workers.processes[0].pid
        kept[2].close()
        assert ask(kept[3]) == workers.processes[0].pid
