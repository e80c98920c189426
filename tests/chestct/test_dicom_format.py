"""A DICOM file is known by its content."""

import numpy as np

from chestct.dicom_format import is_dicom
from tests.dicom import dicom_file


def test_a_file_is_known_by_its_content() -> None:
    assert is_dicom(dicom_file(np.zeros((8, 8), np.uint8)))
    assert not is_dicom(b"DICM" + bytes(200))
