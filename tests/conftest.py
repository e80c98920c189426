"""What tests of several folders share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.models import ModelStore

from tests.server import Server, import_tiny_model, serve


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real service with the tiny model, in two workers."""
    home = tmp_path_factory.mktemp("server") / "bentoml"
    tag = import_tiny_model(home)
    with serve(home, tag, CHESTCT_WORKERS="2") as running:
        yield running


@pytest.fixture
def model_store(tmp_path: Path) -> Iterator[Path]:
    """The folder of an empty model store; BentoML reads BENTOML_HOME once a process, so the store is replaced."""
    folder = tmp_path / "bentoml" / "models"
    folder.mkdir(parents=True)
    BentoMLContainer.model_store.set(ModelStore(folder))
    yield folder
    BentoMLContainer.model_store.reset()
