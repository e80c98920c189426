"""Good pixels are read despite oddities beside them: text, profiles, EXIF and other parts of a file."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from chestct.image import decode
from tests.pictures import (
    SPEC,
    chunk,
    encoded,
    entry,
    exif,
    grey_levels,
    orientation,
    png,
    png_header,
    ramp,
    refusal,
    segment,
    with_chunks,
    with_segments,
    without_jfif,
)

PNG = encoded(ramp())
JPEG = encoded(ramp(), "JPEG", quality=95)
COLOUR = Image.merge("RGB", [ramp(), ramp().point(lambda level: 255 - level), Image.new("L", (96, 64), 90)])
RGB_JPEG = encoded(COLOUR, "JPEG", quality=95, keep_rgb=True)
"""A JPEG with the colour ids R, G and B, and without a JFIF or Adobe segment."""
ADOBE = b"Adobe\0\x64\0\0\0\0"
TURNS = exif(orientation(3))
BOMB = zlib.compress(bytes(64_000_000), 9)
XMP = b"<x:xmpmeta><rdf:Description tiff:Orientation='6' tiff:Orientation=\"6\"/></x:xmpmeta>"
NO_CHECKSUM = 0x0BADC0DE


def app1(content: bytes, head: bytes = b"Exif\0\0") -> bytes:
    return segment(0xE1, head + content)


@pytest.mark.parametrize(
    "beside",
    [
        chunk(b"tEXt", b"Comment\0checksum", NO_CHECKSUM),
        chunk(b"gAMA", b"\0\0", NO_CHECKSUM),
        chunk(b"tRNS", b"", NO_CHECKSUM),
        chunk(b"tRNS", b"\0"),
        chunk(b"zTXt", b"Comment\0\0no deflate stream"),
        chunk(b"zTXt", b"Comment\0\7unknown method"),
        chunk(b"zTXt", b"Comment\0\0" + BOMB),
        chunk(b"iTXt", b"no end of the keyword"),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        chunk(b"tEXt", b"Raw profile type exif\0\nexif\n8\nnot hexadecimal"),
        chunk(b"tEXt", b"Raw profile type exif\0\nexif\n8\n" + TURNS.hex().encode()),
        chunk(b"iCCP", b"profile\0\0" + BOMB),
        chunk(b"iCCP", b"profile\0\7unknown method"),
        chunk(b"iCCP", b"no end of the name"),
        chunk(b"cHRM", b"\0"),
        chunk(b"pHYs", b"\0"),
        chunk(b"sRGB", b""),
        chunk(b"tIME", b"short"),
        chunk(b"acTL", b"\0"),
        chunk(b"acTL", struct.pack(">II", 0, 0)),
        chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", b"\0" * 25),
        chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", struct.pack(">7I", 9, 999, 999, 0, 0, 0, 0)),
        chunk(b"PLTE", b"\0" * 3),
        chunk(b"prIv", b"\xff" * 999),
        chunk(b"pr 1", b""),
        chunk(b"eXIf", b"no tiff"),
        chunk(b"eXIf", TURNS, NO_CHECKSUM),
        chunk(b"eXIf", b""),
    ],
    ids=lambda beside: f"{beside[4:8].decode()}-{zlib.crc32(beside):08x}",
)
def test_no_other_chunk_of_a_png_decides_anything(beside):
    assert np.array_equal(grey_levels(with_chunks(PNG, beside)), grey_levels(PNG))
    behind = PNG[:-12] + beside + PNG[-12:]
    assert np.array_equal(grey_levels(behind), grey_levels(PNG))


@pytest.mark.parametrize(
    "beside",
    [
        app1(b"no tiff"),
        app1(b"II*\0\xff\xff\xff\xff"),
        app1(exif(entry(0x011A, 5, 1, b"\xff\xff\xff\xff"))),
        app1(XMP, b"http://ns.adobe.com/xap/1.0/\0"),
        segment(0xE0, b"JFIF"),
        segment(0xE0, b"JFIF\0\1\1\2\0\0\0\0\0\0"),
        segment(0xE0, b"JFXX\0\x10" + JPEG),
        segment(0xE2, b"MPF\0no index"),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"ICC_PROFILE\0\7\1broken"),
        segment(0xE2, b"FPXR\0"),
        segment(0xED, b"Photoshop 3.0\x008BIM\3\xed\0\0\xff\xff\xff\xff"),
        segment(0xED, b"Photoshop 3.0\x008BIM\3\xed\0\0\0\0\0\1\0"),
        segment(0xED, b"Photoshop 3.0\x008BIM"),
        segment(0xEE, b"Adobe"),
        segment(0xEE, b"Adobe\0\x64\0\0\0\0"),
        segment(0xFE, b"\xff\xda\xff\xd9" * 100),
        segment(0xFE, b""),
        b"\xff" * 9,
    ],
    ids=lambda beside: f"{beside[:2].hex()}-{zlib.crc32(beside):08x}",
)
def test_no_other_segment_of_a_jpeg_decides_anything(beside):
    assert np.array_equal(grey_levels(with_segments(JPEG, beside)), grey_levels(JPEG))
    assert np.array_equal(grey_levels(with_segments(without_jfif(JPEG), beside)), grey_levels(JPEG))
    if beside[0] == 0xFF:
        before_scan = JPEG.index(b"\xff\xda")
        assert np.array_equal(grey_levels(JPEG[:before_scan] + beside + JPEG[before_scan:]), grey_levels(JPEG))


@pytest.mark.parametrize("whole", [PNG, JPEG])
@pytest.mark.parametrize("trailing", [b"\0", b"\xff\xd9", bytes(5000), JPEG, PNG, b"\r\n"])
def test_bytes_after_the_picture_are_ignored(whole, trailing):
    assert np.array_equal(grey_levels(whole + trailing), grey_levels(whole))


@pytest.mark.parametrize(
    "odd",
    [
        entry(0x011A, 11, 1, struct.pack("<f", -1.5)),
        entry(0x011A, 12, 1, struct.pack("<I", 38)),
        entry(0x011A, 5, 1, struct.pack("<I", 38)),
        entry(0x011A, 10, 1, struct.pack("<I", 38)),
        entry(0x011A, 2, 4, b"72dp"),
        entry(0x011A, 9, 1, struct.pack("<i", -72)),
        entry(0x8769, 4, 1, b"\xff\xff\xff\xff"),
        entry(0x8825, 13, 1, b"\xff\xff\xff\x7f"),
        entry(0x0201, 4, 1, b"\xff\xff\xff\xff"),
        entry(0xEA1C, 7, 2**32 - 1, b""),
        entry(0x0100, 99, 1, b""),
    ],
)
def test_a_picture_is_turned_despite_other_exif_entries(odd):
    content = exif(orientation(3), odd, rest=struct.pack("<iii", 0, -1, 0))
    for data in (
        with_segments(JPEG, app1(content)),
        with_segments(without_jfif(JPEG), app1(content)),
        with_chunks(PNG, chunk(b"eXIf", content)),
    ):
        assert np.abs(grey_levels(data)[:, ::-1] - grey_levels(PNG)).max() <= 3


def test_every_orientation_is_applied_as_pillow_does_it():
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 96), dtype=np.uint8))
    for value, turned in {
        2: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: picture.rotate(180),
        4: picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: picture.transpose(Image.Transpose.TRANSPOSE),
        6: picture.rotate(-90, expand=True),
        7: picture.transpose(Image.Transpose.TRANSVERSE),
        8: picture.rotate(90, expand=True),
    }.items():
        data = with_chunks(encoded(picture), chunk(b"eXIf", exif(orientation(value))))
        assert np.array_equal(grey_levels(data), grey_levels(encoded(turned)))


@pytest.mark.parametrize(
    ("segments", "turned"),
    [
        ([app1(TURNS), app1(exif(orientation(1)))], True),
        ([app1(exif(orientation(1))), app1(TURNS)], False),
        ([app1(b"garbage."), app1(TURNS)], False),
        ([app1(b""), app1(TURNS)], True),
        ([app1(TURNS, b"Exif\0\xff")], True),
        ([app1(TURNS, b"Exif\0\0Exif\0\0")], False),
        ([app1(XMP, b"http://ns.adobe.com/xap/1.0/\0"), app1(TURNS)], True),
    ],
)
def test_the_first_exif_of_several_counts_as_in_browsers(segments, turned):
    data = grey_levels(with_segments(JPEG, *segments))
    assert np.abs((data[:, ::-1] if turned else data) - grey_levels(PNG)).max() <= 3


def test_exif_after_the_first_scan_turns_nothing_as_in_browsers():
    assert np.array_equal(grey_levels(JPEG[:-2] + app1(TURNS) + JPEG[-2:]), grey_levels(JPEG))


@pytest.mark.parametrize(
    "data",
    [
        RGB_JPEG,
        with_segments(RGB_JPEG, segment(0xEE, ADOBE + b"\0")),
        with_segments(RGB_JPEG, segment(0xEE, ADOBE + b"\1"), segment(0xEE, ADOBE + b"\0")),
        with_segments(RGB_JPEG, segment(0xEE, ADOBE + b"\0" + b"longer")),
        encoded(COLOUR, "JPEG", quality=95),
        encoded(COLOUR.convert("CMYK"), "JPEG", quality=95),
        encoded(COLOUR, "JPEG", quality=95, progressive=True),
        encoded(COLOUR, "JPEG", quality=95, restart_marker_blocks=3),
        with_segments(encoded(COLOUR, "JPEG", quality=95), segment(0xEE, ADOBE + b"\0")),  # JFIF decides
    ],
)
def test_a_jpeg_has_the_same_grey_levels_however_its_colours_are_stored(data):
    expected = decode(encoded(COLOUR), SPEC)
    picture = decode(data, SPEC)
    assert np.abs(picture.pixels.astype(int) - expected.pixels).max() <= 6
    assert picture.facts.colour == pytest.approx(expected.facts.colour, abs=8)


@pytest.mark.parametrize("ids", [b"\0\0\0", b"\1\1\1", b"\1\2\2", b"\0\1\2", b"\5\x09\xc8"])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_the_ids_of_a_jpegs_colours_need_not_differ(ids, subsampling):
    data = encoded(COLOUR, "JPEG", quality=95, subsampling=subsampling)
    odd = bytearray(data)
    frame, scan = data.index(b"\xff\xc0") + 10, data.index(b"\xff\xda") + 5
    odd[frame : frame + 9 : 3] = odd[scan : scan + 6 : 2] = ids
    assert np.array_equal(grey_levels(bytes(odd)), grey_levels(data))


ADAM7 = [(1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)]
"""Width and height of each pass over 8 x 8 pixels."""


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize(
    ("bits", "colours", "pixel", "grey"),
    [
        (1, 0, b"\xff", 255),
        (2, 0, b"\xaa", 170),
        (4, 0, b"\x88", 136),
        (8, 0, b"\x80", 128),
        (16, 0, b"\x80\x01", 128),
        (8, 2, b"\x80" * 3, 128),
        (16, 2, b"\x80\x01" * 3, 128),
        (1, 3, b"\xff", 90),
        (8, 3, b"\x01", 90),
        (8, 4, b"\x80\x00", 128),
        (16, 4, b"\x80\x01\x00\x00", 128),
        (8, 6, b"\x80" * 3 + b"\x00", 128),
        (16, 6, b"\x80\x01" * 3 + b"\x00\x00", 128),
    ],
)
def test_every_kind_of_png_is_read(bits, colours, pixel, grey, interlaced):
    passes = ADAM7 if interlaced else [(8, 8)]
    rows = b"".join((b"\0" + pixel * -(-width * min(bits, 8) // 8)) * height for width, height in passes)
    header = png_header(8, 8, bits, colours, interlaced) + chunk(b"PLTE", b"\0\0\0" + b"\x5a" * 3)
    assert set(grey_levels(png(header, zlib.compress(rows))).ravel().tolist()) == {grey}


@pytest.mark.parametrize("palette", [b"", chunk(b"PLTE", b"")])
def test_a_png_whose_palette_is_missing_is_refused(palette):
    data = png(png_header(8, 8, 8, 3) + palette, zlib.compress(bytes(9 * 8)))
    assert refusal(data) == ("undecodable_image", "the image is corrupt: it has no palette")


@pytest.mark.parametrize(
    ("frame", "named"),
    [
        (segment(0xC3, b"\x08\x02\x58\x02\x58\x01\x01\x11\x00"), "lossless"),
        (segment(0xC0, b"\x0c\x02\x58\x02\x58\x01\x01\x11\x00"), "12 bits"),
        (segment(0xC0, b"\x08\x02\x58\x02\x58\x02\x01\x11\x00\x02\x11\x00"), "2 colours"),
        (segment(0xF7, b"\x08\x02\x58\x02\x58\x01\x01\x11\x00"), "JPEG-LS"),
        (segment(0xDE, b"\x08\x02\x58\x02\x58\x01\x01\x11\x00"), "hierarchical"),
    ],
)
def test_a_kind_of_jpeg_that_is_not_read_is_named(frame, named):
    start = JPEG.index(b"\xff\xc0")
    end = start + 2 + int.from_bytes(JPEG[start + 2 : start + 4], "big")
    code, message = refusal(JPEG[:start] + frame + JPEG[end:])
    assert code == "undecodable_image"
    assert named in message


@pytest.mark.parametrize("marker", [b"\xff\xd8", b"\xff\xf0\0\2", b"\xff\xc0\0\2", b"\xff\xda\0\2", b"\xff\xfe\0\0"])
def test_a_jpeg_of_impossible_parts_is_refused(marker):
    assert refusal(with_segments(JPEG, marker))[0] == "undecodable_image"
    assert refusal(JPEG[:-2] + marker + JPEG[-2:])[0] == "undecodable_image"


def test_pixels_that_look_like_a_long_segment_are_not_called_cut_off_for_sure():
    start = JPEG.index(b"\xff\xda") + 12
    assert refusal(JPEG[:start] + b"\xff\x35\xff\x35" + JPEG[start + 4 :]) == (
        "undecodable_image",
        "the image is truncated or corrupt",
    )
