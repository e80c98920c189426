"""What tests of several folders share."""

from collections.abc import Iterator

import pytest

from tests.server import Server, import_tiny_model, serve


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real service with the tiny model, in two workers."""
    home = tmp_path_factory.mktemp("server") / "bentoml"
    tag = import_tiny_model(home)
    with serve(home, tag, CHESTCT_WORKERS="2") as running:
        yield running
