"""The page draws the heat map over the picture, so the browser and the service must turn the picture alike."""

import base64
import struct

import pytest
from playwright.sync_api import Browser

from chestct.image import inspect
from tests.browser import needs_chromium, open_page
from tests.pictures import chunk, encoded, entry, exif, orientation, ramp, segment, with_chunks, with_segments

pytestmark = needs_chromium

SIX = orientation(6)
DRAWN = """async files => {
  const sizes = {};
  for (const [name, file] of Object.entries(files)) {
    const image = new Image();
    image.src = `data:image/${name.split(" ")[0]};base64,${file}`;
    await image.decode();
    sizes[name] = [image.naturalWidth, image.naturalHeight];
  }
  return sizes;
}"""


def app1(content: bytes, head: bytes = b"Exif\0\0") -> bytes:
    return segment(0xE1, head + content)


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    jpeg, png = encoded(ramp(), "JPEG"), encoded(ramp())
    before_scan = jpeg.index(b"\xff\xda")
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='6'/>"
    contents = {
        "short": exif(SIX),
        "big-endian": exif(orientation(6, ">"), order=">"),
        "zero": exif(orientation(0)),
        "nine": exif(orientation(9)),
        "long": exif(entry(0x0112, 4, 1, b"\6")),
        "byte": exif(entry(0x0112, 1, 1, b"\6")),
        "float": exif(entry(0x0112, 11, 1, struct.pack("<f", 6))),
        "two numbers": exif(entry(0x0112, 3, 2, b"\6")),
        "behind an odd entry": exif(entry(0x011A, 5, 1, b"\xff\xff\xff\xff"), SIX),
        "twice": exif(SIX, orientation(1)),
        "twice, the other way": exif(orientation(1), SIX),
        "cut off": exif(SIX)[:-5],
        "without an end": exif(SIX)[:-4],
        "headed twice": b"Exif\0\0" + exif(SIX),
        "BigTIFF": b"II+\0" + exif(SIX)[4:],
    }
    return {
        **{f"jpeg {name}": with_segments(jpeg, app1(content)) for name, content in contents.items()},
        **{f"png {name}": with_chunks(png, chunk(b"eXIf", content)) for name, content in contents.items()},
        "jpeg in two blocks": with_segments(jpeg, app1(exif(SIX)), app1(exif(orientation(1)))),
        "jpeg in the second block": with_segments(jpeg, app1(exif(orientation(1))), app1(exif(SIX))),
        "jpeg behind garbage": with_segments(jpeg, app1(b"garbage."), app1(exif(SIX))),
        "jpeg behind an empty block": with_segments(jpeg, app1(b""), app1(exif(SIX))),
        "jpeg after the tables": jpeg[:before_scan] + app1(exif(SIX)) + jpeg[before_scan:],
        "jpeg after the pixels": jpeg[:-2] + app1(exif(SIX)) + jpeg[-2:],
        "jpeg by XMP": with_segments(jpeg, segment(0xE1, xmp)),
        "png with a wrong checksum": with_chunks(png, chunk(b"eXIf", exif(SIX), 1)),
        "png in two chunks": with_chunks(png, chunk(b"eXIf", exif(SIX)), chunk(b"eXIf", exif(orientation(1)))),
    }


def test_a_picture_is_turned_as_chromium_turns_it(browser: Browser, pictures: dict[str, bytes]) -> None:
    page = open_page(browser)
    drawn = page.evaluate(DRAWN, {name: base64.b64encode(data).decode() for name, data in pictures.items()})
    page.context.close()
    turned = {name: inspect(data).orientation >= 5 for name, data in pictures.items()}
    assert turned == {name: height > width for name, (width, height) in drawn.items()}
    assert sum(turned.values()) > 10
