"""One CT slice in a DICOM file to grey levels. The only module that knows pydicom.

Its decoders of compressed pixels are C and C++ and crash on hostile files, so a service calls it in a process of its
own (serving.inference.guarded_reader). Nothing of the header leaves here, neither as a value nor in a message.
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
from chestct.image import MAX_PIXELS, MAX_SIDE, InvalidImage

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
"""pydicom's plugin for each compressed transfer syntax that is read."""


def _tags(*keywords: str) -> dict[str, int]:
    return {keyword: tag_for_keyword(keyword) or 0 for keyword in keywords}


_ELEMENTS: Final = _tags(
    *("ImageType", "Modality", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleIntercept", "RescaleSlope", "LUTDescriptor", "LUTData"),
)
"""All that is read; what names a patient is skipped."""
_CONTAINERS: Final = _tags(
    *("ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    "PixelValueTransformationSequence",
)
"""Sequences that hold some of it."""

_ONE_FRAME: Final = b"\xfe\xff\x00\xe0" + bytes(4) + b"\xfe\xff\x00\xe0"
"""Before the length of a compressed picture: an empty table of offsets, and the tag of an item."""
_START_OF_FRAME: Final = frozenset({*range(0xFFC0, 0xFFD0), 0xFFF7}) - {0xFFC4, 0xFFC8, 0xFFCC}
_START_OF_CODESTREAM: Final = b"\xff\x4f\xff\x51"
_JP2: Final = b"\0\0\0\x0cjP  \r\n\x87\n"
"""How a JP2 file begins, in which a codestream of JPEG 2000 lies in a box."""


class _Header:
    """A file's elements as numbers and words. Raises InvalidImage where one that is needed is missing or wrong."""

    def __init__(self, file: DicomFile) -> None:
        self._values = file.values
        self._order = "<" if file.little_endian else ">"

    def __contains__(self, keyword: str) -> bool:
        return _ELEMENTS[keyword] in self._values

    def missing(self, keyword: str) -> InvalidImage:
        return _unsupported(
            f"the element {_name(keyword)}, got a file {'in which it is empty' if keyword in self else 'without it'}"
        )

    def words(self, keyword: str) -> list[str]:
        """None where the element is missing or empty."""
        text = self._values.get(_ELEMENTS[keyword], b"").decode("latin-1")
        return [word.strip(" \0") for word in text.split("\\")] if text.strip(" \0") else []

    def decimal(self, keyword: str) -> float:
        words = self.words(keyword)
        if not words:
            raise self.missing(keyword)
        try:
            return float(words[0])
        except ValueError:
            raise _corrupt(f"the DICOM file's {_name(keyword)} is no number") from None

    def binary(self, keyword: str, otherwise: int | None = None, *, signed: bool = False) -> int:
        """A number of two bytes; where it is missing or empty `otherwise`, if given."""
        value = self._values.get(_ELEMENTS[keyword], b"")
        if len(value) >= 2:
            return int.from_bytes(value[:2], "little" if self._order == "<" else "big", signed=signed)
        if otherwise is None:
            raise self.missing(keyword)
        return otherwise

    def to_units(self, values: NDArray[np.integer], *, signed: bool) -> NDArray[np.float64]:
        """Hounsfield units of stored values, by the Modality LUT or by Rescale Slope and Intercept."""
        if not self._values.get(_ELEMENTS["LUTData"]):
            return values.astype(np.float64) * self.decimal("RescaleSlope") + self.decimal("RescaleIntercept")
        if not self._values.get(_ELEMENTS["LUTDescriptor"]):
            raise self.missing("LUTDescriptor")
        descriptor = self._order + ("HhH" if signed else "HHH")
        entries, first, bits = struct.unpack(descriptor, self._values[_ELEMENTS["LUTDescriptor"]])
        entries = entries or 65_536
        data = self._values[_ELEMENTS["LUTData"]]
        kind = "u1" if bits == 8 and len(data) < 2 * entries else "u2"
        table = np.frombuffer(data, self._order + kind, entries).astype(np.float64)
        return np.asarray(table[np.clip(values - first, 0, entries - 1)])

    def padding(self, *, signed: bool) -> tuple[int, int] | None:
        """The least and the largest stored value that is no part of the picture, if there is one."""
        if not self._values.get(_ELEMENTS["PixelPaddingValue"]):
            return None
        value = self.binary("PixelPaddingValue", signed=signed)
        limit = self.binary("PixelPaddingRangeLimit", value, signed=signed)
        return min(value, limit), max(value, limit)


def read(data: bytes, center: float, width: float) -> NDArray[np.uint8]:
    """Grey levels uint8 [rows, columns] of a CT slice: its Hounsfield units through the window, 0 to 255.

    `center` and `width` (1 or more) in Hounsfield units, linear as DICOM PS3.3 C.11.2.1.2 has it; MONOCHROME1 is
    inverted after it, and padding is black. Raises InvalidImage: `unsupported_dicom` for what is a DICOM file but no
    single CT slice in a transfer syntax that is read, `image_too_large`, or `undecodable_image`; and MemoryError.
    """
    try:
        return _read(data, center, width)
    except (InvalidImage, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - pydicom and its decoders raise many kinds, whose messages hold values of the header
        raise _corrupt("the DICOM file is truncated or corrupt") from None


def _read(data: bytes, center: float, width: float) -> NDArray[np.uint8]:
    file = read_elements(data, frozenset(_ELEMENTS.values()), frozenset(_CONTAINERS.values()))
    header = _Header(file)
    modality = header.words("Modality")
    if modality and modality != ["CT"]:
        raise _unsupported("the modality CT, got another")
    if "LOCALIZER" in header.words("ImageType"):
        raise _unsupported("a slice, got a localizer")
    if not (file.pixels or file.frame):
        raise _corrupt("the DICOM file has no pixels, or was cut off before them")
    if not modality:
        raise header.missing("Modality")
    if header.words("NumberOfFrames") and header.decimal("NumberOfFrames") > 1:
        raise _unsupported("one frame, got several")
    if header.binary("SamplesPerPixel", 1) != 1:
        raise _unsupported("grey levels, got colours")
    rows, columns = header.binary("Rows"), header.binary("Columns")
    if rows * columns > MAX_PIXELS or max(rows, columns) > MAX_SIDE:
        words = f"expected at most {MAX_PIXELS} pixels and {MAX_SIDE} a side, got a DICOM file of more"
        raise InvalidImage("image_too_large", words)
    inverted = _is_inverted(header)
    signed = header.binary("PixelRepresentation") == 1
    header.to_units(np.zeros(1, np.int64), signed=signed)  # says what it lacks before anything is decoded

    stored = _decode(file, rows, columns, *_find_bits(header), signed=signed)
    low, high = int(stored.min()), int(stored.max())
    units = header.to_units(np.arange(low, high + 1), signed=signed)  # each value once: fewer than there are pixels
    if not np.isfinite(units).all():
        raise _corrupt("the DICOM file's pixels have no finite Hounsfield units")
    share = np.clip((units - (center - 0.5)) / max(width - 1, 1e-9) + 0.5, 0, 1)
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


def _find_bits(header: _Header) -> tuple[int, int]:
    """Of a pixel: as it lies in the file, and those that count, which are the lowest."""
    allocated = header.binary("BitsAllocated")
    stored = header.binary("BitsStored", header.binary("HighBit", allocated - 1) + 1)
    if allocated in (8, 16) and 1 <= stored <= allocated and header.binary("HighBit", stored - 1) == stored - 1:
        return allocated, stored
    raise _unsupported("8 or 16 bits a pixel with the stored ones lowest, got another layout")


def _decode(
    file: DicomFile, rows: int, columns: int, allocated: int, stored: int, *, signed: bool
) -> NDArray[np.integer]:
    """The stored values [rows, columns]."""
    plugin = ""
    if file.syntax is None and file.frame:
        raise _unsupported("the element TransferSyntaxUID (0002,0010), got a file without it")
    if file.syntax is None or file.syntax in _NATIVE:
        syntax = uid.ExplicitVRLittleEndian if file.little_endian else uid.ExplicitVRBigEndian
        size = rows * columns * allocated // 8
        if file.pixels is None:
            raise _corrupt("the DICOM file's pixels are compressed, against what its transfer syntax says")
        if not size <= len(file.pixels) < 2 * size:
            raise _corrupt("the DICOM file's pixels are more or fewer than its Rows and Columns say")
        source = file.pixels[: size + size % 2]  # what follows pads them
    else:
        syntax = uid.UID(file.syntax)
        if syntax not in _DECODERS:
            raise _unsupported(f"one of the transfer syntaxes {_syntaxes()}; got another")
        if not file.frame:
            raise _corrupt("the DICOM file's pixels are not compressed, against what its transfer syntax says")
        plugin, frame, bits = _DECODERS[syntax], file.frame, 0
        if syntax == uid.RLELossless:
            frame = _without_padding(frame, rows * columns)
        else:
            frame, bits = _check_frame(frame, (rows, columns), allocated)
        if plugin == "pillow" and bits > 8:
            syntax, plugin = uid.JPEGLosslessSV1, "gdcm"  # which goes by the frame; pydicom forbids it by the true name
        elif plugin == "pillow":
            allocated, stored = 8, min(stored, 8)  # whatever the header has room for
        source = _ONE_FRAME + struct.pack("<I", len(frame)) + frame
    options: dict[str, Any] = {
        "rows": rows,
        "columns": columns,
        "bits_allocated": allocated,
        "bits_stored": stored,
        "pixel_representation": int(signed),
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",  # as good as the other where pixels are raw
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
        "pixel_vr": "OW" if file.in_words else "OB",
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The decoded RLE segment")  # has another size than Rows and Columns say
        pixels, _ = get_decoder(syntax).as_array(source, raw=True, decoding_plugin=plugin, **options)
    return pixels


def _check_frame(frame: bytes, size: tuple[int, int], allocated: int) -> tuple[bytes, int]:
    """The codestream in a frame, if it has the rows and columns that the header says, and a JPEG's or JPEG-LS' bits.

    Decoders go by what the frame says of itself, and crash where the header says else, or fill the memory.
    """
    if frame.startswith(_JP2):
        frame = _unbox(frame)
    bits = 0
    if frame.startswith(_START_OF_CODESTREAM):
        right, bottom, left, top = struct.unpack_from(">4I", frame, 8)
        (components,) = struct.unpack_from(">H", frame, 40)
        rows, columns = bottom - top, right - left
    elif frame.startswith(b"\xff\xd8"):
        bits, rows, columns, components = struct.unpack_from(">BHHB", frame, _find_start_of_frame(frame))
    else:
        raise _corrupt("the DICOM file's compressed picture is not of the kind that its transfer syntax names")
    if (rows, columns) != size:
        raise _corrupt("the DICOM file's compressed picture has another size than its Rows and Columns say")
    if components != 1 or bits > allocated:
        raise _corrupt("the DICOM file's compressed picture has more to a pixel than its header says")
    return frame, bits


def _without_padding(rle: bytes, pixels: int) -> bytes:
    """A frame up to the end of its last segment, where nothing follows but one byte again and again.

    pydicom decodes that too, and says that there are more pixels than Rows and Columns say. Raises struct.error for a
    frame without its header.
    """
    if rle[-2:-1] != rle[-1:]:  # a single byte does no harm
        return rle
    (segments,) = struct.unpack_from("<I", rle)
    (at,) = struct.unpack_from("<I", rle, 4 * segments)
    while pixels > 0 and at < len(rle):
        run = rle[at]
        if run < 128:  # so many different pixels and one more
            at, pixels = at + 2 + run, pixels - 1 - run
        elif run > 128:  # the same again and again
            at, pixels = at + 2, pixels - 257 + run
        else:
            at += 1
    return rle[:at] if len(set(rle[at:])) == 1 else rle


def _find_start_of_frame(jpeg: bytes) -> int:
    """Where bits, rows, columns and components stand. Raises struct.error at the picture's end."""
    position = 2
    while True:
        marker, length = struct.unpack_from(">HH", jpeg, position)
        if marker in _START_OF_FRAME:
            return position + 4
        position += 1 if marker == 0xFFFF else 2 + length  # any number of FF may stand before a marker


def _unbox(jp2: bytes) -> bytes:
    """The codestream. Raises struct.error where there is none."""
    position = 0
    while True:
        length, kind = struct.unpack_from(">I4s", jp2, position)
        start = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", jp2, position + 8)
            start = 16
        end = position + max(length, start) if length else len(jp2)
        if kind == b"jp2c":
            return jp2[position + start : end]
        position = end


def _syntaxes() -> str:
    return ", ".join(syntax.name for syntax in (*_NATIVE, *_DECODERS))


def _name(keyword: str) -> str:
    tag = _ELEMENTS[keyword]
    return f"{keyword} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _unsupported(expected: str) -> InvalidImage:
    return InvalidImage("unsupported_dicom", f"DICOM: expected {expected}")


def _corrupt(message: str) -> InvalidImage:
    return InvalidImage("undecodable_image", message)
