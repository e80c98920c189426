"""Fixtures of the tests of pipeline/core."""

import pytest

from pipeline.core.params import Params
from tests.server import ROOT


@pytest.fixture
def params() -> Params:
    """The project's parameters."""
    return Params.read(ROOT / "params.yaml")
