"""Fixtures and the order of the tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.models import ModelStore

from tests.server import Server, environment, import_tiny_model, serve

SLOWEST = (
    "test_end_to_end.py", "test_dvc.py", "test_backbones.py", "test_page.py", "test_store.py", "test_report.py",
    "test_page_queue.py", "load_tests/test_run.py", "test_phantoms.py", "test_architecture.py", "test_openapi.py",
    "test_service.py",
)  # fmt: skip
"""The slowest test files. They start first, so that no process has a long file left at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        file = item.nodeid.partition("::")[0]
        return next((rank for rank, name in enumerate(SLOWEST) if file.endswith(f"/{name}")), len(SLOWEST))

    items.sort(key=rank)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real service with the tiny model and two workers."""
    home = tmp_path_factory.mktemp("server") / "bentoml"
    tag = import_tiny_model(home)
    with serve(home, tag, CHESTCT_WORKERS="2") as running:
        yield running


@pytest.fixture
def model_store(tmp_path: Path) -> Iterator[Path]:
    """The folder of an empty model store. BentoML reads BENTOML_HOME once in a process, so the store is replaced."""
    folder = tmp_path / "bentoml" / "models"
    folder.mkdir(parents=True)
    BentoMLContainer.model_store.set(ModelStore(folder))
    yield folder
    BentoMLContainer.model_store.reset()


@pytest.fixture
def tiny_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of this test use a model store that holds only the tiny model."""
    home = tmp_path / "bentoml"
    import_tiny_model(home)
    for name, value in environment(home).items():
        monkeypatch.setenv(name, value)
