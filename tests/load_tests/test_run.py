"""The load test: a sound service passes, and one that is slow, wrong or gone fails."""

import csv
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from load_tests import check, run, shapes, traffic
from load_tests.server import serve
from load_tests.verdict import BAD_INPUT, MISSED

HTTP, OIP, GRPC = "/v1/predict", "/v2/models/chestct/infer", "/inference.GRPCInferenceService/ModelInfer"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scenario", "spike"], "expected a scenario of steady, ramp, burst, soak, got 'spike'"),
        (["--users", "1"], "expected 4 users or more, got 1"),
        (["--slo", "absent.yaml"], "absent.yaml: expected rows of bounds by scenario"),
        (["--scenario", "soak", "--host", "http://localhost"], "expected no --host"),
    ],
)
def test_bad_input_ends_in_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(arguments) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("load: ")
    assert words in line


def test_a_server_that_can_t_start_ends_in_one_line_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path))
    monkeypatch.setattr(run, "OUTPUT", tmp_path)
    assert run.main(["--seconds", "3"]) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert "no model trained on real images" in line


@pytest.mark.usefixtures("tiny_store")
def test_a_sound_service_answers_all_and_is_stopped_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "ramp"
    with serve() as server:
        http = urlsplit(server.url)
        memory = traffic.run(run.run_locust(folder, server.url, server.grpc, 8, 4, server))
    for port in (http.port, int(server.grpc.rpartition(":")[2])):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1)

    # Looser bounds on time, because other programs may share the cores.
    patient = {"max_p95_ms": 60_000, "max_p99_ms": 60_000}
    objectives = check.read_objectives(run.HERE / "slo.yaml", "ramp")
    rows = {
        name: bound.model_copy(update={**patient, "min_requests_per_second": min(0.1, bound.min_requests_per_second)})
        for name, bound in objectives.rows.items()
    }
    assert {name for name, bound in rows.items() if bound.min_requests_per_second} == {HTTP, OIP, GRPC}
    assert check.judge(check.read_rows(folder), memory, objectives.model_copy(update={"rows": rows})) == []
    with (folder / "locust_stats_history.csv").open(encoding="utf-8", newline="") as file:
        history = list(csv.DictReader(file))
    users = [int(moment["User Count"]) for moment in history]
    assert users[0] < max(users) <= 8
    answered = max(int(moment["Total Request Count"]) for moment in history)
    assert answered == sum(row.requests for row in check.read_rows(folder).values())
    assert min(memory) > 10 * 2**20


class _Wrong(BaseHTTPRequestHandler):
    """Answers every request with 200 and probabilities that sum to 0.9."""

    def do_GET(self) -> None:
        self._answer({"inputs": [{"name": "pixels", "shape": [-1, 64, 64, 1]}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({"probabilities": {"a": 0.3, "b": 0.2, "c": 0.2, "d": 0.2}})

    def _answer(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write no log."""


@pytest.fixture
def wrong_service() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Wrong) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_wrong_answers_and_a_dead_port_fail(
    wrong_service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "OUTPUT", tmp_path)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but not listening
        grpc = f"127.0.0.1:{closed.getsockname()[1]}"
        assert run.main(["--host", wrong_service, "--grpc", grpc, "--users", "4", "--seconds", "3"]) == MISSED
    output = capfd.readouterr().out
    for name in (HTTP, OIP, GRPC):
        assert f"FAIL  {name}: error rate 1.0000" in output
    assert "/v2/models/chestct: error" not in output
    report = (tmp_path / "steady" / run.REPORT).read_text()
    assert "expected 4 probabilities that sum to 1" in report
    assert "got UNAVAILABLE" in report


def test_a_locust_that_dies_is_no_verdict(
    wrong_service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "steady"
    locust = tmp_path / "locust"
    locust.write_text(f"#!/bin/sh\nmkdir -p {folder}\nkill -KILL $$\n")
    locust.chmod(0o755)
    monkeypatch.setattr(run, "OUTPUT", tmp_path)
    monkeypatch.setattr(run.sys, "executable", str(locust))
    assert run.main(["--host", wrong_service, "--users", "4", "--seconds", "3"]) == BAD_INPUT
    assert "Locust ended with the code -9, expected 0 after 3 s" in capsys.readouterr().err


def test_the_job_for_kubernetes_runs_a_scenario_that_there_is() -> None:
    job = yaml.safe_load((run.ROOT / "k8s/components/load-test/job.yaml").read_text(encoding="utf-8"))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    named = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    scenario = shapes.find(named["--scenario"])
    _, seconds = scenario.size(int(named["--users"]), int(named["--seconds"]))
    assert seconds + run.MORE_SECONDS < job["spec"]["activeDeadlineSeconds"]
    assert check.read_objectives(run.HERE / "slo.yaml", named["--scenario"]).max_memory_growth is None
