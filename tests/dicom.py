"""Makes CT slices as DICOM files with pydicom. They show given grey levels through the window of chestct.dicom."""

import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gdcm
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, FileDataset, FileMetaDataset, dcmread, uid
from pydicom.encaps import encapsulate, get_frame

from chestct import dicom

PATIENT = "Secret^Patient"
"""Patient name in the header of each file."""
SLOPE = round((dicom.WIDTH - 1) / 255, 12)
"""Hounsfield units per grey level."""
BLACK = dicom.CENTER - 0.5 - (dicom.WIDTH - 1) / 2
"""Hounsfield units of grey level 0."""
_BY_GDCM = {
    uid.JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14,
    uid.JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    uid.JPEGLSLossless: gdcm.TransferSyntax.JPEGLSLossless,
    uid.JPEGLSNearLossless: gdcm.TransferSyntax.JPEGLSNearLossless,
}
SYNTAXES = (
    *(uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian),
    *(uid.ExplicitVRBigEndian, uid.RLELossless, uid.JPEG2000Lossless, uid.JPEG2000, *_BY_GDCM),
)


def dicom_file(
    levels: NDArray[np.uint8],
    syntax: str = uid.ExplicitVRLittleEndian,
    *,
    signed: bool = False,
    monochrome1: bool = False,
    **elements: Any,
) -> bytes:
    """Return a file that shows `levels`, uint8 [rows, columns]. `elements` replace header elements; None removes."""
    offset = -1024 if signed else 0
    stored = levels.astype(np.int16 if signed else np.uint16)
    slope, intercept = SLOPE, BLACK
    if monochrome1:  # white is the lowest value, so the units run the other way
        slope, intercept = -slope, BLACK + 255 * SLOPE
    stored += np.array(offset, stored.dtype)
    little = syntax != uid.ExplicitVRBigEndian
    file = FileDataset("", Dataset(), preamble=bytes(128), file_meta=FileMetaDataset(), is_little_endian=little)
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = uid.CTImageStorage
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    file.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    file.Modality = "CT"
    file.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    file.PatientName = PATIENT
    file.SamplesPerPixel = 1
    file.PhotometricInterpretation = "MONOCHROME1" if monochrome1 else "MONOCHROME2"
    file.Rows, file.Columns = levels.shape
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
    file.PixelRepresentation = int(signed)
    file.RescaleSlope = f"{slope:.12f}"[:16]
    file.RescaleIntercept = f"{intercept - slope * offset:.9f}"[:16]
    file.PixelData = (stored if little else stored.byteswap()).tobytes()
    if syntax == uid.JPEGBaseline8Bit:
        file.BitsAllocated, file.BitsStored, file.HighBit = 8, 8, 7
        file.PixelData = encapsulate([_jpeg(levels)])
        file["PixelData"].VR = "OB"
        file.file_meta.TransferSyntaxUID = uid.UID(syntax)
    elif syntax in (uid.RLELossless, uid.JPEG2000Lossless):
        file.compress(syntax, generate_instance_uid=False)
    elif syntax == uid.JPEG2000:
        file.compress(syntax, j2k_cr=[1], generate_instance_uid=False)
    elif syntax in _BY_GDCM:
        file = by_gdcm(file, syntax)
    else:
        file.file_meta.TransferSyntaxUID = uid.UID(syntax)
    for name, value in elements.items():
        if value is None:
            delattr(file, name)
        else:
            setattr(file, name, value)
    return written(file)


def with_frame(
    levels: NDArray[np.uint8], change: Callable[[bytes], bytes], syntax: str = uid.JPEG2000Lossless
) -> bytes:
    """Return a complete file with a changed compressed frame."""
    file = dcmread(BytesIO(dicom_file(levels, syntax)))
    file.PixelData = encapsulate([change(get_frame(file.PixelData, 0, number_of_frames=1))])
    return written(file)


def changed(data: bytes, **elements: Any) -> bytes:
    """Return the file with other header values. None removes an element. The pixels stay."""
    file = dcmread(BytesIO(data))
    for name, value in elements.items():
        setattr(file, name, value)
    return written(file)


def jp2(codestream: bytes) -> bytes:
    """Wrap a JPEG 2000 codestream in the boxes of a JP2 file."""
    boxes = ((b"jP  ", b"\r\n\x87\n"), (b"ftyp", b"jp2 \0\0\0\0jp2 "), (b"jp2h", bytes(20)), (b"jp2c", codestream))
    return b"".join(struct.pack(">I4s", 8 + len(content), kind) + content for kind, content in boxes)


def written(file: FileDataset) -> bytes:
    buffer = BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _jpeg(levels: NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", quality=100)
    return buffer.getvalue()


def by_gdcm(file: FileDataset, syntax: str) -> FileDataset:
    with TemporaryDirectory() as folder:
        path = Path(folder, "native.dcm")
        path.write_bytes(written(file))
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(_BY_GDCM[uid.UID(syntax)]))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return dcmread(BytesIO(path.read_bytes()))
