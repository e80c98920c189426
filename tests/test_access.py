"""A service with API keys, private routes and TLS on gRPC, in processes of its own."""

import base64
import contextlib
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import bentoml
import grpc
import httpx
import pytest
from bentoml.exceptions import BentoMLException
from grpc_health.v1 import health_pb2, health_pb2_grpc
from open_inference.grpc import protocol, service

from chestct.image import encode_png
from load_tests.server import free_ports
from serving import api_keys
from tests.certificates import write_certificate
from tests.graphs import tiny_picture
from tests.server import ROOT, Server, environment, import_tiny_model, serve
from tests.waiting import wait_until

PNG = encode_png(tiny_picture(1)[:, :, 0])
get = partial(httpx.get, timeout=300)
post = partial(httpx.post, timeout=300)
TYPE = {"Content-Type": "image/png"}
GRPC = "/inference.GRPCInferenceService/ModelInfer"
OIP = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(PNG).decode()]}]}


class Guarded(NamedTuple):
    server: Server
    private: str
    """URL of the private port."""
    key: str
    """A key for every route."""
    v1: str
    """A key for /v1 only."""
    file: Path
    certificate: bytes
    certificate_end: float
    """Unix time."""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("access")
    tag = import_tiny_model(folder / "bentoml")
    (key, line), (v1, line_of_v1) = api_keys.new("ann"), api_keys.new("ben", ("v1",))
    file = folder / "keys"
    file.write_text(f"{line}\n{line_of_v1}\n")
    certificate, private_key = folder / "tls.crt", folder / "tls.key"
    end = write_certificate(certificate, private_key)
    samples = folder / "samples"
    samples.mkdir()
    (samples / "Doe^Jane.PNG").write_bytes(PNG)
    (samples / "notes.txt").write_text("no picture")
    (port,) = free_ports(1)
    settings = {
        "CHESTCT_WORKERS": "2",
        "CHESTCT_API_KEYS_FILE": str(file),
        "CHESTCT_METRICS": "private",
        "CHESTCT_BENTOML_ROUTES": "private",
        "CHESTCT_PRIVATE_HOST": "127.0.0.1",
        "CHESTCT_PRIVATE_PORT": str(port),
        "CHESTCT_SAMPLES": str(samples),
        "CHESTCT_GRPC_CERTIFICATE": str(certificate),
        "CHESTCT_GRPC_CERTIFICATE_KEY": str(private_key),
    }
    with serve(folder / "bentoml", tag, **settings) as server:
        yield Guarded(server, f"http://127.0.0.1:{port}", key, v1, file, certificate.read_bytes(), end.timestamp())


def bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def ask(guarded: Guarded, route: str, key: str | None) -> httpx.Response:
    headers = bearer(key)
    if route == "/v1/predict":
        return post(guarded.server.url + route, content=PNG, headers={**TYPE, **headers})
    if route.endswith("/infer"):
        return post(guarded.server.url + route, json=OIP, headers=headers)
    if route == "/classify":
        body = {"images": [base64.b64encode(PNG).decode()]}
        return post(guarded.private + route, json=body, headers=headers)
    return get(guarded.server.url + route, headers=headers)


@pytest.mark.parametrize(
    "route", ["/v1/predict", "/v1/model", "/v2", "/v2/models/chestct", "/v2/models/chestct/infer", "/classify"]
)
def test_a_route_answers_only_requests_with_a_key_for_it(guarded: Guarded, route: str) -> None:
    assert ask(guarded, route, guarded.key).status_code == 200
    for key, status, error, code in (
        (None, 401, "", "unauthenticated"),
        ("chestct_wrong", 401, 'error="invalid_token"', "unauthenticated"),
        (guarded.v1, 403, 'error="insufficient_scope"', "forbidden"),
    ):
        refused = ask(guarded, route, key)
        if key == guarded.v1 and route.startswith("/v1/"):
            assert refused.status_code == 200
            continue
        assert refused.status_code == status
        assert refused.headers["WWW-Authenticate"].startswith('Bearer realm="chestct"')
        assert error in refused.headers["WWW-Authenticate"]
        body = refused.json()["error"]
        assert body.startswith(f"{code}: ") if route.startswith("/v2") else body["code"] == code


@pytest.mark.parametrize(
    "route", ["/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready", "/", "/docs", "/docs.json"]
)
def test_health_and_pages_need_no_key(guarded: Guarded, route: str) -> None:
    assert ask(guarded, route, None).status_code == 200


def test_own_samples_need_a_key_and_their_file_names_are_not_shown(guarded: Guarded) -> None:
    offered = ask(guarded, "/page/service.json", None)
    assert "Doe" not in offered.text
    (own,) = [sample for sample in offered.json()["samples"] if not sample["synthetic"]]
    assert own["name"].startswith("Picture 1")
    assert ask(guarded, f"/{own['url']}", None).status_code == 401
    assert ask(guarded, f"/{own['url']}", guarded.v1).content == PNG
    for name in ("2.png", "Doe%5EJane.PNG", "notes.txt", "..%2Fkeys"):
        assert ask(guarded, f"/page/own/{name}", guarded.v1).status_code == 404


def infer(guarded: Guarded, key: str | None) -> Any:
    credentials = grpc.ssl_channel_credentials(guarded.certificate)
    tensor = protocol.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(PNG)
    request = protocol.ModelInferRequest(model_name="chestct", inputs=[tensor])
    metadata = [(name.lower(), value) for name, value in bearer(key).items()]
    with grpc.secure_channel(guarded.server.grpc, credentials) as channel:
        return service.GRPCInferenceServiceStub(channel).ModelInfer(request, metadata=metadata, timeout=300)


def test_a_metric_says_when_the_certificate_ends(guarded: Guarded) -> None:
    text = get(f"{guarded.private}/metrics").text
    (end,) = re.findall(r'^chestct_certificate_end_timestamp_seconds\{protocol="grpc"\} (\S+)$', text, re.MULTILINE)
    assert float(end) == guarded.certificate_end


def test_grpc_over_tls_answers_only_requests_with_a_key_for_it(guarded: Guarded) -> None:
    assert infer(guarded, guarded.key).model_name == "chestct"
    for key, status, code in (
        (None, grpc.StatusCode.UNAUTHENTICATED, "unauthenticated: "),
        ("chestct_wrong", grpc.StatusCode.UNAUTHENTICATED, "unauthenticated: "),
        (guarded.v1, grpc.StatusCode.PERMISSION_DENIED, "forbidden: "),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            infer(guarded, key)
        assert caught.value.code() == status
        assert caught.value.details().startswith(code)


def test_the_health_of_grpc_needs_no_key(guarded: Guarded) -> None:
    credentials = grpc.ssl_channel_credentials(guarded.certificate)
    with grpc.secure_channel(guarded.server.grpc, credentials) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=""), timeout=300)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        assert service.GRPCInferenceServiceStub(channel).ServerReady(protocol.ServerReadyRequest(), timeout=300).ready


def test_a_failed_handshake_leaves_no_log_line_of_native_code(guarded: Guarded) -> None:
    host, port = guarded.server.grpc.split(":")
    with socket.create_connection((host, int(port)), timeout=300) as connection, contextlib.suppress(OSError):
        connection.sendall(b"no handshake\r\n\r\n")
        assert not connection.recv(1)
    ask(guarded, "/v1/model", guarded.v1)
    assert "andshake" not in guarded.server.log.read_text()


def test_the_log_names_the_key_of_a_request(guarded: Guarded) -> None:
    for route in ("/v1/predict", "/v2/models/chestct/infer", "/classify"):
        ask(guarded, route, guarded.key)
    ask(guarded, "/v1/model", guarded.v1)
    ask(guarded, "/v2", None)
    infer(guarded, guarded.key)
    expected = {(route, "ann") for route in ("/v1/predict", "/v2/models/{name}/infer", "/classify", GRPC)}
    expected |= {("/v1/model", "ben"), ("/v2", None)}

    def found(*codes: str) -> set[tuple[str, str | None]]:
        """Route and key of each request with one of these codes in the log."""
        lines = [json.loads(line) for line in guarded.server.log.read_text().splitlines() if line.startswith("{")]
        return {(line["route"], line.get("key")) for line in lines if line.get("code") in codes}

    wait_until(lambda: expected <= found("200", "OK", "401"), "all are logged")  # a line follows its answer
    assert {key for _, key in found("401")} == {None}


def test_private_routes_answer_on_their_port_alone(guarded: Guarded) -> None:
    for path in ("/metrics", "/schema.json"):
        assert get(guarded.server.url + path).status_code == 404
        assert get(guarded.private + path).status_code == 200
    assert post(f"{guarded.server.url}/classify", json={}).status_code == 404
    assert get(f"{guarded.private}/readyz").status_code == 200
    for path in ("/", "/v1/model", "/docs.json"):
        answer = get(guarded.private + path, headers=bearer(guarded.key))
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"
    assert ask(guarded, "/classify", guarded.key).status_code == 200
    # A request is counted after its answer.
    wait_until(lambda: 'route="/classify"' in get(f"{guarded.private}/metrics").text, "the request is counted")


def test_refusals_are_counted_under_their_route(guarded: Guarded) -> None:
    ask(guarded, "/v1/predict", None)
    series = 'chestct_requests_total{code="401",protocol="http",route="/v1/predict"}'
    wait_until(lambda: series in get(f"{guarded.private}/metrics").text, "the refusal is counted")


def test_bentomls_client_takes_the_key_as_its_token(guarded: Guarded) -> None:
    image = base64.b64encode(PNG).decode()
    with bentoml.SyncHTTPClient(guarded.private, token=guarded.key) as client:
        (outcome,) = client.classify(images=[image])
    assert outcome["label"] == "large_cell_carcinoma"
    with bentoml.SyncHTTPClient(guarded.private, token="wrong") as client, pytest.raises(BentoMLException):
        client.classify(images=[image])


def ask_until_both_workers_log(guarded: Guarded, key: str, words: str) -> set[int]:
    """The codes of simultaneous requests, sent until each worker has logged `words`. One worker may take many."""
    codes = set[int]()
    before = guarded.server.log.read_text().count(words)
    with ThreadPoolExecutor(8) as pool:

        def both_logged() -> bool:
            codes.update(pool.map(lambda _: ask(guarded, "/v1/predict", key).status_code, range(16)))
            return guarded.server.log.read_text().count(words) >= before + 2

        wait_until(both_logged, f"both workers log {words!r}")
    assert guarded.server.log.read_text().count(words) == before + 2
    return codes


def test_every_worker_reads_a_changed_key_file_and_keeps_its_keys_if_the_file_is_bad(guarded: Guarded) -> None:
    before = guarded.file.read_text()
    key, line = api_keys.new("eve")
    new = guarded.file.with_suffix(".new")
    new.write_text(before + line)
    new.rename(guarded.file)
    assert ask_until_both_workers_log(guarded, key, "read 3 API keys") == {200}
    guarded.file.write_text("no line of a key\n")
    assert ask_until_both_workers_log(guarded, key, "the API keys stay as they were") == {200}
    guarded.file.write_text(before)
    assert ask_until_both_workers_log(guarded, key, "read 2 API keys") == {401}
    log = guarded.server.log.read_text()
    assert key not in log
    assert guarded.key not in log


@pytest.mark.parametrize("path", ["/livez", "/v1/model", "/v2", "/v1/nothing", "/nothing", "/page/page.js", "/metrics"])
def test_every_answer_has_the_security_headers_and_cors_stays_closed(server: Server, path: str) -> None:
    origin = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    for verb in ("GET", "OPTIONS"):
        headers = httpx.request(verb, server.url + path, headers=origin, timeout=300).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize(
    ("setting", "text", "word"),
    [
        ("CHESTCT_API_KEYS_FILE", "nobody", "line 1: expected name:sha256"),
        ("CHESTCT_GRPC_CERTIFICATE", "", "both or none"),
    ],
)
def test_a_bad_key_file_ends_the_start_with_one_line(tmp_path: Path, setting: str, text: str, word: str) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    code = "import sys; sys.dont_write_bytecode = True; import service"
    environ = environment(tmp_path, **{setting: str(file)})
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert word in done.stderr
    assert "Traceback" not in done.stderr
