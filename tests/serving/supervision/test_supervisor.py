"""BentoML's real supervisor with workers that are killed, frozen or can't start."""

import contextlib
import hashlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from circus.client import CircusClient  # type: ignore[import-untyped]

from chestct.card import ModelCard
from chestct.image import encode_png
from chestct.store import CARD, GRAPH
from load_tests.server import free_ports
from serving import run_folder
from serving.worker_states import WorkerStates
from tests.graphs import tiny_model, tiny_picture
from tests.server import ROOT, Server, environment, import_model, import_tiny_model, serve
from tests.waiting import PATIENCE, wait_until

PICTURE = encode_png(tiny_picture(1)[:, :, 0])


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in process.children():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "--worker-id" in child.cmdline():
                found.append(child)
    return found


def run_folder_of(server: Server) -> Path:
    (worker, *_) = workers_of(psutil.Process(server.process.pid))
    return Path(worker.environ()["PROMETHEUS_MULTIPROC_DIR"])


def states_of(server: Server) -> WorkerStates:
    """What the two workers of a service share."""
    states = WorkerStates(2)
    states.open(run_folder_of(server) / run_folder.WORKER_STATES)
    return states


def start(home: Path, http: int, grpc: int, **settings: str) -> "subprocess.Popen[str]":
    """A service that may fail, with its output in one stream."""
    return subprocess.Popen(
        [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(http)],
        cwd=ROOT,
        env=environment(home, CHESTCT_WORKERS="1", CHESTCT_GRPC_PORT=str(grpc), **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(home: Path, http: int, grpc: int, **settings: str) -> tuple[int, list[str]]:
    """Exit code and output of a service that can't start, without BentoML's lines about the start."""
    with start(home, http, grpc, **settings) as process:
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    return process.returncode, [line for line in output.splitlines() if "[INFO]" not in line]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("supervised") / "bentoml"
    import_tiny_model(home)
    return home


@pytest.fixture(scope="module")
def supervised(home: Path) -> Iterator[Server]:
    """A service with two workers that finds a hung one soon, with BentoML's settings for containers."""
    with serve(home, "", CHESTCT_WORKERS="2", CHESTCT_HANG_SECONDS="3", BENTOML_CONTAINERIZED="true") as running:
        states = states_of(running)
        wait_until(lambda: len(states.worker_beats) == 2, "both are ready")
        yield running


def ask(server: Server) -> int:
    """Status of one request over its own connection; 0 without an answer."""
    headers = {"Content-Type": "image/png"}
    with contextlib.suppress(httpx.TransportError):
        return httpx.post(f"{server.url}/v1/predict", content=PICTURE, headers=headers, timeout=PATIENCE).status_code
    return 0


def metric(server: Server, pattern: str) -> float:
    with contextlib.suppress(httpx.TransportError):
        text = httpx.get(f"{server.url}/metrics", timeout=PATIENCE).text
        return sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE))
    return -1.0


def test_a_frozen_worker_is_replaced_and_every_call_is_answered_again(supervised: Server) -> None:
    supervisor = psutil.Process(supervised.process.pid)
    before = workers_of(supervisor)
    assert len(before) == 2
    assert metric(supervised, r"chestct_worker_restarts_total\{.*\}") == 0
    before[0].suspend()
    wait_until(lambda: not before[0].is_running(), "the frozen worker is dead")
    wait_until(lambda: metric(supervised, r'chestct_worker_restarts_total\{cause="hung"\}') == 1, "it is counted")
    assert metric(supervised, r"chestct_worker_restarts_total\{.*\}") == 1
    wait_until(lambda: len(states_of(supervised).worker_beats) == 2, "another is ready")
    assert before[1] in workers_of(supervisor)
    assert [ask(supervised) for _ in range(20)] == [200] * 20
    lines = [line for line in supervised.log.read_text().splitlines() if "worker process" in line]
    assert [json.loads(line)["message"] for line in lines] == [
        f"worker process {before[0].pid} is silent for 3 s: killed",
        f"worker process {before[0].pid} has ended: it hung and was killed; another takes its place",
    ]


def test_workers_that_are_to_start_again_have_not_died(supervised: Server) -> None:
    """Restart the workers like `bentoml serve --reload` after a change of a file."""
    supervisor = psutil.Process(supervised.process.pid)
    before = workers_of(supervisor)
    said = supervised.log.read_text()
    client = CircusClient(endpoint=f"ipc://{run_folder_of(supervised)}/control", timeout=PATIENCE)
    client.call({"command": "restart", "properties": {"name": "service", "waiting": True}})
    client.stop()
    assert not set(before) & set(workers_of(supervisor))
    states = states_of(supervised)
    wait_until(
        lambda: states.worker_beats.keys() == {worker.pid for worker in workers_of(supervisor)},
        "the new ones are ready",
    )
    assert not re.search("worker process|page: ", supervised.log.read_text().removeprefix(said))


def test_a_second_service_is_refused_each_port_and_leaves_the_first_its_metrics(supervised: Server, home: Path) -> None:
    assert ask(supervised) == 200
    answers = 'chestct_requests_total{code="200",protocol="http",route="/v1/predict"}'
    before = metric(supervised, re.escape(answers))
    http, grpc = int(supervised.url.rpartition(":")[2]), int(supervised.grpc.rpartition(":")[2])
    (free,) = free_ports(1)
    code, lines = run(home, free, grpc)
    assert code == 1
    assert lines == [f"error: port {grpc} of 0.0.0.0 is taken; choose others: make serve PORT=3100 GRPC_PORT=3101"]
    code, lines = run(home, http, free)
    assert code == 1
    assert lines == [f"error: port {http} of 127.0.0.1 is taken; choose others: make serve PORT=3100 GRPC_PORT=3101"]
    assert ask(supervised) == 200
    assert metric(supervised, re.escape(answers)) == before + 1
    assert httpx.get(f"{supervised.url}/livez").status_code == 200


def test_a_killed_supervisor_takes_its_workers_along(supervised: Server) -> None:
    """This test is the last one that needs the server."""
    supervisor = psutil.Process(supervised.process.pid)
    family = supervisor.children(recursive=True)
    assert family
    supervisor.kill()
    _, alive = psutil.wait_procs(family, timeout=PATIENCE)
    assert not alive
    for address in (supervised.url.rpartition("/")[2], supervised.grpc):
        host, port = address.split(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=10)


def test_a_frozen_worker_does_not_hold_up_a_stop(home: Path) -> None:
    with serve(home, "", CHESTCT_WORKERS="1", CHESTCT_HANG_SECONDS="2", CHESTCT_REQUEST_TIMEOUT="600") as server:
        (worker,) = workers_of(psutil.Process(server.process.pid))
        wait_until(lambda: metric(server, "chestct_queue_depth") == 0, "it answers")
        worker.suspend()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0
        assert not worker.is_running()


def test_workers_that_die_in_a_loop_end_the_service_with_a_reason(home: Path) -> None:
    with start(home, *free_ports(2), CHESTCT_MAX_WORKER_DEATHS="3") as process:
        supervisor = psutil.Process(process.pid)
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < deadline:
            for worker in workers_of(supervisor):
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.send_signal(signal.SIGBUS)
            time.sleep(0.05)
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    lines = output.strip().splitlines()
    assert re.search("worker process .* has ended: killed by SIGBUS: .*; another takes its place", output, re.MULTILINE)
    assert re.match("error: 3 workers in a row have died within 60 s of .*: killed by SIGBUS: .*full", lines[-1])


def test_a_graph_that_does_not_compile_ends_the_start_in_one_line(tmp_path: Path) -> None:
    folder, home = tmp_path / "model", tmp_path / "bentoml"
    card: ModelCard = tiny_model(folder)
    (folder / GRAPH).write_bytes(b"no graph")
    digest = hashlib.sha256(b"no graph").hexdigest()
    card.model_copy(update={"lineage": card.lineage.model_copy(update={"model_sha256": digest})}).write(folder / CARD)
    import_model(home, folder)
    code, lines = run(home, *free_ports(2))
    assert code == 1
    assert lines[-1].startswith("error: no worker can start: RuntimeError: ")
    assert not [line for line in lines[:-1] if "rror:" in line or "Traceback" in line], "OpenVINO's parser says some"


def test_a_bad_certificate_ends_the_start_in_one_line(home: Path, tmp_path: Path) -> None:
    (tmp_path / "pem").write_text("no certificate")
    pair = {name: str(tmp_path / "pem") for name in ("CHESTCT_GRPC_CERTIFICATE", "CHESTCT_GRPC_CERTIFICATE_KEY")}
    code, lines = run(home, *free_ports(2), **pair)
    assert code == 1
    assert len(lines) == 1
    assert lines[0].startswith("error: CHESTCT_GRPC_CERTIFICATE and its key: ")
