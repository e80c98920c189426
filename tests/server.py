"""Starts the real service with a model store of its own, which holds the tiny model."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.models import ModelStore

from chestct import store
from chestct.store import CARD
from load_tests import server
from tests.graphs import tiny_model

ROOT = server.ROOT

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here (Debian: apt-get install curl)")


class Server(NamedTuple):
    url: str
    grpc: str
    """host:port."""
    tag: str
    """Tag of the imported model."""
    process: subprocess.Popen[bytes]
    """BentoML's supervisor."""
    log: Path


@contextlib.contextmanager
def model_store_at(folder: Path) -> Iterator[None]:
    """Make this folder the model store. BentoML reads BENTOML_HOME once in a process, so the store is replaced."""
    with BentoMLContainer.model_store.patch(ModelStore(folder)):
        yield


def environment(home: Path, **settings: str) -> dict[str, str]:
    """Return this process's environment with another BentoML home, and with these settings alone."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CHESTCT_", "BENTOML_"))}
    return {**inherited, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", **settings}


def import_tiny_model(home: Path, data_source: Literal["local", "synthetic"] = "local", run_id: str = "5eed") -> str:
    """Import the tiny model into the store of this home. Returns its tag. Another `run_id` makes another model."""
    folder = home.with_name(f"{home.name}-model")
    card = tiny_model(folder, data_source=data_source)
    card.model_copy(update={"lineage": card.lineage.model_copy(update={"run_id": run_id})}).write(folder / CARD)
    return import_model(home, folder)


def import_model(home: Path, folder: Path) -> str:
    """Import the model in `folder` into the store of this home. Returns its tag."""
    models = home / "models"
    models.mkdir(parents=True, exist_ok=True)
    with model_store_at(models):
        return store.import_model(folder)


def bentoml(*command: str, home: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command `bentoml` with this home."""
    return subprocess.run(
        [sys.executable, "-m", "bentoml", *command],
        cwd=ROOT,
        env=environment(home, **settings),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@contextlib.contextmanager
def serve(
    home: Path,
    tag: str,
    *,
    what: str = ".",
    cwd: Path = ROOT,
    drain_seconds: float = 0,
    ports: Sequence[int] = (),
    python: Sequence[str] = (sys.executable,),
    **settings: str,
) -> Iterator[Server]:
    """Run `bentoml serve WHAT` in `cwd` with this home. Yields when it is ready, and ends it with all its workers."""
    log = home.with_name(f"{home.name}-{what.replace(':', '-')}.log")
    variables = environment(home, **settings)
    with server.serve(
        what, cwd=cwd, environment=variables, log=log, drain_seconds=drain_seconds, ports=ports, python=python
    ) as running:
        yield Server(running.url, running.grpc, tag, running.process, running.log)
