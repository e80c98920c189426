"""Shared fixture of the DICOM tests."""

import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture
def quiet_pydicom() -> Iterator[None]:
    """Silence pydicom's warnings about broken files, which the tests need."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pydicom")
        yield
