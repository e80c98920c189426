"""Reads the slice in a file of any supported kind. Service and pipeline both read here, so that a model gets one input.

The service runs this in its guarded process, because the decoders of DICOM crash on hostile files.
"""

from PIL import Image

from chestct import dicom
from chestct.card import InputSpec
from chestct.dicom_format import is_dicom
from chestct.image import Picture, decode, decode_grey, from_dicom, inspect


def read(data: bytes, spec: InputSpec) -> Picture:
    """Read a PNG, a JPEG or a DICOM file. Raises InvalidImage as chestct.image.decode and chestct.dicom.read do."""
    return from_dicom(dicom.read(data), spec) if is_dicom(data) else decode(data, spec)


def read_grey(data: bytes) -> Image.Image:
    """Read the grey levels of such a file in full, mode L. Raises InvalidImage like `read`."""
    return Image.fromarray(dicom.read(data)) if is_dicom(data) else decode_grey(inspect(data))
