"""Runs on an MLflow server: passwords, wrong addresses, and what no server answers."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import pytest

from load_tests.server import free_ports
from pipeline.core import tracking, tracking_address
from pipeline.core.errors import StageError, TrackingError
from pipeline.core.params import Params
from pipeline.images.manifest import Manifest
from tests.pipeline.core.runs import DIGEST, finished, start
from tests.server import ROOT
from tests.waiting import wait_until


@pytest.fixture
def server(tracked: Path) -> Iterator[str]:
    """The address of a tracking server that asks for a password."""
    (tracked / "auth.ini").write_text(
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = sqlite:///{tracked}/auth.db\n"
        "admin_username = ann\n"
        "admin_password = correct-horse-battery\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
        encoding="utf-8",
    )
    (port,) = free_ports(1)
    (tracked / tracking.STORE).rename(tracked / "server.db")
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{tracked}/server.db", "--artifacts-destination", f"{tracked}/kept"]
    environment = {
        **os.environ,
        "MLFLOW_AUTH_CONFIG_PATH": str(tracked / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "for this test",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (tracked / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: process.poll() is not None or _answers(f"{address}/health"), "the server answers")
        assert process.poll() is None, (tracked / "server.log").read_text(encoding="utf-8")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=300)


def _answers(address: str) -> bool:
    try:
        with urlopen(address, timeout=2):
            return True
    except OSError:
        return False


@pytest.mark.long
def test_a_server_with_a_password_takes_runs_and_a_wrong_password_ends_in_one_line(
    server: str, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # so that the end of the test removes what `.env` sets
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    tracking_address.DOTENV.write_text(
        f"MLFLOW_TRACKING_URI={server}\nMLFLOW_TRACKING_USERNAME=ann\nMLFLOW_TRACKING_PASSWORD=correct-horse-battery\n",
        encoding="utf-8",
    )
    with pytest.raises(StageError, match=re.escape(server)) as caught:
        start(params)
    assert "401" in str(caught.value)
    assert "MLFLOW_TRACKING_URI" in str(caught.value)
    assert "\n" not in str(caught.value)

    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    run_id = finished(params, 0.75)
    note = tmp_path / "note.txt"
    note.write_text("kept", encoding="utf-8")
    tracking.log_artifact(run_id, note)
    note.unlink()
    best = tracking.best_run(DIGEST, 10)
    assert best is not None
    assert best.run_id == run_id
    assert tracking.fetch(run_id, "note.txt", tmp_path).read_text(encoding="utf-8") == "kept"
    assert not tracking.STORE.exists()
    with sqlite3.connect("server.db") as database:
        assert database.execute("select run_uuid from runs").fetchall() == [(run_id,)]


PW = "MARKER-correct/horse@battery"
QUOTED = "MARKER-correct%2Fhorse%40battery"


@pytest.mark.long
def test_a_password_in_the_address_opens_the_server_and_is_never_printed(
    server: str, params: Params, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for password, works in (("correct-horse-battery", True), ("MARKER-wrong", False)):
        for name in (tracking_address.USERNAME, tracking_address.PASSWORD):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.replace("//", f"//ann:{password}@"))
        if works:
            run_id = finished(params, 0.75)
            best = tracking.best_run(DIGEST, 10)
            assert best is not None
            assert best.run_id == run_id
            tracking.log_artifact(run_id, tracking_address.DOTENV.parent / "auth.ini")
            assert tracking.fetch(run_id, "auth.ini", tmp_path).exists()
        else:
            with pytest.raises(StageError, match="401") as caught:
                start(params)
            assert password not in str(caught.value)
        said = capfd.readouterr()
        assert password not in said.out + said.err


@pytest.mark.parametrize("where", ["environment", ".env"])
def test_a_password_in_the_address_is_not_printed_if_no_server_answers(
    workspace: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs a process, so that warnings of MLflow and its libraries count too."""
    shutil.copyfile(ROOT / "params.yaml", workspace / "params.yaml")
    (workspace / "data").mkdir()
    Manifest(digest=DIGEST, files=()).write()
    uri = f"http://ann:{QUOTED}@127.0.0.1:9"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"PYTHONPATH": str(ROOT), "MLFLOW_LOGGING_LEVEL": "DEBUG"}
    if where == "environment":
        environment["MLFLOW_TRACKING_URI"] = uri
    else:
        tracking_address.DOTENV.write_text(f"MLFLOW_TRACKING_URI={uri}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pipeline.store"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert "http://127.0.0.1:9" in done.stderr.splitlines()[-1]
    assert "MARKER" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("postgresql://ann:MARKER@127.0.0.1/db", "Python package psycopg is not installed"),
        ("gopher://ann:MARKER@host", "gopher://host"),
        ("http://ann:MARKER@[host", "MLFLOW_TRACKING_USERNAME"),
        ("http://ann:MARKER/slash@host", "MLFLOW_TRACKING_USERNAME"),
        ("http://", "MLFLOW_TRACKING_USERNAME"),
        ("a folder of runs", "a folder of runs"),
        ("sqlite:////dev/null/mlflow.db", "/dev/null"),
        ("sqlite:///text.db", "file is not a database"),
    ],
)
def test_an_address_that_cannot_be_used_ends_in_one_line(
    workspace: Path,
    params: Params,
    uri: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)  # as if PostgreSQL's driver were not installed
    (workspace / "text.db").write_text("no database, but a text that is longer than the header of one would be\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError) as caught:
        tracking.best_run(DIGEST, 10)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    said = capfd.readouterr()
    assert "MARKER" not in message + said.out + said.err
    assert "Traceback" not in said.err


def test_an_address_without_a_server_fails_soon_and_is_named(
    workspace: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    slept: list[float] = []
    monkeypatch.setattr("urllib3.util.retry.time", SimpleNamespace(sleep=slept.append))
    with pytest.raises(StageError, match=r"http://127\.0\.0\.1:9"):
        start(params)
    assert 0 < sum(slept) < 20, "the seconds between tries"
