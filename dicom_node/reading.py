"""Reads received slices within bounds of memory.

pydicom inflates a compressed file whatever its size becomes, and makes an object of each element, however many there
are. So a small instance could take all memory.
"""

from io import BytesIO
from typing import Final

from pydicom import FileDataset
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_partial

from chestct.dicom_format import read_elements
from chestct.invalid_image import undecodable

_PIXEL_DATA: Final = 0x7FE0_0010
_HEADER_BYTES: Final = 2 * 1024 * 1024
"""Most bytes of the elements beside the pixels. A slice has some kilobytes. Each eight bytes may become an object."""

_META: Final = b"DICM\x02\0\0\0UL\x04\0"
"""Bytes before the length of the meta information, which the node's own library writes."""
_AFTER_META: Final = 144
"""Position from which on this length counts."""
_OTHER_GROUPS: Final = (b"\0\0", b"\x02\0")
"""Groups of commands and of meta information, which no data set has. pydicom would obey them."""


def read(data: bytes) -> FileDataset:
    """Read a DICOM file up to its pixels. What follows them is left out, as the service does.

    Raises what pydicom raises, and InvalidImage for commands or meta information within the data set, and for too many
    elements, bytes beside the pixels, or bytes after inflating.
    """
    read_elements(data, (), ())
    begins = _AFTER_META + int.from_bytes(data[_AFTER_META - 4 : _AFTER_META], "little")
    if data[: _AFTER_META - 4].endswith(_META) and data[begins : begins + 2] in _OTHER_GROUPS:
        raise undecodable("expected a data set without commands and meta information")
    pixels_passed = False

    def stop(tag: int, *_: object) -> bool:
        nonlocal pixels_passed
        if pixels_passed:
            return True
        pixels_passed = tag == _PIXEL_DATA
        return False

    slice_ = read_partial(BytesIO(data), stop)
    unparsed = map(slice_.get_item, set(slice_.keys()) - {_PIXEL_DATA})
    if sum(len(one.value or b"") for one in unparsed if isinstance(one, RawDataElement)) > _HEADER_BYTES:
        raise undecodable("expected fewer bytes beside the pixels")
    return slice_
