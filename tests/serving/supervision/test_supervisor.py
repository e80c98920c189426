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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from circus.client import CircusClient  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chestct.card import ModelCard
from chestct.image import encode_png
from chestct.store import CARD, GRAPH
from load_tests.server import free_ports
from serving import run_folder
from serving.worker_states import WorkerStates
from tests.certificates import write_certificate
from tests.graphs import tiny_model, tiny_picture
from tests.server import ROOT, Server, environment, import_model, import_tiny_model, serve
from tests.waiting import PATIENCE, wait_until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
CHANNELS = 16
"""So many connections reach both workers."""
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


def both_ready(server: Server) -> bool:
    """Whether the two workers of the service beat."""
    states = WorkerStates(2)
    states.open(run_folder_of(server) / run_folder.WORKER_STATES)
    workers = {worker.pid for worker in workers_of(psutil.Process(server.process.pid))}
    return len(workers) == 2 and workers <= states.worker_beats.keys()


def start(home: Path, http: int, grpc: int, **settings: str) -> "subprocess.Popen[str]":
    """A service that may fail, with its output in one stream."""
    return subprocess.Popen(
        [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(http)],
        cwd=ROOT,
        env=environment(home, **{"CHESTCT_WORKERS": "1", "CHESTCT_GRPC_PORT": str(grpc), **settings}),
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
    with serve(home, "", CHESTCT_WORKERS="2", CHESTCT_HANG_SECONDS="8", BENTOML_CONTAINERIZED="true") as running:
        wait_until(lambda: both_ready(running), "both are ready")
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


def readiness(server: Server) -> int:
    """Status of /readyz; 0 without an answer."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{server.url}/readyz", timeout=PATIENCE).status_code
    return 0


def watch(server: Server, stack: contextlib.ExitStack, pool: ThreadPoolExecutor) -> list[int]:
    """Watch the gRPC health over a connection of its own. Returns the list to which each status is added."""
    channel = grpc.insecure_channel(server.grpc, options=[("grpc.use_local_subchannel_pool", 1)])
    statuses = health_pb2_grpc.HealthStub(stack.enter_context(channel)).Watch(health_pb2.HealthCheckRequest())
    seen: list[int] = []

    def add() -> None:
        with contextlib.suppress(grpc.RpcError):  # the frozen worker's end
            seen.extend(answer.status for answer in statuses)

    pool.submit(add)
    return seen


def test_a_frozen_worker_is_replaced_and_every_call_is_answered_again(supervised: Server) -> None:
    supervisor = psutil.Process(supervised.process.pid)
    before = workers_of(supervisor)
    assert len(before) == 2
    assert metric(supervised, r"chestct_worker_restarts_total\{.*\}") == 0
    before[0].suspend()
    wait_until(lambda: not before[0].is_running(), "the frozen worker is dead")
    wait_until(lambda: metric(supervised, r'chestct_worker_restarts_total\{cause="hung"\}') == 1, "it is counted")
    assert metric(supervised, r"chestct_worker_restarts_total\{.*\}") == 1
    wait_until(lambda: both_ready(supervised), "another is ready")
    assert before[1] in workers_of(supervisor)
    assert [ask(supervised) for _ in range(20)] == [200] * 20
    lines = [line for line in supervised.log.read_text().splitlines() if "worker process" in line]
    assert [json.loads(line)["message"] for line in lines] == [
        f"worker process {before[0].pid} is silent for 8 s: killed",
        f"worker process {before[0].pid} has ended: it hung and was killed; another takes its place",
    ]


def test_the_others_report_not_ready_while_a_worker_is_frozen(supervised: Server) -> None:
    """No new call should go where half of the connections reach a frozen worker."""
    wait_until(lambda: both_ready(supervised), "both are ready")
    (frozen, _) = workers_of(psutil.Process(supervised.process.pid))
    with ThreadPoolExecutor(CHANNELS) as pool, contextlib.ExitStack() as stack:
        seen = [watch(supervised, stack, pool) for _ in range(CHANNELS)]
        wait_until(lambda: seen == [[SERVING]] * CHANNELS, "the health is watched on connections to both")
        frozen.suspend()
        wait_until(lambda: any(NOT_SERVING in one for one in seen), "gRPC says not ready")
        wait_until(lambda: readiness(supervised) == 503, "HTTP says not ready")
        assert ask(supervised) == 200, "who asks all the same is answered"
        wait_until(lambda: readiness(supervised) == 200, "HTTP says ready again")
        wait_until(lambda: [SERVING, NOT_SERVING, SERVING] in seen, "gRPC says ready again")
    assert not frozen.is_running()


def test_workers_that_are_to_start_again_have_not_died(supervised: Server) -> None:
    """Restart the workers like `bentoml serve --reload` after a change of a file."""
    supervisor = psutil.Process(supervised.process.pid)
    before = workers_of(supervisor)
    said = supervised.log.read_text()
    client = CircusClient(endpoint=f"ipc://{run_folder_of(supervised)}/control", timeout=PATIENCE)
    client.call({"command": "restart", "properties": {"name": "service", "waiting": True}})
    client.stop()
    assert not set(before) & set(workers_of(supervisor))
    wait_until(lambda: both_ready(supervised), "the new ones are ready")
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
    assert httpx.get(f"{supervised.url}/livez", timeout=PATIENCE).status_code == 200


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


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("CHESTCT_QUEUE_SIZE", "many", "CHESTCT_QUEUE_SIZE: .* integer, .*got 'many'"),
        ("CHESTCT_WORKERS", "0", "CHESTCT_WORKERS: .* greater than or equal to 1, got '0'"),
        ("CHESTCT_WORKRES", "2", "unknown setting CHESTCT_WORKRES; known are "),
        ("CHESTCT_API_KEYS_FILE", "{folder}/absent", "CHESTCT_API_KEYS_FILE: .*absent"),
        ("CHESTCT_API_KEYS_FILE", "{folder}/empty", "{folder}/empty: expected at least one key"),
        ("CHESTCT_MODEL", "chestct:absent", "chestct:absent"),
        ("BENTOML_HOME", "{folder}/nowhere", "no model trained on real images .*; `make serve` imports"),
    ],
)
def test_what_is_wrong_ends_the_start_in_one_line(
    name: str, value: str, words: str, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").touch()
    code, lines = run(home, *free_ports(2), **{name: value.format(folder=tmp_path)})
    assert code == 1
    assert len(lines) == 1
    assert lines[0].lower().startswith("error: ")
    assert re.search(words.format(folder=tmp_path), lines[0])


def test_an_expired_certificate_ends_the_start_in_one_line(home: Path, tmp_path: Path) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    write_certificate(certificate, key, first_day=-2, last_day=-0.001)
    settings = {"CHESTCT_GRPC_CERTIFICATE": str(certificate), "CHESTCT_GRPC_CERTIFICATE_KEY": str(key)}
    code, lines = run(home, *free_ports(2), **settings)
    assert code == 1
    assert lines == [
        f"error: CHESTCT_GRPC_CERTIFICATE: {certificate}: certificate has expired; renew it, or look at the clock"
    ]
