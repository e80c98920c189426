"""Makes the images that load tests and benchmarks send: drawn phantoms, not of any patient."""

from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image
from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom.uid import ExplicitVRLittleEndian

from pipeline.images.classes import CLASSES
from pipeline.images.phantoms import draw_phantom

SIZE: Final = (414, 282)
"""Width and height of the median picture of the real data set. Its median file has 90 KB, half of them 78 to 112 KB."""
EVERY_JPEG: Final = 8
"""One in this many files is a JPEG. The real data set has fewer."""


def phantom(seed: int = 0) -> bytes:
    """Return a phantom as a PNG file. The class changes with the seed."""
    return _file(_draw(seed), "PNG")


def pictures(count: int) -> list[tuple[str, bytes]]:
    """Return media types and bytes of phantoms that cost as much to decode as real pictures: RGBA PNG and RGB JPEG."""
    files = []
    for seed in range(count):
        picture = _draw(seed).resize(SIZE, Image.Resampling.BICUBIC)
        if seed % EVERY_JPEG == EVERY_JPEG - 1:
            files.append(("image/jpeg", _file(picture.convert("RGB"), "JPEG")))
        else:
            files.append(("image/png", _file(picture.convert("RGBA"), "PNG")))
    return files


def dicom_file(seed: int = 0) -> bytes:
    """Return a phantom as an uncompressed DICOM file. Grey level 0 is -1100 Hounsfield units, each level adds 6."""
    levels = np.asarray(_draw(seed).convert("L"), np.uint16)
    scan = Dataset()
    scan.preamble = bytes(128)
    scan.Modality = "CT"
    scan.Rows, scan.Columns = levels.shape
    scan.SamplesPerPixel, scan.PhotometricInterpretation = 1, "MONOCHROME2"
    scan.BitsAllocated, scan.BitsStored, scan.HighBit, scan.PixelRepresentation = 16, 16, 15, 0
    scan.RescaleIntercept, scan.RescaleSlope = -1100, 6
    scan.PixelData = levels.tobytes()
    scan.file_meta = FileMetaDataset()
    scan.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = BytesIO()
    dcmwrite(file, scan)
    return file.getvalue()


def _draw(seed: int) -> Image.Image:
    return draw_phantom(seed % len(CLASSES), np.random.default_rng(seed))


def _file(picture: Image.Image, kind: str) -> bytes:
    file = BytesIO()
    picture.save(file, format=kind, quality=95)
    return file.getvalue()
