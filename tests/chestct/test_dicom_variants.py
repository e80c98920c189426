"""Good pixels are read despite odd elements, and a truncated file has one code at every cut."""

import io
import re
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, get_frame

from chestct import dicom
from chestct.dicom_format import MAX_ELEMENTS, is_dicom
from chestct.invalid_image import InvalidImage
from tests.dicom import by_gdcm, changed, dicom_file, jp2, with_frame, written

pytestmark = pytest.mark.usefixtures("quiet_pydicom")
LEVELS = np.add.outer(np.arange(0, 120, 3), np.arange(0, 128, 2)).astype(np.uint8)
IMPLICIT, EXPLICIT, BIG = uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian
UNDEFINED, ITEM, END = b"\xff\xff\xff\xff", b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\0\0\0\0"
END_OF_ITEM = b"\xfe\xff\x0d\xe0\0\0\0\0"


def code_of(data):
    with pytest.raises(InvalidImage) as caught:
        dicom.read(data)
    return caught.value.code


def data_set(data):
    """The file without the preamble and the elements of group 2."""
    return data[144 + int.from_bytes(data[140:144], "little") :]


def meta(data):
    return data[: len(data) - len(data_set(data))]


def without(data, *keywords):
    file = pydicom.dcmread(io.BytesIO(data))
    for keyword in keywords:
        delattr(file, keyword)
    return written(file)


def with_pixels(change, data=None, *, undefined_length=False):
    """The file with other bytes as Pixel Data, which is the last element."""
    data = dicom_file(LEVELS) if data is None else data
    at = data.rindex(b"\xe0\x7f\x10\0") + 12
    pixels = change(data[at:])
    return data[: at - 4] + (UNDEFINED if undefined_length else struct.pack("<I", len(pixels))) + pixels


def with_elements(elements, before=b"(\0\x02\0US"):
    data = dicom_file(LEVELS)
    assert data.count(before) == 1
    return data.replace(before, elements + before)


def in_groups(*, per_frame):
    """The rescale elements in their place in an enhanced CT."""
    file = pydicom.dcmread(io.BytesIO(dicom_file(LEVELS)))
    values, groups = pydicom.Dataset(), pydicom.Dataset()
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = file.RescaleSlope, file.RescaleIntercept, "HU"
    groups.PixelValueTransformationSequence = [values]
    del file.RescaleSlope, file.RescaleIntercept
    file.SharedFunctionalGroupsSequence = [pydicom.Dataset() if per_frame else groups]
    file.PerFrameFunctionalGroupsSequence = [groups if per_frame else pydicom.Dataset()]
    file.NumberOfFrames = 1
    return written(file)


def in_fragments():
    file = pydicom.dcmread(io.BytesIO(dicom_file(LEVELS, uid.JPEG2000Lossless)))
    frame = get_frame(file.PixelData, 0, number_of_frames=1)
    file.PixelData = encapsulate([frame], fragments_per_frame=3)
    return written(file)


def undefined(tag, kind, content):
    return tag + kind + b"\0\0" + UNDEFINED + content + END


ICON = (
    ITEM + UNDEFINED + b"(\0\x10\0US\2\0\x01\0" + b"\xe0\x7f\x10\0OW\0\0\2\0\0\0ab" + END_OF_ITEM
)  # a thumbnail within the header
PLAIN = dicom_file(LEVELS)
GOOD = {
    "two bytes of padding": lambda: with_pixels(lambda pixels: pixels + b"\0\0"),
    "much padding": lambda: with_pixels(lambda pixels: pixels + bytes(1024)),
    "bytes FF behind": lambda: PLAIN + b"\xff" * 300,
    "three bytes FF behind": lambda: PLAIN + b"\xff" * 3,
    "zeros behind": lambda: PLAIN + bytes(100),
    "half an element behind": lambda: PLAIN + b"\xfc\xff\xfc\xffOB\0\0\xff\0\0\0",
    "no transfer syntax, explicit": lambda: bytes(128) + b"DICM" + data_set(PLAIN),
    "no transfer syntax, implicit": lambda: bytes(128) + b"DICM" + data_set(dicom_file(LEVELS, IMPLICIT)),
    "no transfer syntax, big-endian": lambda: bytes(128) + b"DICM" + data_set(dicom_file(LEVELS, BIG)),
    "an empty transfer syntax": lambda: bytes(128) + b"DICM\2\0\x10\0UI\0\0" + data_set(PLAIN),
    "another form than its transfer syntax says": lambda: meta(dicom_file(LEVELS, IMPLICIT)) + data_set(PLAIN),
    "implicit where it says explicit": lambda: meta(PLAIN) + data_set(dicom_file(LEVELS, IMPLICIT)),
    "no preamble": lambda: PLAIN[132:],
    "no preamble and no group 2, explicit": lambda: data_set(PLAIN),
    "no preamble and no group 2, implicit": lambda: data_set(dicom_file(LEVELS, IMPLICIT)),
    "no preamble and no group 2, big-endian": lambda: data_set(dicom_file(LEVELS, BIG)),
    "no preamble, deflated": lambda: dicom_file(LEVELS, uid.DeflatedExplicitVRLittleEndian)[132:],
    "no High Bit": lambda: without(PLAIN, "HighBit"),
    "no Bits Stored": lambda: without(PLAIN, "BitsStored"),
    "an empty Bits Stored and High Bit": lambda: changed(PLAIN, BitsStored=None, HighBit=None),
    "no Samples per Pixel": lambda: without(PLAIN, "SamplesPerPixel"),
    "no Image Type": lambda: without(PLAIN, "ImageType"),
    "an empty Image Type": lambda: changed(PLAIN, ImageType=None),
    "an empty Number of Frames": lambda: changed(PLAIN, NumberOfFrames=None),
    "one kind unknown": lambda: PLAIN.replace(b"\x08\0\x60\0CS", b"\x08\0\x60\0??"),
    "all kinds unknown": lambda: re.sub(rb"(?s)([\x08\x28]\0..)(CS|US|DS|UI)", rb"\1??", PLAIN),
    "shared groups": lambda: in_groups(per_frame=False),
    "groups of the frame": lambda: in_groups(per_frame=True),
    "a JP2": lambda: with_frame(LEVELS, jp2),
    "a JP2 in a long box": lambda: with_frame(
        LEVELS, lambda frame: jp2(b"")[:-8] + struct.pack(">I4sQ", 1, b"jp2c", 16 + len(frame)) + frame
    ),
    "a JP2 in a box to the end": lambda: with_frame(LEVELS, lambda frame: jp2(b"")[:-8] + b"\0\0\0\0jp2c" + frame),
    "no end of the sequence": lambda: dicom_file(LEVELS, uid.JPEG2000Lossless)[:-8],
    "half an end of the sequence": lambda: dicom_file(LEVELS, uid.JPEGLSLossless)[:-5],
    "fragments": lambda: in_fragments(),
    "no table of offsets": lambda: with_pixels(
        lambda pixels: pixels[12:], dicom_file(LEVELS, uid.JPEG2000Lossless), undefined_length=True
    ),
    **{
        f"RLE with {len(padding)} bytes {padding[:1].hex()} behind": lambda padding=padding: with_frame(
            LEVELS, lambda frame: frame + padding, uid.RLELossless
        )
        for padding in (b"\0", b"\0\0", bytes(3), bytes(1024), b"\xff" * 8)
    },
    "bytes FF before a marker": lambda: with_frame(
        LEVELS, lambda frame: frame.replace(b"\xff\xc3", b"\xff\xff\xff\xc3"), uid.JPEGLosslessSV1
    ),
    "an icon": lambda: with_elements(undefined(b"\x08\0\xfe\0", b"SQ", ICON)),
    "a sequence of unknown kind, implicit": lambda: with_elements(
        undefined(b"\x09\0\x01\0", b"UN", ITEM + UNDEFINED + b"\x09\0\x02\0\4\0\0\0abcd" + END_OF_ITEM)
    ),
    "a sequence in a sequence": lambda: with_elements(
        undefined(
            b"\x09\0\x01\0", b"SQ", ITEM + UNDEFINED + undefined(b"\x09\0\2\0", b"SQ", ITEM + bytes(4)) + END_OF_ITEM
        )
    ),
    "an empty item": lambda: with_elements(undefined(b"\x09\0\x01\0", b"SQ", ITEM + UNDEFINED + END_OF_ITEM)),
    "many elements": lambda: with_elements(b"\x09\0\x01\0LO\0\0" * (MAX_ELEMENTS - 100)),
}


@pytest.mark.parametrize("make", GOOD.values(), ids=GOOD)
def test_good_pixels_are_read_despite_odd_elements(make):
    data = make()
    assert is_dicom(data)
    assert np.array_equal(dicom.read(data), LEVELS)


@pytest.mark.parametrize("keyword", ["RescaleIntercept", "RescaleSlope"])
def test_an_empty_rescale_element_is_named_since_to_guess_it_would_shift_all_units(keyword):
    with pytest.raises(InvalidImage, match="in which it is empty") as refused:
        dicom.read(changed(PLAIN, **{keyword: None}))
    assert refused.value.code == "unsupported_dicom"
    assert keyword.removeprefix("Rescale") in refused.value.message


def with_lut(**elements):
    item = pydicom.Dataset()
    for name, value in elements.items():
        item.add_new(name, "US" if name == "LUTDescriptor" else "OW", value)
    return changed(PLAIN, ModalityLUTSequence=[item])


def test_an_incomplete_modality_lut_is_read_or_named():
    assert np.array_equal(dicom.read(with_lut()), LEVELS)
    assert np.array_equal(dicom.read(with_lut(LUTDescriptor=[256, 0, 16], LUTData=b"")), LEVELS)
    for lut in ({"LUTData": bytes(512)}, {"LUTDescriptor": None, "LUTData": bytes(512)}):
        with pytest.raises(InvalidImage, match=r"element LUTDescriptor \(0028,3002\)"):
            dicom.read(with_lut(**lut))


def test_compressed_pixels_without_a_compressed_transfer_syntax_are_named():
    data = dicom_file(LEVELS, uid.JPEG2000Lossless)
    uncompressed = meta(PLAIN) + data_set(data)
    with pytest.raises(InvalidImage, match="pixels are compressed, against") as caught:
        dicom.read(uncompressed)
    assert caught.value.code == "undecodable_image"


def test_an_odd_number_of_bytes_needs_no_padding():
    small = np.arange(15, dtype=np.uint8).reshape(3, 5)
    data = dicom_file(small, BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=small.tobytes())
    assert np.array_equal(dicom.read(data), small)
    assert np.array_equal(dicom.read(with_pixels(lambda pixels: pixels[:15], data)), small)


@pytest.mark.parametrize("syntax", [EXPLICIT, BIG, uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless])
@pytest.mark.parametrize("signed", [False, True])
def test_twelve_bits_are_read_signed_or_not(syntax, signed):
    file = pydicom.dcmread(io.BytesIO(dicom_file(LEVELS, signed=signed)))
    file.BitsStored, file.HighBit = 12, 11
    if syntax == uid.JPEGLSLossless:
        file = by_gdcm(file, syntax)
    elif syntax == BIG:
        file = pydicom.dcmread(io.BytesIO(dicom_file(LEVELS, BIG, signed=signed, BitsStored=12, HighBit=11)))
    elif syntax != EXPLICIT:
        file.compress(syntax, generate_instance_uid=False)
    assert np.array_equal(dicom.read(written(file)), LEVELS)


@pytest.mark.parametrize("monochrome1", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_padding_is_black_whatever_its_value(signed, monochrome1):
    """The padding is a value, or a range that begins with it."""
    padded = LEVELS > 200
    assert padded.any()
    file = pydicom.dcmread(io.BytesIO(dicom_file(LEVELS, signed=signed, monochrome1=monochrome1)))
    stored = file.pixel_array.copy()
    stored[padded] = 30_000
    stored[0, 0] = 30_001
    file.PixelData = stored.tobytes()
    file.PixelPaddingValue = 30_000
    file["PixelPaddingValue"].VR = "SS" if signed else "US"
    one_value = dicom.read(written(file))
    expected = np.where(padded, 0, LEVELS)
    assert np.array_equal(one_value[1:], expected[1:])
    assert one_value[0, 0] == 255
    file.PixelPaddingRangeLimit = 30_001
    file["PixelPaddingRangeLimit"].VR = "SS" if signed else "US"
    expected[0, 0] = 0
    assert np.array_equal(dicom.read(written(file)), expected)
    file.PixelPaddingValue, file.PixelPaddingRangeLimit = 30_001, 30_000
    assert np.array_equal(dicom.read(written(file)), expected)


def test_padding_that_does_not_occur_changes_nothing():
    for value in (0xFFFF, 40_000):
        assert np.array_equal(dicom.read(dicom_file(LEVELS, PixelPaddingValue=value)), LEVELS)
    negative = dicom_file(LEVELS, signed=True, PixelPaddingValue=-2000)
    assert np.array_equal(dicom.read(negative), LEVELS)


def test_a_compressed_file_without_its_transfer_syntax_is_refused():
    data = bytes(128) + b"DICM" + data_set(dicom_file(LEVELS, uid.JPEG2000Lossless))
    with pytest.raises(InvalidImage, match=r"TransferSyntaxUID \(0002,0010\), got a file without it") as caught:
        dicom.read(data)
    assert caught.value.code == "unsupported_dicom"


@pytest.mark.parametrize(
    "make",
    [
        lambda: dicom_file(LEVELS[:4, :4]),
        lambda: dicom_file(LEVELS[:4, :4], IMPLICIT),
        lambda: dicom_file(LEVELS[:4, :4], BIG),
        lambda: dicom_file(LEVELS[:4, :4], uid.DeflatedExplicitVRLittleEndian)[:-1],  # the last byte may be padding
        lambda: dicom_file(LEVELS[:4, :4], uid.RLELossless)[:-8],
        lambda: dicom_file(LEVELS[:32, :32], uid.JPEG2000Lossless)[:-8],
        lambda: dicom_file(LEVELS[:4, :4], uid.JPEGLSLossless)[:-8],
        lambda: dicom_file(LEVELS[:4, :4], uid.JPEGLosslessSV1)[:-8],
        lambda: in_groups(per_frame=True)[:700],
        lambda: data_set(dicom_file(LEVELS[:4, :4])),
        lambda: data_set(dicom_file(LEVELS[:4, :4], IMPLICIT)),
    ],
    ids=[
        "explicit",
        "implicit",
        "big-endian",
        "deflated",
        "RLE",
        "JPEG 2000",
        "JPEG-LS",
        "JPEG",
        "enhanced",
        "no preamble",
        "no preamble, implicit",
    ],
)
def test_a_truncated_file_has_one_code_at_every_cut(make):
    data = make()
    codes = {cut: code_of(data[:cut]) for cut in range(len(data)) if is_dicom(data[:cut])}
    assert len(codes) > len(data) / 2
    assert set(codes.values()) == {"undecodable_image"}, codes


@pytest.mark.parametrize(
    "syntax",
    [
        *(uid.RLELossless, uid.JPEGBaseline8Bit, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless),
        uid.JPEGExtended12Bit,
    ],
    ids=lambda syntax: syntax.name,
)
def test_a_compressed_picture_that_ends_early_has_the_same_code(syntax):
    """The file itself is complete."""
    if syntax == uid.JPEGExtended12Bit:
        other = Path(get_testdata_file("JPGExtended.dcm")).read_bytes()
        data = changed(other, Modality="CT", ImageType=None, RescaleSlope=1, RescaleIntercept=0)
    else:
        data = dicom_file(LEVELS, syntax)
    file = pydicom.dcmread(io.BytesIO(data))
    frame = get_frame(file.PixelData, 0, number_of_frames=1)
    for share in range(1, 16):
        file.PixelData = encapsulate([frame[: len(frame) * share // 16]])
        assert code_of(written(file)) == "undecodable_image", share


HOSTILE = {
    "elements": lambda: with_elements(b"\x09\0\x01\0LO\0\0" * 1_000_000),
    "items": lambda: with_elements(undefined(b"\x09\0\x01\0", b"SQ", (ITEM + bytes(4)) * 1_000_000)),
    "sequences in sequences": lambda: with_elements((b"\x09\0\x01\0SQ\0\0" + UNDEFINED + ITEM + UNDEFINED) * 500_000),
    "fragments": lambda: with_elements(b"\xe0\x7f\x10\0OB\0\0" + UNDEFINED + (ITEM + bytes(4)) * 1_000_000),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_a_file_of_too_many_parts_is_refused_with_the_bound(make):
    with pytest.raises(InvalidImage, match="at most") as caught:
        dicom.read(make())
    assert caught.value.code == "undecodable_image"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"DICM" + bytes(200),
        b"\x08\0",
        b"\x08\0\0\0\4\0\0\0\1\0\0\0" + bytes(100),
        struct.pack("<100I", *range(8, 108)),
        struct.pack("<100H", *range(8, 108)),
        b"\x02\0" * 100,
        b"\0\x08" + bytes(range(200)),
        b"\x89PNG\r\n\x1a\n" + bytes(200),
        b"\x08\0\5\0CS\n\0ISO_IR 100",
    ],
)
def test_other_data_is_no_dicom_file(data):
    assert not is_dicom(data)
