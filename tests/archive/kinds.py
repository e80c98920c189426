"""One file of every kind that the service answers or refuses."""

from io import BytesIO

import numpy as np
from PIL import Image
from pydicom import uid

from chestct.image import encode_png
from tests.dicom import SYNTAXES, dicom_file
from tests.graphs import narrow_picture, tiny_picture, unfamiliar_picture
from tests.pictures import encoded, exif, orientation, png_header, segment, with_segments


def kinds() -> dict[str, bytes]:
    """Return the files by name."""
    grey = tiny_picture(1, marks=40)[:, :, 0]
    picture = Image.fromarray(grey)
    close = np.maximum(tiny_picture(0), tiny_picture(3))[:, :, 0]
    colours = np.dstack([grey, grey // 2, 255 - grey])
    large = Image.fromarray(np.kron(grey, np.ones((70, 70), np.uint8)))
    jpeg = encoded(picture, "JPEG", quality=95)
    good = dicom_file(grey)
    return {
        "grey.png": encode_png(grey),
        "close call.png": encode_png(close),
        "unfamiliar.png": encode_png(unfamiliar_picture()[:, :, 0]),
        "narrow.png": encode_png(narrow_picture()[:, :, 0]),
        "16-bit.png": encoded(Image.fromarray(grey.astype(np.uint16) * 257)),
        "rgb.png": encoded(picture.convert("RGB")),
        "palette.png": encoded(picture.convert("P")),
        "transparent.png": encoded(picture.convert("LA")),
        "colours.png": encoded(Image.fromarray(colours)),
        "costly.png": encoded(large),
        "grey.jpg": jpeg,
        "rgb.jpg": encoded(picture.convert("RGB"), "JPEG", quality=90),
        "progressive.jpg": encoded(picture, "JPEG", progressive=True),
        "turned.jpg": with_segments(jpeg, segment(0xE1, b"Exif\0\0" + exif(orientation(6)))),
        **{f"{uid.UID(syntax).keyword}.dcm": dicom_file(grey, syntax) for syntax in SYNTAXES},
        "signed.dcm": dicom_file(grey, signed=True),
        "monochrome1.dcm": dicom_file(grey, monochrome1=True),
        "no preamble.dcm": good[132:],
        "mr.dcm": dicom_file(grey, Modality="MR"),
        "empty": b"",
        "text.txt": b"no picture",
        "pdf.pdf": b"%PDF-1.7 and so on",
        "cut.png": encode_png(grey)[:-30],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.dcm": good[:-40],
        "bomb.png": png_header(40_000, 40_000),
        "broken.dcm": _flip(dicom_file(grey, uid.JPEGLSLossless)),
    }


def _flip(data: bytes) -> bytes:
    changed = bytearray(data)
    for at in range(len(data) - 60, len(data) - 20):
        changed[at] ^= 0x5A
    return bytes(changed)


def png_of(label: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(tiny_picture(label)[:, :, 0]).save(buffer, "PNG")
    return buffer.getvalue()
