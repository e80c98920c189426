"""The message for a file that is not read says what it is, and what to do."""

import gzip
import zipfile
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from chestct.unsupported_formats import describe_unsupported
from tests.pictures import encoded, ramp, refusal


def zipped() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("slice.png", encoded(ramp()))
    return buffer.getvalue()


def saved(array: np.ndarray) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypmif2\0\0\0\0", "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x18ftypcrx \0\0\0\0", "CR3"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "video"),
        (b"\0\0\0\x18ftypM4A \0\0\0\0", "sound"),
        (encoded(ramp(), "WEBP"), "WebP"),
        (encoded(ramp(), "TIFF"), "TIFF"),
        (encoded(ramp(), "TIFF", big_tiff=True), "TIFF"),
        (encoded(ramp(), "GIF"), "GIF"),
        (encoded(ramp(), "BMP"), "BMP"),
        (encoded(ramp(), "ICO"), "ICO"),
        (encoded(ramp(), "PPM"), "PNM"),
        (encoded(ramp(), "JPEG2000"), "JPEG 2000"),
        (encoded(ramp(), "PDF"), "PDF"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
        (b"\x5c\1\0\0" + bytes(340) + b"n+1\0", "NIfTI"),
        (b"\x1c\2\0\0n+2\0\r\n\x1a\n", "NIfTI"),
        (gzip.compress(encoded(ramp())), "gzip"),
        (zipped(), "ZIP"),
        (saved(np.zeros(3)), "NumPy"),
        (b"  <!DOCTYPE html><html>", "HTML"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"data:image/png;base64,iVBORw0KGgo", "base64"),
        (b"iVBORw0KGgoAAAANSUhEUg", "base64"),
        (b"hello", "5 bytes that are none of them"),
    ],
)
def test_an_unsupported_format_is_named_by_its_content(data, named):
    assert named in describe_unsupported(data)
    code, message = refusal(data)
    assert code == "undecodable_image"
    assert named in message


def test_a_kind_of_picture_comes_with_what_to_do():
    assert describe_unsupported(encoded(Image.new("L", (8, 8)), "WEBP")) == (
        "a WebP file, which is not read here; save it as PNG or JPEG"
    )
