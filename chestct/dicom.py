"""One CT slice in a DICOM file to grey levels. The only module that knows pydicom.

Its decoders of compressed pixels are C and C++ and crash on hostile files, so a service calls it in a process of its
own (serving.guarded_reader). Nothing of the header leaves here, neither as a value nor in a message.
"""

import struct
import warnings
from io import BytesIO
from typing import Any, Final

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut

from chestct.image import MAX_PIXELS, InvalidImage

_NATIVE: Final = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
)
_DECODERS: Final = {
    uid.RLELossless: "pydicom",
    uid.JPEGBaseline8Bit: "pillow",
    uid.JPEGExtended12Bit: "pillow",  # 8 bits alone; the one decoder of 12 is under the GPL
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
_ELEMENTS: Final = (
    *("ImageType", "Modality", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("RescaleIntercept", "RescaleSlope", "ModalityLUTSequence", "PixelData"),
)
"""All that is read; what names a patient is skipped."""
_START_OF_FRAME: Final = frozenset({*range(0xFFC0, 0xFFD0), 0xFFF7}) - {0xFFC4, 0xFFC8, 0xFFCC}
_START_OF_CODESTREAM: Final = b"\xff\x4f\xff\x51"


def read(data: bytes, center: float, width: float) -> NDArray[np.uint8]:
    """Grey levels uint8 [rows, columns] of a CT slice: its Hounsfield units through the window, 0 to 255.

    `center` and `width` (1 or more) in Hounsfield units, linear as DICOM PS3.3 C.11.2.1.2 has it; MONOCHROME1 is
    inverted after it. Raises InvalidImage: `unsupported_dicom` for what is a DICOM file but no single CT slice in a
    transfer syntax that is read, `image_too_large`, or `undecodable_image`.
    """
    try:
        return _read(data, center, width)
    except InvalidImage:
        raise
    except MemoryError:
        raise InvalidImage("image_too_large", "the DICOM file takes more memory than is allowed") from None
    except Exception:  # noqa: BLE001 - pydicom and its decoders raise many kinds, whose messages hold values of the header
        raise _corrupt("the DICOM file is truncated or corrupt") from None


def _read(data: bytes, center: float, width: float) -> NDArray[np.uint8]:
    file = pydicom.dcmread(BytesIO(data), specific_tags=list(_ELEMENTS))
    _expect(file.get("Modality") == "CT", "the modality CT, got another")
    _expect("LOCALIZER" not in (file.get("ImageType") or ()), "a slice, got a localizer")
    _expect(bool(file.get("PixelData")), "pixels, got a file without, or one that was cut off")
    _expect(int(file.get("NumberOfFrames") or 1) == 1, "one frame, got several")
    _expect(
        file.SamplesPerPixel == 1 and file.PhotometricInterpretation in ("MONOCHROME1", "MONOCHROME2"),
        "grey levels (MONOCHROME1 or MONOCHROME2), got colours",
    )
    _expect(
        file.BitsAllocated in (8, 16) and 1 <= file.BitsStored <= file.BitsAllocated
        and file.HighBit == file.BitsStored - 1,
        "8 or 16 bits a pixel with the stored ones lowest, got another layout",
    )  # fmt: skip
    _expect(
        "ModalityLUTSequence" in file or (file.get("RescaleSlope") is not None and "RescaleIntercept" in file),
        "Rescale Slope and Intercept or a Modality LUT, without which there are no Hounsfield units to window",
    )
    rows, columns = int(file.Rows), int(file.Columns)
    if rows * columns > MAX_PIXELS:
        raise InvalidImage("image_too_large", f"expected at most {MAX_PIXELS} pixels, got a DICOM file of more")

    syntax = file.file_meta.TransferSyntaxUID
    if syntax in _NATIVE:
        size = rows * columns * file.BitsAllocated // 8
        if len(file.PixelData) not in (size, size + size % 2):
            raise _corrupt("the DICOM file's pixels are more or fewer than its Rows and Columns say")
        plugin = ""
    else:
        _expect(syntax in _DECODERS, f"one of the transfer syntaxes {_names()}; got another")
        plugin = _DECODERS[syntax]
        if syntax != uid.RLELossless:
            frame = get_frame(file.PixelData, 0, number_of_frames=1)
            if _frame_size(frame) != (rows, columns):  # decoders crash on it, or fill the memory
                raise _corrupt("the DICOM file's compressed picture has another size than its Rows and Columns say")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The decoded RLE segment")  # has another size than Rows and Columns say
        stored, _ = get_decoder(syntax).as_array(file, raw=True, decoding_plugin=plugin)
    return _grey(stored, file, center, width)


def _grey(stored: NDArray[Any], file: pydicom.Dataset, center: float, width: float) -> NDArray[np.uint8]:
    """By a table of each value that occurs, which is smaller than the picture."""
    low, high = int(stored.min()), int(stored.max())
    units = np.asarray(apply_modality_lut(np.arange(low, high + 1), file), np.float64)
    if not np.isfinite(units).all():
        raise _corrupt("the DICOM file's pixels have no finite Hounsfield units")
    share = np.clip((units - (center - 0.5)) / max(width - 1, 1e-9) + 0.5, 0, 1)
    if file.PhotometricInterpretation == "MONOCHROME1":
        share = 1 - share
    table = np.rint(255 * share).astype(np.uint8)
    grey = np.empty(stored.shape, np.uint8)
    for row, values in enumerate(stored):
        grey[row] = table[values.astype(np.intp) - low]
    return grey


def _frame_size(frame: bytes) -> tuple[int, int]:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 frame gives itself, which is what its decoder goes by."""
    if frame.startswith(_START_OF_CODESTREAM):
        right, bottom, left, top = struct.unpack_from(">4I", frame, 8)
        return bottom - top, right - left
    if not frame.startswith(b"\xff\xd8"):
        raise _corrupt("the DICOM file's compressed picture is not of the kind that its transfer syntax names")
    position = 2
    while True:  # ends at the frame's end by struct.error
        marker, length = struct.unpack_from(">HH", frame, position)
        if marker in _START_OF_FRAME:
            rows, columns = struct.unpack_from(">HH", frame, position + 5)
            return rows, columns
        position += 2 + length


def _names() -> str:
    return ", ".join(syntax.name for syntax in (*_NATIVE, *_DECODERS))


def _expect(holds: bool, expected: str) -> None:
    if not holds:
        raise InvalidImage("unsupported_dicom", f"DICOM: expected {expected}")


def _corrupt(message: str) -> InvalidImage:
    return InvalidImage("undecodable_image", message)
