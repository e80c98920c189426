"""A file is read as its kind is."""

import numpy as np
import pytest

from chestct import dicom, slice_file
from chestct.card import InputSpec
from chestct.image import decode, encode_png, from_dicom
from chestct.invalid_image import InvalidImage
from tests.dicom import dicom_file

pytestmark = pytest.mark.usefixtures("quiet_pydicom")
SPEC = InputSpec(height=64, width=64)
LEVELS = np.add.outer(np.arange(0, 120, 3), np.arange(0, 128, 2)).astype(np.uint8)


def test_each_kind_of_file_is_read_as_its_own_module_reads_it() -> None:
    png, ct = encode_png(LEVELS), dicom_file(LEVELS)
    for data, expected in ((png, decode(png, SPEC)), (ct, from_dicom(dicom.read(ct), SPEC))):
        found = slice_file.read(data, SPEC)
        assert np.array_equal(found.pixels, expected.pixels)
        assert found.facts.width == expected.facts.width == 64


@pytest.mark.parametrize(("data", "code"), [(b"", "empty_image"), (b"text", "undecodable_image")])
def test_anything_else_is_refused(data: bytes, code: str) -> None:
    with pytest.raises(InvalidImage) as refused:
        slice_file.read(data, SPEC)
    assert refused.value.code == code
