"""A real service: BentoML's supervisor and workers, as `make serve` starts them."""

import contextlib
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import grpc
import httpx
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from open_inference.grpc import protocol, service

from chestct.image import encode_png
from chestct.store import GRAPH
from pipeline.images.classes import CLASSES
from tests.dicom import dicom_file
from tests.graphs import tiny_picture
from tests.pictures import chunk, with_chunks
from tests.server import ROOT, Server, bentoml, import_tiny_model, serve
from tests.waiting import wait_until

PNG = {"Content-Type": "image/png"}
get = partial(httpx.get, timeout=300)
post = partial(httpx.post, timeout=300)
DICOM = dicom_file(tiny_picture(1)[:, :, 0])


def png(label: int = 1) -> bytes:
    return encode_png(tiny_picture(label)[:, :, 0])


def ask_http(server: Server, data: bytes) -> dict[str, float]:
    response = post(f"{server.url}/v1/predict", content=data, headers=PNG)
    assert response.status_code == 200, response.text
    probabilities: dict[str, float] = response.json()["probabilities"]
    return probabilities


def ask_grpc(server: Server, data: bytes) -> list[float]:
    with grpc.insecure_channel(server.grpc) as channel:
        tensor = protocol.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(data)
        request = protocol.ModelInferRequest(model_name="chestct", inputs=[tensor])
        answer = service.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=300)
    index = [output.name for output in answer.outputs].index("probabilities")
    return [float(value) for value in memoryview(answer.raw_output_contents[index]).cast("f")]


def test_importing_the_service_is_light_and_brings_no_training() -> None:
    code = "import json, sys, service; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    modules = set(json.loads(done.stdout))
    assert not {"tensorflow", "keras", "mlflow", "dvc", "openvino", "pipeline"} & modules


def test_http_and_grpc_answer_the_same(server: Server) -> None:
    for label in range(4):
        over_http = ask_http(server, png(label))
        assert max(over_http, key=over_http.__getitem__) == list(over_http)[label]
        assert ask_grpc(server, png(label)) == pytest.approx(list(over_http.values()), abs=1e-6)


def test_the_probes_say_ready(server: Server) -> None:
    for path in ("/livez", "/readyz", "/healthz"):
        assert get(f"{server.url}{path}").status_code == 200
    assert health(server) == health_pb2.HealthCheckResponse.SERVING


def test_the_log_says_where_the_page_is(server: Server) -> None:
    def pages() -> list[str]:
        return re.findall(r"^page: (\S+)$", server.log.read_text(), re.MULTILINE)

    wait_until(pages, "the first worker says where the page is")  # it may be the last to be ready
    (page,) = pages()
    assert page == f"{server.url}/"
    assert "Chest" in get(page).text


def test_each_worker_says_when_it_is_ready_and_when_all_graphs_are_compiled(server: Server) -> None:
    def events() -> list[str]:
        lines = [line for line in server.log.read_text(encoding="utf-8").splitlines() if ".start_times" in line]
        return [json.loads(line)["message"].partition(" after")[0] for line in lines]

    wait_until(lambda: 0 < events().count("ready") == events().count("complete"), "both lines of each worker")


def test_errors_keep_their_schema_behind_bentoml(server: Server) -> None:
    cases = {
        post(f"{server.url}/v1/predict", content=b"text", headers=PNG): 422,
        post(f"{server.url}/v1/predict", content=b"", headers=PNG): 400,
        get(f"{server.url}/v1/predict"): 405,
        get(f"{server.url}/v1/nothing"): 404,
        get(f"{server.url}/nothing"): 404,
        get(f"{server.url}//v1/model"): 404,
        get(f"{server.url}/metrics%0A"): 404,
        post(f"{server.url}/classify/"): 404,
        post(f"{server.url}/livez"): 405,
    }
    for response, status in cases.items():
        assert response.status_code == status
        assert set(response.json()["error"]) == {"code", "message", "request_id"}


def test_a_body_with_too_large_an_announced_length_is_refused_unread(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /v1/predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/png\r\nContent-Length: 999999999\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=300) as connection:
        connection.sendall(head.encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 413")


@pytest.mark.skipif(sys.platform != "linux", reason="a policy of Linux's scheduler")
def test_no_thread_of_a_worker_interrupts_another(server: Server) -> None:
    for worker in psutil.Process(server.process.pid).children():
        policies = {thread.id: os.sched_getscheduler(thread.id) for thread in worker.threads()}
        assert policies[worker.pid] == os.SCHED_BATCH, "the event loop's"
        assert list(policies.values()).count(os.SCHED_BATCH) >= 2, "and the engine's, which its warm-up started"


def test_an_idle_connection_outlives_what_proxies_keep(server: Server) -> None:
    """With BentoML's default of 5 s, a proxy that reuses the connection just then would lose a request."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=300)
    connection.auto_open = 0
    connection.connect()
    with contextlib.closing(connection):
        for pause in (6, 0):
            connection.request("GET", "/livez")
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            time.sleep(pause)
    for file in ("Makefile", "image/Containerfile"):
        assert re.search(
            r'bentoml"?,? "?serve.*--timeout-keep-alive"?,? "?75', (ROOT / file).read_text(encoding="utf-8")
        )


def metric(text: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_metrics_add_up_over_the_workers(server: Server) -> None:
    name = 'chestct_requests_total{code="200",protocol="http",route="/v1/predict"}'
    before = metric(get(f"{server.url}/metrics").text, name)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: ask_http(server, png(index % 4)), range(40)))
    # A request is counted after its answer.
    wait_until(lambda: metric(get(f"{server.url}/metrics").text, name) >= before + 40, "every request is counted")
    # Each connection asks whichever worker takes it, and either knows of all.
    for _ in range(6):
        text = get(f"{server.url}/metrics").text
        assert metric(text, name) == before + 40
        assert metric(text, "chestct_queue_depth") == 0
        assert "bentoml_service" not in text


def test_the_calls_of_one_grpc_channel_use_the_engines_of_all_workers(server: Server) -> None:
    name = "chestct_borrowed_images_total"
    before = metric(get(f"{server.url}/metrics").text, name)
    pictures = np.stack([tiny_picture(index % 4) for index in range(64)])
    tensor = protocol.ModelInferRequest.InferInputTensor(name="pixels", datatype="UINT8", shape=[1, 32, 32, 1])
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service.GRPCInferenceServiceStub(channel)
        for _ in range(100):
            answers = [
                stub.ModelInfer.future(
                    protocol.ModelInferRequest(
                        model_name="chestct", inputs=[tensor], raw_input_contents=[picture.tobytes()]
                    ),
                    timeout=300,
                )
                for picture in pictures
            ]
            for index, answer in enumerate(answers):
                output = [one.name for one in answer.result().outputs].index("label")
                label = answer.result().raw_output_contents[output][4:].decode()
                assert label == sorted(CLASSES)[index % 4]
            if metric(get(f"{server.url}/metrics").text, name) > before:
                return
    pytest.fail("no worker borrowed an engine")


def health(server: Server) -> object:
    with grpc.insecure_channel(server.grpc) as channel:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=""), timeout=300).status


def test_a_scan_of_unknown_paths_adds_no_metric_series(server: Server) -> None:
    def series() -> set[str]:
        lines = get(f"{server.url}/metrics").text.splitlines()
        return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}

    with httpx.Client(base_url=server.url, timeout=300) as client:
        client.get("/v1/nothing")
        series()  # has a series of its own
        before = series()
        for index in range(1000):
            client.get(f"{('', '/v1', '/v2', '/page', '/livez')[index % 5]}/scan-{index}")
    assert series() == before


def test_each_request_leaves_one_line_of_json_and_bentoml_none(server: Server) -> None:
    post(f"{server.url}/v1/predict", content=png(1), headers={**PNG, "X-Request-ID": "line-http"})
    get(f"{server.url}/readyz", headers={"X-Request-ID": "line-probe"})
    get(f"{server.url}/no/such/path", headers={"X-Request-ID": "line-lost"})
    with grpc.insecure_channel(server.grpc) as channel:
        request = protocol.ModelInferRequest(model_name="chestct", id="line-grpc")
        with pytest.raises(grpc.RpcError):
            service.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=300)
    wait_until(lambda: "line-grpc" in server.log.read_text(), "the call is logged")  # a line follows its answer
    log = server.log.read_text()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    ours = {line["request_id"]: line for line in lines if line.get("request_id", "").startswith("line-")}
    assert {name: (line["route"], line["code"], line["outcome"]) for name, line in ours.items()} == {
        "line-http": ("/v1/predict", "200", "answered"),
        "line-lost": ("other", "404", "not_found"),
        "line-grpc": ("/inference.GRPCInferenceService/ModelInfer", "INVALID_ARGUMENT", "invalid_request"),
    }
    assert "scheme=http" not in log  # BentoML's access log


def test_sigterm_ends_readiness_at_once_and_loses_no_request(tmp_path: Path) -> None:
    home = tmp_path / "bentoml"
    tag = import_tiny_model(home)
    # The text makes the body so large that the rest of it may come slowly.
    body = with_chunks(png(2), chunk(b"tEXt", b"a\0" + bytes(1_000_000)))
    rest = iter(body[-20_000:])
    patient = {"CHESTCT_REQUEST_TIMEOUT": "600"}
    with serve(home, tag, CHESTCT_WORKERS="1", drain_seconds=6, **patient) as server:
        host, port = server.url.removeprefix("http://").split(":")
        head = "POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nExpect: 100-continue\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        assert ask_http(server, DICOM)  # it starts the process that reads DICOM files, which the stop may not end
        with socket.create_connection((host, int(port)), timeout=300) as connection:

            def go_on() -> None:
                connection.sendall(bytes([next(rest)]))  # a body that stalls is refused

            def is_ready() -> bool:
                go_on()
                return get(f"{server.url}/readyz").status_code == 200

            def has_a_grpc_port() -> bool:
                go_on()
                with contextlib.suppress(ConnectionRefusedError):
                    socket.create_connection((host, int(server.grpc.rpartition(":")[2])), timeout=300).close()
                    return True
                return False

            connection.sendall(head.encode())
            assert connection.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(body[:-20_000])
            os.kill(server.process.pid, signal.SIGTERM)
            wait_until(lambda: not is_ready(), "it says not ready")
            assert get(f"{server.url}/v2/health/ready").status_code == 503
            assert health(server) == health_pb2.HealthCheckResponse.NOT_SERVING
            late = post(f"{server.url}/v1/predict", content=png(2), headers=PNG)
            assert (late.status_code, late.headers["Connection"]) == (200, "close")
            assert ask_http(server, DICOM)
            wait_until(lambda: not has_a_grpc_port(), "the ports are closed")
            time.sleep(0.5)  # uvicorn looks ten times a second whether it has to close its own
            connection.sendall(bytes(rest))
            answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert b'"label":"normal"' in answer
        assert server.process.wait(300) == 0
        with pytest.raises(httpx.ConnectError):
            get(server.url)


def test_a_store_without_a_real_model_ends_the_start_with_one_line(tmp_path: Path) -> None:
    import_tiny_model(tmp_path / "bentoml", "synthetic")
    done = bentoml("serve", ".", home=tmp_path / "bentoml")
    assert done.returncode != 0
    assert "no model trained on real images" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_changed_graph_ends_the_start_with_one_line_and_both_digests(tmp_path: Path) -> None:
    home = tmp_path / "bentoml"
    tag = import_tiny_model(home)
    graph = home / "models" / tag.replace(":", "/") / GRAPH
    made = graph.read_bytes()
    graph.write_bytes(made[:-1] + bytes([made[-1] ^ 1]))
    done = bentoml("serve", ".", home=home)
    assert done.returncode != 0
    (line,) = (line for line in done.stderr.splitlines() if tag in line)
    assert {hashlib.sha256(data).hexdigest() for data in (made, graph.read_bytes())} <= set(re.findall(r"\w{64}", line))
    assert "Traceback" not in done.stdout + done.stderr


def test_an_unknown_setting_ends_the_start_with_one_line(tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    done = bentoml("serve", ".", home=tmp_path, CHESTCT_WORKRES="2")
    assert done.returncode != 0
    assert "unknown setting CHESTCT_WORKRES" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_refusal_arrives_while_the_client_is_still_sending(server: Server) -> None:
    for _ in range(3):
        request = urllib.request.Request(f"{server.url}/v1/predict", bytes(30_000_000), PNG)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=300)
        assert (refused.value.code, json.load(refused.value)["error"]["code"]) == (413, "body_too_large")


def test_bytes_that_are_not_http_are_refused_in_the_error_schema(server: Server) -> None:
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=300) as client:
        client.sendall(b"nonsense\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_request"
