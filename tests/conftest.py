"""Fixtures and the order of the tests."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server import ROOT, Server, environment, import_tiny_model, model_store_at, serve
from tests.small_disk import SmallDisk, mount
from tests.waiting import PATIENCE, wait_until

MOTO = ROOT / ".venv-s3" / "bin" / "moto_server"
"""An S3 server in Python, in an environment of its own."""

SLOWEST = (
    "test_end_to_end.py", "test_dvc.py", "test_workers.py", "test_fitting.py", "chestct/test_engine.py",
    "test_report.py", "pipeline/test_drift.py", "test_prepare.py", "test_interrupts.py", "test_page.py",
    "test_steps.py", "load_tests/test_run.py", "test_architecture.py", "archive/test_command.py", "test_service.py",
)  # fmt: skip
"""The slowest test files. They start first, so that no process has a long file left at the end."""


def pytest_configure() -> None:
    """Find the programs of this environment, such as kubectl, also if the tests are not run by `make`.

    Ask servers on this machine without a proxy, also if the user has one.
    """
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    exempt = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(filter(None, (exempt, "localhost", "127.0.0.1")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        file = item.nodeid.partition("::")[0]
        return next((rank for rank, name in enumerate(SLOWEST) if file.endswith(f"/{name}")), len(SLOWEST))

    items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    """Say how a process of the tests died. -9 is the kernel's SIGKILL, for lack of memory for instance."""
    if error:
        status = node.gateway._io.popen.wait(PATIENCE)
        print(f"\nThe process {node.gateway.id} of the tests ended with status {status}.")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real service with the tiny model and two workers."""
    home = tmp_path_factory.mktemp("server") / "bentoml"
    tag = import_tiny_model(home)
    with serve(home, tag, CHESTCT_WORKERS="2") as running:
        yield running


@pytest.fixture
def model_store(tmp_path: Path) -> Iterator[Path]:
    """The folder of an empty model store, which is the one of this process."""
    folder = tmp_path / "bentoml" / "models"
    folder.mkdir(parents=True)
    with model_store_at(folder):
        yield folder


@pytest.fixture
def tiny_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands of this test use a model store that holds only the tiny model, in this process and in new ones."""
    home = tmp_path / "bentoml"
    import_tiny_model(home)
    for name, value in environment(home).items():
        monkeypatch.setenv(name, value)
    with model_store_at(home / "models"):
        yield


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 128 KiB."""
    (tmp_path / "disk").mkdir()
    with mount(tmp_path / "disk", kilobytes=128) as disk:
        yield disk


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a client of a real S3 server on this machine. The server has the bucket `scans`."""
    if not (MOTO.parents[1] / ".s3").exists():  # with it, a missing server is a fault
        pytest.skip("no moto here; make .venv-s3/.s3")
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("w") as stream, subprocess.Popen([MOTO, "--port", "0"], stdout=stream, stderr=stream) as server:
        wait_until(lambda: "Running on" in log.read_text(), "moto listens")
        url = log.read_text().partition("Running on ")[2].split()[0]
        httpx.put(f"{url}/scans", timeout=PATIENCE).raise_for_status()
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }
        server.terminate()


@pytest.fixture
def bucket(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A place of this test alone."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    return f"s3://scans/{request.node.name}"
