"""`make test-image`: a container with a frozen worker heals, and one that can't work ends and says why."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from load_tests.server import free_ports
from tests.container.test_container import BUILDER, IMAGE, OPTIONS, PHANTOM, READY_SECONDS, infer, is_ready, run

HEAL_SECONDS = 30
CALLS = 20
SHOWN_BYTES, SHOWN_LINES = 2048, 80
"""How much of the end of a log the policy FallbackToLogsOnError takes for the container's last message."""
PYTHON = ("/app/.venv/bin/python", "-c")
READY_WORKERS = """
import pathlib, sys
sys.path.insert(0, "/app/bento/src")
from serving.worker_states import WorkerStates
states = WorkerStates(2)
states.open(next(pathlib.Path("/dev/shm").glob("chestct-run-*")) / "states")
print(*(pid for pid in states.worker_beats if pathlib.Path(f"/proc/{pid}").exists()))
"""


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of a container, which is removed after the test."""
    monkeypatch.chdir(tmp_path)  # if the memory is used up, podman's monitor leaves a file where it was started
    name = f"chestct-faults-{os.getpid()}"
    yield name
    subprocess.run([BUILDER, "rm", "--force", name], capture_output=True, check=False, timeout=300)


def start(name: str, *options: str, **settings: str) -> tuple[str, str]:
    """Start a container of two workers with these options and settings. Returns its URL and its gRPC address."""
    http, rpc = free_ports(2)
    settings = {"CHESTCT_WORKERS": "2", "BENTOML_PORT": str(http), "CHESTCT_GRPC_PORT": str(rpc), **settings}
    environment = [word for key, value in settings.items() for word in ("--env", f"{key}={value}")]
    run("run", "--detach", "--name", name, *OPTIONS, *options, *environment, IMAGE)
    return f"http://127.0.0.1:{http}", f"127.0.0.1:{rpc}"


def end(name: str) -> tuple[int, list[str]]:
    """Wait for the container's end. Returns its exit code and the errors in the part of its log that Kubernetes shows.

    A process may log after the error of another, so an error need not be the last line.
    """
    code = int(run("wait", name))
    done = subprocess.run(
        [BUILDER, "logs", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True, timeout=300
    )
    shown = done.stdout[-SHOWN_BYTES:].decode(errors="replace").splitlines()[-SHOWN_LINES:]
    return code, [line for line in shown if line.lower().startswith("error: ")]


def ready_workers(name: str) -> list[str]:
    return run("exec", name, *PYTHON, READY_WORKERS).split()


def wait_for_two(name: str, url: str, seconds: float) -> list[str]:
    """Wait until the service is ready and has two workers. Returns their process ids."""
    deadline = time.monotonic() + seconds
    while not is_ready(url) or len(workers := ready_workers(name)) < 2:
        assert time.monotonic() < deadline, run("logs", name)
        time.sleep(0.5)
    return workers


def test_a_frozen_worker_is_replaced_within_half_a_minute(name: str) -> None:
    url, address = start(name)
    frozen, other = wait_for_two(name, url, READY_SECONDS)
    began = time.monotonic()
    run("exec", name, *PYTHON, f"import os, signal; os.kill({frozen}, signal.SIGSTOP)")
    seen = set()
    while frozen in ready_workers(name) or not is_ready(url):
        assert time.monotonic() < began + HEAL_SECONDS, run("logs", name)
        seen.add(httpx.get(f"{url}/readyz", timeout=30).status_code)
    print(f"well {time.monotonic() - began:.1f} s after a worker was frozen")
    assert 503 in seen, "it would have been taken out of its Service meanwhile"
    for _ in range(CALLS):
        assert httpx.post(f"{url}/v1/predict", files={"image": PHANTOM}, timeout=30).is_success
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            assert infer(channel).outputs
    assert other in wait_for_two(name, url, READY_SECONDS)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("CHESTCT_QUEUE_SIZE", "many", "CHESTCT_QUEUE_SIZE"),
        ("CHESTCT_MODEL", "chestct:absent", "chestct:absent"),
        ("CHESTCT_API_KEYS_FILE", "/run/absent", "CHESTCT_API_KEYS_FILE"),
    ],
)
def test_what_is_wrong_ends_the_container_with_its_name(name: str, setting: str, value: str, words: str) -> None:
    start(name, **{setting: value})
    code, errors = end(name)
    assert code == 1
    assert len(errors) == 1
    assert words in errors[0]


def test_too_little_memory_ends_the_container_with_the_reason(name: str) -> None:
    start(name, "--memory", "260m", "--memory-swap", "260m")  # enough for the supervisor, too little for two workers
    code, errors = end(name)
    assert code == 1
    assert errors == [
        "error: 5 workers in a row have died within 60 s of being ready: killed by the kernel because the memory limit "
        "of 260 MiB was used up; raise the limit or lower CHESTCT_WORKERS"
    ]
