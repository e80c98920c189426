"""The load test: it passes on a sound service, and it fails on one that is slow, wrong or gone."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from load_tests import run
from load_tests.server import serve

HTTP, GRPC = "/v1/predict", "/inference.GRPCInferenceService/ModelInfer"
BOUND = run.Bound(max_error_rate=0, max_p99_ms=500, min_requests_per_second=5)
BOUNDS = {HTTP: BOUND, GRPC: BOUND}

GOOD_HTTP = f"POST,{HTTP},100,0,20.0,80"
GOOD_GRPC = f"gRPC,{GRPC},100,0,20.0,80"


def statistics(folder: Path, *rows: str) -> Path:
    path = folder / "locust_stats.csv"
    path.write_text("\n".join(["Type,Name,Request Count,Failure Count,Requests/s,99%", *rows]) + "\n")
    return path


def test_statistics_within_the_bounds_miss_nothing(tmp_path: Path) -> None:
    assert run.find_misses(statistics(tmp_path, GOOD_HTTP, GOOD_GRPC), BOUNDS) == []


@pytest.mark.parametrize(
    ("rows", "miss"),
    [
        pytest.param([f"POST,{HTTP},100,1,20.0,80", GOOD_GRPC], f"{HTTP}: error rate 0.0100", id="one error"),
        pytest.param([GOOD_HTTP, f"gRPC,{GRPC},100,0,20.0,501"], f"{GRPC}: p99 501 ms", id="slow"),
        pytest.param([GOOD_HTTP, f"gRPC,{GRPC},100,0,4.9,80"], f"{GRPC}: 4.9 requests/s", id="few"),
        pytest.param([GOOD_HTTP], f"{GRPC}: no request was made", id="absent"),
        pytest.param([GOOD_HTTP, f"gRPC,{GRPC},0,0,0,N/A"], f"{GRPC}: no request was made", id="none"),
    ],
)
def test_planted_bad_statistics_miss_their_bound(tmp_path: Path, rows: list[str], miss: str) -> None:
    (found,) = run.find_misses(statistics(tmp_path, *rows), BOUNDS)
    assert found.startswith(miss)


def test_requests_that_need_not_come_may_stay_away(tmp_path: Path) -> None:
    bound = run.Bound(max_error_rate=0, max_p99_ms=500, min_requests_per_second=0)
    assert run.find_misses(statistics(tmp_path), {"/v1/predict undecodable": bound}) == []


@pytest.mark.parametrize("text", ["a: 1", "a: {max_error_rate: 0}", "a: {", "- 1"])
def test_bounds_that_make_no_sense_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    slo = tmp_path / "slo.yaml"
    slo.write_text(text)
    assert run.main(["--slo", str(slo)]) == run.BAD_INPUT
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_server_that_can_t_start_ends_in_one_line_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path))
    assert run.main(["--seconds", "1"]) == run.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert "no model trained on real images" in line


@pytest.mark.usefixtures("tiny_store")
def test_a_sound_service_passes_and_is_stopped_at_the_end() -> None:
    # Its own bounds on time: the suite may share its cores with anything.
    bounds = {
        name: bound.model_copy(update={"max_p99_ms": 10_000, "min_requests_per_second": 1})
        for name, bound in run.read_bounds(run.HERE / "slo.yaml").items()
        if bound.min_requests_per_second
    }
    assert bounds.keys() == {HTTP, GRPC}
    with serve() as server:
        assert run.find_misses(run.run_locust(server.url, server.grpc, users=4, seconds=4), bounds) == []

    http = urlsplit(server.url)
    for port in (http.port, int(server.grpc.rpartition(":")[2])):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1)


class _Wrong(BaseHTTPRequestHandler):
    """Answers 200 to everything, with probabilities that sum to 0.9."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b'{"probabilities": {"a": 0.3, "b": 0.2, "c": 0.2, "d": 0.2}}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def wrong_service() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Wrong) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_wrong_answers_and_a_dead_port_fail(wrong_service: str, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens
        grpc = f"127.0.0.1:{closed.getsockname()[1]}"
        arguments = ["--host", wrong_service, "--grpc", grpc, "--users", "2", "--seconds", "3"]
        assert run.main(arguments) == run.MISSED
    output = capfd.readouterr().out
    assert f"FAIL  {HTTP}: error rate 1.0000" in output
    assert f"FAIL  {GRPC}: error rate 1.0000" in output
