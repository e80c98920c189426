"""`make test-image`: runs the image like a pod. IMAGE names it, and CONTAINER_RUN_OPTIONS are passed to `run`.

The user, the capabilities, the limits, the volumes and the environment are read from the manifests, so what holds here
is what a cluster applies.
"""

import json
import os
import re
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from open_inference.grpc import protocol, service

import chestct
from image.pod import pod, run_options
from load_tests.server import ROOT, free_ports

IMAGE = os.environ.get("IMAGE", "chestct:latest")
BUILDER = os.environ.get("BUILDER", "podman")
OPTIONS = os.environ.get("CONTAINER_RUN_OPTIONS", "--network host").split()
NAME = f"chestct-test-{os.getpid()}"
READY_SECONDS = 300
PHANTOM = (ROOT / "serving/http/page/samples/drawn-mass.jpg").read_bytes()
BUILD = ROOT / "build"
TOOLS = {"cc", "gcc", "g++", "c++", "ld", "make", "cmake", "git", "strip", "uv", "uvx", "curl", "wget"}


def run(*command: str) -> str:
    return subprocess.run([BUILDER, *command], check=True, capture_output=True, text=True, timeout=300).stdout.strip()


class Running(NamedTuple):
    url: str
    grpc: str
    ready_seconds: float


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    http, rpc = free_ports(2)
    ports = ["--env", f"BENTOML_PORT={http}", "--env", f"CHESTCT_GRPC_PORT={rpc}"]
    options = run_options(pod(), tmp_path_factory.mktemp("pod"))
    started = time.monotonic()
    run("run", "--detach", "--name", NAME, *OPTIONS, *options, *ports, IMAGE)
    try:
        url = f"http://127.0.0.1:{http}"
        while not is_ready(url):
            assert time.monotonic() < started + READY_SECONDS, run("logs", NAME)
            time.sleep(0.05)
        yield Running(url, f"127.0.0.1:{rpc}", time.monotonic() - started)
    finally:
        run("rm", "--force", NAME)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=1).is_success
    except httpx.TransportError:
        return False


def infer(channel: grpc.Channel) -> Any:
    tensor = protocol.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(PHANTOM)
    request = protocol.ModelInferRequest(model_name="chestct", inputs=[tensor])
    return service.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)


def health(channel: grpc.Channel) -> int:
    return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30).status


def test_it_becomes_ready(running: Running) -> None:
    print(f"ready {running.ready_seconds:.1f} s after it was started")
    assert httpx.get(f"{running.url}/livez", timeout=30).is_success


def test_it_answers_over_http_and_grpc_alike(running: Running) -> None:
    answer = httpx.post(f"{running.url}/v1/predict", files={"image": PHANTOM}, timeout=60).raise_for_status().json()
    with grpc.insecure_channel(running.grpc) as channel:
        assert health(channel) == health_pb2.HealthCheckResponse.SERVING
        response = infer(channel)
    outputs = dict(zip((output.name for output in response.outputs), response.raw_output_contents, strict=True))
    probabilities = np.frombuffer(outputs["probabilities"], "<f4")
    assert list(answer["probabilities"].values()) == pytest.approx(probabilities.tolist(), abs=1e-4)


def test_it_holds_no_rights_and_its_root_is_read_only(running: Running) -> None:
    status = run("exec", NAME, "/app/.venv/bin/python", "-c", "print(open('/proc/1/status').read())")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    user = str(pod().spec["securityContext"]["runAsUser"])
    assert fields["Uid"].split() == [user] * 4
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    write = "open('/app/bento/x', 'w')"
    done = subprocess.run(
        [BUILDER, "exec", "--user", "0", NAME, "/app/.venv/bin/python", "-c", write], capture_output=True, check=False
    )
    assert b"Read-only file system" in done.stderr


def test_the_first_process_is_the_server(running: Running) -> None:
    command = run("exec", NAME, "/app/.venv/bin/python", "-c", "print(open('/proc/1/cmdline').read())")
    assert command.split("\0")[1:3] == ["/app/.venv/bin/bentoml", "serve"]


def test_its_labels_name_commit_model_and_purpose(running: Running) -> None:
    (about,) = json.loads(run("image", "inspect", IMAGE))
    labels = about["Config"]["Labels"]
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", labels["org.opencontainers.image.revision"])
    assert "Not a medical device" in labels["org.opencontainers.image.description"]
    assert labels["org.opencontainers.image.source"].startswith("https://")
    assert httpx.get(f"{running.url}/v2", timeout=30).json()["version"] == labels["org.opencontainers.image.version"]
    card = httpx.get(f"{running.url}/v1/model", timeout=30).json()
    assert card["lineage"]["model_sha256"] == labels["chestct.model.sha256"]
    answer = httpx.post(f"{running.url}/v1/predict", files={"image": PHANTOM}, timeout=60).json()
    assert answer["model"] == labels["chestct.model.tag"]


@pytest.mark.skipif("TAG" not in os.environ, reason="needs TAG, which the release workflow sets")
def test_the_tag_of_a_release_is_its_version() -> None:
    assert os.environ["TAG"] == f"v{chestct.__version__}"


def test_no_tool_is_in_it_that_only_a_build_needs() -> None:
    files = (BUILD / "image.txt").read_text().splitlines()
    assert "app/.venv/bin/bentoml" in files
    assert not [path for path in files if Path(path).parent.name == "bin" and Path(path).name in TOOLS]
    assert not [
        path for path in files if "/.cache/" in path or path.startswith("app/.venv/lib/python3.11/site-packages/pip/")
    ]


def test_it_adds_at_most_360_mb_to_its_base() -> None:
    size = 0
    with tarfile.open(BUILD / "image.tar") as image:
        (manifest,) = json.load(image.extractfile("manifest.json"))  # type: ignore[arg-type]
        for name in manifest["Layers"]:
            with tarfile.open(fileobj=image.extractfile(name)) as layer:
                size += sum(member.size for member in layer if member.name.startswith("app/"))
    assert 200e6 < size <= 360e6
    print(f"{size / 1e6:.0f} MB beside its base")


def test_the_bill_holds_every_pinned_package_that_is_installed() -> None:
    parts = json.loads((BUILD / "image.cdx.json").read_text())["components"]
    versions = {part["purl"].partition("?")[0] for part in parts if "purl" in part}
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements/serving.txt").read_text(), re.MULTILINE)
    found = [(name, version) for name, version in pins if f"pkg:pypi/{name}@{version}" in versions]
    assert len(found) > 0.9 * len(pins)  # the others are for other platforms and Pythons
    assert {"bentoml", "openvino", "grpcio"} <= {name for name, _ in found}


def test_a_stop_answers_all_that_was_asked_and_ends_by_itself(running: Running) -> None:
    """This test is the last one, because it ends the container."""
    with ThreadPoolExecutor(16) as pool, grpc.insecure_channel(running.grpc) as channel:
        assert health(channel) == health_pb2.HealthCheckResponse.SERVING
        asked = [
            pool.submit(httpx.post, f"{running.url}/v1/predict", files={"image": PHANTOM}, timeout=60)
            for _ in range(16)
        ]
        time.sleep(0.2)  # the requests are under way
        run("kill", "--signal", str(int(signal.SIGTERM)), NAME)
        assert [answer.result().status_code for answer in asked] == [200] * 16
    grace = pod().grace_seconds
    started = time.monotonic()
    assert (
        subprocess.run([BUILDER, "wait", NAME], capture_output=True, check=True, timeout=grace).stdout.strip() == b"0"
    )
    print(f"ended {time.monotonic() - started:.1f} s after the last answer")
