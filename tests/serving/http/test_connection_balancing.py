import asyncio
import http.client
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from chestct.image import encode_png
from serving.http.connection_balancing import ConnectionBalancing
from serving.worker_load import MIN_EXCESS, WorkerLoad
from tests.graphs import tiny_picture
from tests.server import ROOT, Server

WORKER = """
import sys, pathlib
from serving.worker_load import WorkerLoad
load = WorkerLoad(2)
load.join(pathlib.Path(sys.argv[1]), 2)
for _ in range(int(sys.argv[2])):
    load.__enter__()
print("joined", flush=True)
sys.stdin.read()
"""

IDLER = """
import sys, pathlib
from serving.worker_load import WorkerLoad
load = WorkerLoad(3)
load.join(pathlib.Path(sys.argv[1]), 4)
load.set_idle(True)
"""


def other_worker(file: Path, requests: int) -> "subprocess.Popen[bytes]":
    """Worker 2 in its own process, with this number of requests."""
    command = [sys.executable, "-c", WORKER, str(file), str(requests)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"joined\n"
    return process


def take(load: WorkerLoad, requests: int) -> None:
    for _ in range(requests):
        load.__enter__()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "load"


def test_a_worker_is_crowded_if_another_is_idle_but_not_if_it_is_dead(file: Path) -> None:
    load = WorkerLoad(2)
    load.join(file, 1)
    take(load, 2 * MIN_EXCESS - 1)
    with other_worker(file, 0) as other:
        assert not load.is_crowded()
        with load:
            assert load.is_crowded()
            other.kill()
            other.wait()
            assert not load.is_crowded()


def test_a_replacement_worker_starts_with_no_requests(file: Path) -> None:
    load = WorkerLoad(2)
    load.join(file, 1)
    take(load, 10)
    with other_worker(file, 10) as other:
        assert not load.is_crowded()
        other.kill()
    with other_worker(file, 0) as other:
        assert load.is_crowded()
        other.kill()


def test_a_share_slightly_above_the_mean_is_not_crowded(file: Path) -> None:
    loads = WorkerLoad(2), WorkerLoad(2)
    for worker, load in enumerate(loads, 1):
        load.join(file, worker)
    take(loads[0], 100)
    take(loads[1], 80)
    assert not loads[0].is_crowded()
    take(loads[0], 10)
    assert loads[0].is_crowded()
    assert not loads[1].is_crowded()


def test_a_single_worker_is_never_crowded(file: Path) -> None:
    load = WorkerLoad(1)
    take(load, 100)
    assert not load.is_crowded()
    load.join(file, 1)
    take(load, 100)
    assert not load.is_crowded()


def test_the_others_find_an_idle_worker_while_it_lives(file: Path) -> None:
    loads = [WorkerLoad(3) for _ in range(3)]
    for worker, load in enumerate(loads, 1):
        load.join(file, worker)
    assert [load.find_idle_worker() for load in loads] == [None, None, None]
    loads[1].set_idle(True)
    assert [load.find_idle_worker() for load in loads] == [1, None, 1]
    loads[0].set_idle(True)
    assert [load.find_idle_worker() for load in loads] == [1, 0, 0]
    assert loads[2].find_idle_worker({0}) == 1
    assert loads[2].find_idle_worker({0, 1}) is None
    loads[1].set_idle(False)
    with subprocess.Popen([sys.executable, "-c", IDLER, str(file)], cwd=ROOT, stdout=subprocess.PIPE) as dead:
        dead.wait()
    assert loads[0].find_idle_worker() is None
    loads[0].join(file, 1)
    assert loads[2].find_idle_worker() is None


def test_a_crowded_worker_closes_connections_and_counts_its_requests(file: Path) -> None:
    load, idle = WorkerLoad(2), WorkerLoad(2)
    load.join(file, 1)
    idle.join(file, 2)

    async def good(_: object) -> Response:
        return Response("good")

    async def bad(_: object) -> Response:
        raise RuntimeError

    async def main() -> None:
        app = Starlette(routes=[Route("/good", good), Route("/bad", bad)])
        transport = httpx.ASGITransport(ConnectionBalancing(app, load), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for _ in range(2 * MIN_EXCESS):
                assert "connection" not in (await client.get("/good")).headers
                assert (await client.get("/bad")).status_code == 500
            take(load, 2 * MIN_EXCESS - 1)
            assert (await client.get("/good")).headers["connection"] == "close"

    asyncio.run(main())


def ports_by_worker(server: Server) -> list[set[int]]:
    """The client's port of each HTTP connection, by worker."""
    port = int(server.url.rpartition(":")[2])
    workers = [child for child in psutil.Process(server.process.pid).children() if "--worker-id" in child.cmdline()]
    return [
        {one.raddr.port for one in worker.net_connections("tcp") if one.laddr.port == port and one.raddr}
        for worker in workers
    ]


def test_sixteen_connections_of_one_worker_are_balanced_over_two(server: Server) -> None:
    netloc = server.url.removeprefix("http://")
    picture = encode_png(tiny_picture(1)[:, :, 0])
    done = threading.Event()

    def connect() -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(netloc, timeout=300)
        connection.connect()
        return connection

    def ask_on(connection: http.client.HTTPConnection) -> int:
        answers = 0
        while not done.is_set():
            connection.request("POST", "/v1/predict", picture, {"Content-Type": "image/png"})
            response = connection.getresponse()  # the next request opens another if this one ends the connection
            response.read()
            assert response.status in (200, 429)  # on a busy machine a queue can fill
            answers += 1
        return answers

    connections: list[http.client.HTTPConnection] = []
    while max(len(ports) for ports in ports_by_worker(server)) < 16:
        connections.append(connect())
    crowded = max(ports_by_worker(server), key=len)
    chosen = [one for one in connections if one.sock.getsockname()[1] in crowded][:16]
    for one in set(connections) - set(chosen):
        one.close()
    with ThreadPoolExecutor(len(chosen)) as pool:
        asking = [pool.submit(ask_on, one) for one in chosen]
        deadline = time.monotonic() + 300
        most = 16
        while most > 10 and time.monotonic() < deadline:
            time.sleep(0.1)
            counts = [len(ports) for ports in ports_by_worker(server)]
            most = max(counts) if sum(counts) >= 16 else 16
        done.set()
        assert all(one.result() for one in asking)
    for one in chosen:
        one.close()
    assert most <= 10
