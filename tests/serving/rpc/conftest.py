"""Fixtures of the gRPC tests: a model, a server, and a server with a held engine."""

from collections.abc import Iterator

import pytest

from serving.rpc import message_reader
from tests.serving.gated_engine import GatedEngine
from tests.serving.rpc.server import Model, Server


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Server]:
    with model.serve() as running:
        yield running


@pytest.fixture
def gate(model: Model) -> Iterator[GatedEngine]:
    engine = GatedEngine(model.engine)
    yield engine
    engine.open.set()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server ends a message that stalls for half a second."""
    monkeypatch.setattr(message_reader, "LONGEST_PAUSE", 0.5)
    monkeypatch.setattr(message_reader, "_CHECK_SECONDS", 0.05)
