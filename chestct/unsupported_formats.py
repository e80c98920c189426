"""Recognises unsupported formats by their first bytes, so that error messages can name them."""

import re
from typing import Final

_SAVE: Final = "is not read here; save it as PNG or JPEG"
_UNPACK: Final = "is not unpacked here; send the picture itself"
_OTHER: Final = "is no picture"

_KINDS: Final = tuple(
    (re.compile(begins, re.DOTALL), f"{name}, which {what}")
    for begins, name, what in (
        (rb".{4}ftyp(hei|hev|mif|msf)", "a HEIC (HEIF) file", _SAVE),
        (rb".{4}ftypavi[fs]", "an AVIF file", _SAVE),
        (rb".{4}ftypcrx ", "a camera's raw file (CR3)", _SAVE),
        (rb".{4}ftyp", "a video or sound file (MP4 or QuickTime)", _OTHER),
        (rb"RIFF.{4}WEBP", "a WebP file", _SAVE),
        (rb"II[*+]\0|MM\0[*+]", "a TIFF file", _SAVE),
        (rb"GIF8[79]a", "a GIF file", _SAVE),
        (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 file", _SAVE),
        (rb"\0\0\0\x0cJXL |\xff\x0a", "a JPEG XL file", _SAVE),
        (rb"BM.{4}\0{4}", "a BMP file", _SAVE),
        (rb"8BPS", "a Photoshop file", _SAVE),
        (rb"\0\0[\x01\x02]\0", "an icon (ICO)", _SAVE),
        (rb"P[1-7]\s", "a PNM file", _SAVE),
        (rb".{344}n[i+]1\0|.{4}n[+i]2\0", "a NIfTI file", _SAVE),
        (rb"NRRD000", "an NRRD file", _SAVE),
        (rb"\x89HDF\r\n", "an HDF5 file", _SAVE),
        (rb"\x93NUMPY", "a NumPy file", _SAVE),
        (rb"\x1f\x8b", "a gzip file", _UNPACK),
        (rb"PK(\x03\x04|\x05\x06)", "a ZIP archive", _UNPACK),
        (rb"7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "a compressed archive", _UNPACK),
        (rb".{257}ustar", "a tar archive", _UNPACK),
        (rb"%PDF-", "a PDF file", _OTHER),
        (rb"\xd0\xcf\x11\xe0", "an Office document", _OTHER),
        (rb"\s{0,64}<(?i:\?xml|svg|!doctype|html)", "an XML, SVG or HTML document", _OTHER),
        (rb"data:image/|iVBORw0KGgo|/9j/", "base64 text", "is not decoded here; send the bytes themselves"),
    )
)


def describe_unsupported(data: bytes) -> str:
    """Describe data that is neither PNG, JPEG nor DICOM. The text follows "got" in a message."""
    return next((words for begins, words in _KINDS if begins.match(data)), f"{len(data)} bytes that are none of them")
