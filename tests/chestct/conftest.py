"""What the tests of DICOM files share."""

import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture
def quiet_pydicom() -> Iterator[None]:
    """Without pydicom's warnings of what is wrong in a file, which is what is tested."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pydicom")
        yield
