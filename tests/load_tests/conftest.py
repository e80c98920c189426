"""What the load tests' own tests share."""

from pathlib import Path

import pytest

from tests.server import environment, import_tiny_model


@pytest.fixture
def tiny_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this test starts finds the tiny model and no other."""
    home = tmp_path / "bentoml"
    import_tiny_model(home)
    for name, value in environment(home).items():
        monkeypatch.setenv(name, value)
