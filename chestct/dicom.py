"""Converts the CT slice in a DICOM file to grey levels.

The decoders of compressed pixels are C and C++ and crash on hostile files, so the service runs this in the guarded
process (chestct.guarded_decoding). No value of the header leaves this module, not even in an error message.
"""

import struct
import warnings
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.datadict import tag_for_keyword
from pydicom.pixels.decoders.base import get_decoder

from chestct.dicom_format import DicomFile, read_elements
from chestct.dicom_frame import check_frame, remove_padding
from chestct.invalid_image import InvalidImage, check_size, undecodable

CENTER: Final = -350
WIDTH: Final = 1500
"""The window in Hounsfield units: from air outside the body to bright soft tissue (-1100 to 400)."""

_NATIVE: Final = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
)
_DECODERS: Final = {
    uid.RLELossless: "pydicom",
    uid.JPEGBaseline8Bit: "pillow",
    uid.JPEGExtended12Bit: "pillow",
    uid.JPEGLossless: "gdcm",
    uid.JPEGLosslessSV1: "gdcm",
    uid.JPEGLSLossless: "gdcm",
    uid.JPEGLSNearLossless: "gdcm",
    uid.JPEG2000Lossless: "pylibjpeg",
    uid.JPEG2000: "pylibjpeg",
    uid.HTJ2KLossless: "pylibjpeg",
    uid.HTJ2KLosslessRPCL: "pylibjpeg",
    uid.HTJ2K: "pylibjpeg",
}
"""pydicom's plugin for each supported compressed transfer syntax."""


def _tags(*keywords: str) -> dict[str, int]:
    return {keyword: tag_for_keyword(keyword) or 0 for keyword in keywords}


_ELEMENTS: Final = _tags(
    *("ImageType", "Modality", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleIntercept", "RescaleSlope", "LUTDescriptor", "LUTData"),
)
"""All elements that are read. None of them identifies a patient."""
_CONTAINERS: Final = _tags(
    *("ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    "PixelValueTransformationSequence",
)
"""Sequences that may hold some of them."""

_ONE_FRAME: Final = b"\xfe\xff\x00\xe0" + bytes(4) + b"\xfe\xff\x00\xe0"
"""Bytes before the length of a compressed picture: an empty offset table and the tag of an item."""


class _Header:
    """The elements of a file as numbers and words. Raises InvalidImage for a missing or wrong one."""

    def __init__(self, file: DicomFile) -> None:
        self._values = file.values
        self._order = "<" if file.little_endian else ">"

    def value(self, keyword: str) -> bytes:
        """The value of an element; empty if it is missing."""
        return self._values.get(_ELEMENTS[keyword], b"")

    def missing(self, keyword: str) -> InvalidImage:
        got = "in which it is empty" if _ELEMENTS[keyword] in self._values else "without it"
        return _unsupported(f"the element {_name(keyword)}, got a file {got}")

    def words(self, keyword: str) -> list[str]:
        """The words of a text element; none if it is missing or empty."""
        text = self.value(keyword).decode("latin-1")
        return [word.strip(" \0") for word in text.split("\\")] if text.strip(" \0") else []

    def decimal(self, keyword: str) -> float:
        words = self.words(keyword)
        if not words:
            raise self.missing(keyword)
        try:
            return float(words[0])
        except ValueError:
            raise undecodable(f"the DICOM file's {_name(keyword)} is no number") from None

    def binary(self, keyword: str, default: int | None = None, *, signed: bool = False) -> int:
        """A number of two bytes. If it is missing or empty, `default`, if given."""
        value = self.value(keyword)
        if len(value) >= 2:
            return int.from_bytes(value[:2], "little" if self._order == "<" else "big", signed=signed)
        if default is None:
            raise self.missing(keyword)
        return default

    def to_units(self, values: NDArray[np.integer], *, signed: bool) -> NDArray[np.float64]:
        """Convert stored values to Hounsfield units by the Modality LUT, or by Rescale Slope and Intercept."""
        data, described = self.value("LUTData"), self.value("LUTDescriptor")
        if not data:
            return values.astype(np.float64) * self.decimal("RescaleSlope") + self.decimal("RescaleIntercept")
        if not described:
            raise self.missing("LUTDescriptor")
        entries, first, bits = struct.unpack(self._order + ("HhH" if signed else "HHH"), described)
        entries = entries or 65_536
        kind = "u1" if bits == 8 and len(data) < 2 * entries else "u2"
        table = np.frombuffer(data, self._order + kind, entries).astype(np.float64)
        return np.asarray(table[np.clip(values - first, 0, entries - 1)])

    def padding(self, *, signed: bool) -> tuple[int, int] | None:
        """Range of the stored values that are padding; None if there are none."""
        if not self.value("PixelPaddingValue"):
            return None
        value = self.binary("PixelPaddingValue", signed=signed)
        limit = self.binary("PixelPaddingRangeLimit", value, signed=signed)
        return min(value, limit), max(value, limit)


def read(data: bytes) -> NDArray[np.uint8]:
    """Read the CT slice in a DICOM file as grey levels, uint8 [rows, columns], 0 to 255.

    The Hounsfield units become grey through one linear window, of CENTER and WIDTH (DICOM PS3.3 C.11.2.1.2).
    MONOCHROME1 is inverted after it, and padding is black. Raises MemoryError, and InvalidImage: `image_too_large`,
    `undecodable_image`, or `unsupported_dicom` for a file without a single CT slice in a supported transfer syntax.
    """
    try:
        return _read(data)
    except (InvalidImage, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - pydicom and its decoders raise many kinds, and quote the header
        raise undecodable("the DICOM file is truncated or corrupt") from None


def _read(data: bytes) -> NDArray[np.uint8]:
    file = read_elements(data, frozenset(_ELEMENTS.values()), frozenset(_CONTAINERS.values()))
    header = _Header(file)
    modality = header.words("Modality")
    if modality and modality != ["CT"]:
        raise _unsupported("the modality CT, got another")
    if "LOCALIZER" in header.words("ImageType"):
        raise _unsupported("a slice, got a localizer")
    if not (file.pixels or file.frame):
        raise undecodable("the DICOM file has no pixels, or was cut off before them")
    if not modality:
        raise header.missing("Modality")
    if header.words("NumberOfFrames") and header.decimal("NumberOfFrames") > 1:
        raise _unsupported("one frame, got several")
    if header.binary("SamplesPerPixel", 1) != 1:
        raise _unsupported("grey levels, got colours")
    rows, columns = header.binary("Rows"), header.binary("Columns")
    check_size(columns, rows, got="a DICOM file of more")
    inverted = _is_inverted(header)
    signed = header.binary("PixelRepresentation") == 1
    header.to_units(np.zeros(1, np.int64), signed=signed)  # raises for missing elements before anything is decoded

    stored = _decode(file, rows, columns, *_bits(header), signed=signed)
    low, high = int(stored.min()), int(stored.max())
    units = header.to_units(np.arange(low, high + 1), signed=signed)  # fewer values than pixels
    if not np.isfinite(units).all():
        raise undecodable("the DICOM file's pixels have no finite Hounsfield units")
    share = np.clip((units - (CENTER - 0.5)) / (WIDTH - 1) + 0.5, 0, 1)
    table = np.rint(255 * (1 - share if inverted else share)).astype(np.uint8)
    if padding := header.padding(signed=signed):
        table[max(0, padding[0] - low) : max(0, padding[1] - low + 1)] = 0
    grey = np.empty(stored.shape, np.uint8)
    for row, values in enumerate(stored):
        grey[row] = table[values.astype(np.intp) - low]
    return grey


def _is_inverted(header: _Header) -> bool:
    match header.words("PhotometricInterpretation"):
        case ["MONOCHROME1"]:
            return True
        case ["MONOCHROME2"]:
            return False
        case []:
            raise header.missing("PhotometricInterpretation")
    raise _unsupported(f"MONOCHROME1 or MONOCHROME2 as {_name('PhotometricInterpretation')}, got another")


def _bits(header: _Header) -> tuple[int, int]:
    """Allocated and stored bits of a pixel. The stored bits must be the lowest."""
    allocated = header.binary("BitsAllocated")
    stored = header.binary("BitsStored", header.binary("HighBit", allocated - 1) + 1)
    if allocated in (8, 16) and 1 <= stored <= allocated and header.binary("HighBit", stored - 1) == stored - 1:
        return allocated, stored
    raise _unsupported("8 or 16 bits a pixel with the stored ones lowest, got another layout")


def _decode(
    file: DicomFile, rows: int, columns: int, allocated: int, stored: int, *, signed: bool
) -> NDArray[np.integer]:
    """Decode the stored values, [rows, columns]."""
    plugin = ""
    if file.syntax is None and file.frame:
        raise _unsupported("the element TransferSyntaxUID (0002,0010), got a file without it")
    if file.syntax is None or file.syntax in _NATIVE:
        syntax = uid.ExplicitVRLittleEndian if file.little_endian else uid.ExplicitVRBigEndian
        size = rows * columns * allocated // 8
        if file.pixels is None:
            raise undecodable("the DICOM file's pixels are compressed, against what its transfer syntax says")
        if not size <= len(file.pixels) < 2 * size:
            raise undecodable("the DICOM file's pixels are more or fewer than its Rows and Columns say")
        source = file.pixels[: size + size % 2]  # padding follows
    else:
        syntax = uid.UID(file.syntax)
        if syntax not in _DECODERS:
            raise _unsupported(f"one of the transfer syntaxes {_syntaxes()}; got another")
        if not file.frame:
            raise undecodable("the DICOM file's pixels are not compressed, against what its transfer syntax says")
        plugin, frame, bits = _DECODERS[syntax], file.frame, 0
        if syntax == uid.RLELossless:
            frame = remove_padding(frame, rows * columns)
        else:
            frame, bits = check_frame(frame, (rows, columns), allocated)
        if plugin == "pillow" and bits > 8:
            syntax, plugin = uid.JPEGLosslessSV1, "gdcm"  # pydicom forbids gdcm for the true syntax
        elif plugin == "pillow":
            allocated, stored = 8, min(stored, 8)  # whatever the header allocates
        source = _ONE_FRAME + struct.pack("<I", len(frame)) + frame
    options: dict[str, Any] = {
        "rows": rows,
        "columns": columns,
        "bits_allocated": allocated,
        "bits_stored": stored,
        "pixel_representation": int(signed),
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",  # either one does for raw pixels
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
        "pixel_vr": "OW" if file.in_words else "OB",
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The decoded RLE segment")  # for a size other than Rows and Columns
        pixels, _ = get_decoder(syntax).as_array(source, raw=True, decoding_plugin=plugin, **options)
    return pixels


def _syntaxes() -> str:
    return ", ".join(syntax.name for syntax in (*_NATIVE, *_DECODERS))


def _name(keyword: str) -> str:
    tag = _ELEMENTS[keyword]
    return f"{keyword} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _unsupported(expected: str) -> InvalidImage:
    return InvalidImage("unsupported_dicom", f"DICOM: expected {expected}")
