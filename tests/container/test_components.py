"""`make test-image`: runs the image as a pod with the components `api-keys` and `tls`."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from image.pod import pod, run_options
from load_tests.server import ROOT, free_ports
from tests.container import test_container as plain

# requirements/image.txt has no cryptography, which makes the certificate.
certificates = pytest.importorskip("tests.certificates", reason="no cryptography here; the development set has it")

NAME = f"chestct-test-components-{os.getpid()}"


class Running(NamedTuple):
    url: str
    grpc: str
    certificate: bytes
    key: str


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the Secrets' files: a certificate, and a key's hash with the key beside it. Everybody may read them."""
    folder = tmp_path_factory.mktemp("secrets")
    for name in ("chestct-grpc-tls", "chestct-keys"):
        (folder / name).mkdir()
    certificates.write_certificate(folder / "chestct-grpc-tls/tls.crt", folder / "chestct-grpc-tls/tls.key")
    command = [sys.executable, "-m", "serving.api_keys", "new", "test"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (folder / "chestct-keys/keys").write_text(done.stdout, encoding="utf-8")
    (key,) = [word for word in done.stderr.split() if len(word) > 40]
    (folder / "key").write_text(key, encoding="utf-8")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o444)
    return folder


@pytest.fixture(scope="module")
def running(secrets: Path) -> Iterator[Running]:
    http, rpc = free_ports(2)
    ports = ["--env", f"BENTOML_PORT={http}", "--env", f"CHESTCT_GRPC_PORT={rpc}"]
    options = run_options(pod("api-keys", "tls"), secrets)
    try:
        plain.run("run", "--detach", "--name", NAME, *plain.OPTIONS, *options, *ports, plain.IMAGE)
        url, end = f"http://127.0.0.1:{http}", time.monotonic() + plain.READY_SECONDS
        while not plain.is_ready(url):
            assert time.monotonic() < end, plain.run("logs", NAME)
            time.sleep(0.05)
        certificate = (secrets / "chestct-grpc-tls/tls.crt").read_bytes()
        yield Running(url, f"127.0.0.1:{rpc}", certificate, (secrets / "key").read_text(encoding="utf-8"))
    finally:
        plain.run("rm", "--force", NAME)


def test_the_probe_over_http_sees_that_it_is_ready(running: Running) -> None:
    probe = pod("api-keys", "tls").container["readinessProbe"]["httpGet"]
    assert httpx.get(running.url + probe["path"], timeout=30).is_success


def test_a_client_without_a_key_is_refused(running: Running) -> None:
    answer = httpx.post(f"{running.url}/v1/predict", files={"image": plain.PHANTOM}, timeout=60)
    assert answer.status_code == 401


def test_grpc_has_the_secrets_certificate_and_takes_the_key(running: Running) -> None:
    credentials = grpc.ssl_channel_credentials(running.certificate)
    with grpc.secure_channel(running.grpc, credentials) as channel:
        assert plain.health(channel) == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as refused:
            plain.infer(channel)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    both = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(running.key))
    with grpc.secure_channel(running.grpc, both) as channel:
        assert plain.infer(channel).model_name == "chestct"


def test_the_kubelets_probe_of_the_base_would_fail(running: Running) -> None:
    with grpc.insecure_channel(running.grpc) as channel, pytest.raises(grpc.RpcError) as failed:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
