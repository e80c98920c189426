"""Fixtures of the HTTP tests: the tiny model behind a gate, clients and servers of an app, and a visit of the page."""

import asyncio
import logging
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from chestct.card import ModelCard
from chestct.engine import Engine
from chestct.store import GRAPH
from serving.http.app import create_app
from serving.http.rendered import Rendered
from serving.inference.classifier import Classifier
from tests.browser import WIDE, Visit
from tests.graphs import tiny_model
from tests.server import Server
from tests.serving.gated_engine import GatedEngine
from tests.serving.http.client import SETTINGS, TAG, Client
from tests.serving.http.connection_server import Listening, listening


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[GatedEngine, ModelCard]:
    folder = tmp_path_factory.mktemp("model")
    card = tiny_model(folder)
    return GatedEngine(Engine(folder / GRAPH, threads=1, batch_sizes=(1, 2)), largest_batch=2), card


@pytest.fixture(scope="module")
def client(model: tuple[GatedEngine, ModelCard]) -> Iterator[Client]:
    app = create_app(SETTINGS)
    with asyncio.Runner() as runner:
        classifier = Classifier(*model, TAG, SETTINGS)  # type: ignore[arg-type]
        runner.run(classifier.warm_up())
        app.state.classifier = classifier
        app.state.document = Rendered({"openapi": "3.1.0"})
        yield Client(app, runner.get_loop())
        runner.run(classifier.close())


@pytest.fixture(scope="module")
def bounded() -> Iterator[Listening]:
    """A server whose connections are bounded."""
    with listening() as running:
        yield running


@pytest.fixture
def nothing_fails(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check that neither the event loop nor uvicorn logged an error."""
    yield
    assert not [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]


@pytest.fixture
def visit(request: pytest.FixtureRequest, browser: Browser, server: Server) -> Iterator[Visit]:
    """A visit of the page on a wide screen, or of the size that the test is parametrised with."""
    visit = Visit(browser, server.url, getattr(request, "param", WIDE))
    yield visit
    visit.close()
