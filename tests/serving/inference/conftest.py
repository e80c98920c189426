"""Fixtures of the tests of the queue."""

from collections.abc import Iterator

import pytest

from tests.serving.inference.gate import Gate


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()
