"""DICOM files become grey levels through one window, whatever their transfer syntax and their kind of pixels."""

import io
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate

from chestct import dicom
from chestct.image import encode_png
from chestct.invalid_image import InvalidImage
from pipeline.images.phantoms import draw_phantom
from tests.dicom import BLACK, PATIENT, SLOPE, SYNTAXES, changed, dicom_file, jp2, with_frame, written

pytestmark = pytest.mark.usefixtures("quiet_pydicom")
PHANTOM = np.asarray(draw_phantom(0, np.random.default_rng(7)).convert("L"))


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_every_transfer_syntax_gives_the_windowed_picture(syntax):
    grey = dicom.read(dicom_file(PHANTOM, syntax))
    assert grey.dtype == np.uint8
    assert np.array_equal(grey, PHANTOM)


def test_a_lossy_jpeg_gives_nearly_the_windowed_picture():
    assert np.abs(dicom.read(dicom_file(PHANTOM, uid.JPEGBaseline8Bit)).astype(int) - PHANTOM).max() <= 4


@pytest.mark.parametrize(
    ("syntax", "name", "apart"),
    [(uid.HTJ2KLossless, "lossless", 0), (uid.HTJ2KLosslessRPCL, "lossless", 0), (uid.HTJ2K, "lossy", 1)],
)
def test_high_throughput_jpeg_2000_gives_the_windowed_picture(syntax, name, apart):
    """OpenJPH wrote the codestreams, from the levels below. No package of the tests writes this syntax."""
    rows, columns = np.mgrid[:64, :64]
    levels = np.minimum(((rows - 32) ** 2 + (columns - 32) ** 2) // 4, 255).astype(np.uint8)
    codestream = (Path(__file__).parent / "htj2k" / f"{name}.j2c").read_bytes()
    file = pydicom.dcmread(io.BytesIO(dicom_file(levels)))
    file.PixelData = encapsulate([codestream])
    file.file_meta.TransferSyntaxUID = uid.UID(syntax)
    assert np.abs(dicom.read(written(file)).astype(int) - levels).max() == apart


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("monochrome1", [False, True])
def test_signed_and_inverted_pixels_give_the_same_picture(signed, monochrome1):
    assert np.array_equal(dicom.read(dicom_file(PHANTOM, signed=signed, monochrome1=monochrome1)), PHANTOM)


def test_the_one_window_shows_air_lung_and_soft_tissue():
    data = dicom_file(np.arange(256, dtype=np.uint8)[np.newaxis], RescaleSlope="10", RescaleIntercept="-1200")
    units = np.arange(-1200, 1360, 10)
    grey = dicom.read(data)[0]
    assert np.all(grey[units <= -1100] == 0)
    assert np.all(grey[units >= 399] == 255)
    assert np.array_equal(grey, np.rint(255 * np.clip((units + 350.5) / 1499 + 0.5, 0, 1)))
    assert [int(grey[units == unit][0]) for unit in (-1000, -800, 0, 50)] == [17, 51, 187, 196]


def test_a_modality_lut_gives_the_units():
    item = pydicom.Dataset()
    item.LUTDescriptor, item.ModalityLUTType, item.LUTData = [256, 0, 16], "US", [2000] * 128 + [0] * 128
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    data = dicom_file(np.arange(256, dtype=np.uint8)[np.newaxis], RescaleSlope=None, RescaleIntercept=None)
    assert (
        dicom.read(changed(data, ModalityLUTSequence=[item]))[0].tolist()
        == [255] * 128 + [dicom.read(dicom_file(PHANTOM * 0 + 187))[0, 0]] * 128
    )


def test_bits_above_the_stored_ones_do_not_count():
    data = dicom_file(PHANTOM, BitsStored=12, HighBit=11)
    file = pydicom.dcmread(io.BytesIO(data))
    file.PixelData = (file.pixel_array | 0x4000).tobytes()
    assert np.array_equal(dicom.read(written(file)), PHANTOM)


def test_of_pydicoms_test_files_the_ct_is_read_and_the_mr_refused():
    grey = dicom.read(Path(get_testdata_file("CT_small.dcm")).read_bytes())
    assert grey.shape == (128, 128)
    assert (grey.min(), grey.max()) == (35, 255)
    with pytest.raises(InvalidImage, match="modality CT"):
        dicom.read(Path(get_testdata_file("MR_small.dcm")).read_bytes())


@pytest.mark.parametrize(
    ("elements", "word"),
    [
        ({"Modality": "SECRET"}, "modality"),
        ({"Modality": None}, r"element Modality \(0008,0060\), got a file without it"),
        ({"Modality": ""}, r"element Modality \(0008,0060\), got a file in which it is empty"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"NumberOfFrames": 2}, "one frame"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}, "colours"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, r"PhotometricInterpretation \(0028,0004\), got another"),
        ({"BitsAllocated": 32}, "bits"),
        ({"HighBit": 14}, "bits"),
        ({"RescaleSlope": None}, r"RescaleSlope \(0028,1053\), got a file without"),
        ({"RescaleIntercept": None}, r"RescaleIntercept \(0028,1052\), got a file without"),
        ({"Rows": None}, r"Rows \(0028,0010\), got a file without"),
        ({"BitsAllocated": None}, r"BitsAllocated \(0028,0100\), got a file without"),
        ({"PixelRepresentation": None}, r"PixelRepresentation \(0028,0103\), got a file without"),
        ({"PhotometricInterpretation": None}, r"PhotometricInterpretation \(0028,0004\), got a file without"),
    ],
)
def test_a_file_without_a_single_ct_slice_is_refused_with_the_reason(elements, word):
    with pytest.raises(InvalidImage, match=word) as caught:
        dicom.read(dicom_file(PHANTOM, **elements))
    assert caught.value.code == "unsupported_dicom"
    assert "SECRET" not in caught.value.message


def test_another_transfer_syntax_is_refused_with_those_that_are_read():
    data = dicom_file(PHANTOM).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0")
    with pytest.raises(InvalidImage, match=r"transfer syntaxes.*JPEG 2000") as caught:
        dicom.read(data)
    assert caught.value.code == "unsupported_dicom"


def test_a_lossy_jpeg_of_12_bits_has_the_values_that_other_decoders_give():
    """Values of pydicom's test file, which its own tests have from two decoders."""
    data = Path(get_testdata_file("JPGExtended.dcm")).read_bytes()
    ct = changed(data, Modality="CT", ImageType=None, RescaleSlope=f"{SLOPE:.12f}", RescaleIntercept=BLACK)
    grey = dicom.read(ct)  # one level for each value
    assert (grey[420, 140], grey[230, 120]) == (244, 95)


ROWS = PHANTOM.shape[0]
BROKEN = {
    "cut in the pixels": lambda: dicom_file(PHANTOM)[:-1000],
    "cut in the deflated part": lambda: dicom_file(PHANTOM, uid.DeflatedExplicitVRLittleEndian)[:-1000],
    "more rows than pixels": lambda: dicom_file(PHANTOM, Rows=ROWS + 1),
    "half the rows": lambda: dicom_file(PHANTOM, Rows=ROWS // 2),
    "no pixels": lambda: dicom_file(PHANTOM, PixelData=None),
    "empty pixels": lambda: dicom_file(PHANTOM, PixelData=b""),
    "nothing but its beginning": lambda: bytes(128) + b"DICM",
    "nothing but zeros": lambda: bytes(128) + b"DICM" + bytes(1000),
    "a sequence of something else": lambda: _with_element(b"\x09\0\x01\0SQ\0\0\xff\xff\xff\xff" + b"\x09\0\x02\0" * 9),
    "frames in words": lambda: _with_element(b"(\0\x08\0IS\4\0many"),
    "a slope in words": lambda: _with_element(b"(\0\x53\x10DS\x04\0ten ", in_front_of=b"(\0\x53\x10DS"),
    "a JPEG of more bits than are there": lambda: changed(
        dicom_file(PHANTOM, uid.JPEGLosslessSV1), BitsAllocated=8, BitsStored=8, HighBit=7
    ),
    "a JP2 without a codestream": lambda: with_frame(PHANTOM, lambda _: jp2(b"")[:40]),
    "no rows": lambda: dicom_file(PHANTOM, Rows=0),
    "RLE of fewer rows": lambda: changed(dicom_file(PHANTOM, uid.RLELossless), Rows=ROWS + 40),
    "RLE of more rows": lambda: changed(dicom_file(PHANTOM, uid.RLELossless), Rows=ROWS - 40),
    "JPEG of fewer rows": lambda: changed(dicom_file(PHANTOM, uid.JPEGLosslessSV1), Rows=ROWS + 40),
    "JPEG-LS of fewer rows": lambda: changed(dicom_file(PHANTOM, uid.JPEGLSLossless), Rows=ROWS + 40),
    "JPEG 2000 of more rows": lambda: changed(dicom_file(PHANTOM, uid.JPEG2000Lossless), Rows=ROWS - 40),
    "JPEG 2000 cut in half": lambda: with_frame(PHANTOM, lambda frame: frame[: len(frame) // 2]),
    "JPEG 2000 without its end": lambda: with_frame(PHANTOM, lambda frame: frame[:-10]),
    "JPEG 2000 of 60000 x 60000": lambda: with_frame(
        PHANTOM, lambda f: f[:8] + struct.pack(">II", 60000, 60000) + f[16:]
    ),
    "RLE cut in half": lambda: with_frame(PHANTOM, lambda frame: frame[: len(frame) // 2], uid.RLELossless),
    "a PNG as JPEG 2000": lambda: with_frame(PHANTOM, lambda _: encode_png(PHANTOM)),
    "a PNG as JPEG": lambda: with_frame(PHANTOM, lambda _: encode_png(PHANTOM), uid.JPEGLosslessSV1),
    "a PNG as RLE": lambda: with_frame(PHANTOM, lambda _: encode_png(PHANTOM), uid.RLELossless),
    "a JPEG without a picture": lambda: with_frame(PHANTOM, lambda _: b"\xff\xd8" + b"\xff\xe0\0\2" * 100),
    "endless units": lambda: dicom_file(PHANTOM, RescaleSlope="1e308", RescaleIntercept="1e308"),
    "units that are no number": lambda: dicom_file(PHANTOM, RescaleSlope="NaN"),
}


def _with_element(element, *, in_front_of=b"(\0\x02\0US", data=None):
    """The file with one more element before another."""
    data = data or dicom_file(PHANTOM)
    assert data.count(in_front_of) == 1
    return data.replace(in_front_of, element + in_front_of)


@pytest.mark.parametrize("make", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_with_nothing_of_its_header(make):
    with pytest.raises(InvalidImage) as caught:
        dicom.read(make())
    assert caught.value.code == "undecodable_image"
    assert PATIENT not in caught.value.message


def test_a_header_of_a_huge_picture_is_refused_before_anything_is_decoded():
    for syntax in (uid.ExplicitVRLittleEndian, uid.JPEG2000Lossless):
        with pytest.raises(InvalidImage, match="at most 16777216 pixels") as caught:
            dicom.read(changed(dicom_file(PHANTOM, syntax), Rows=30_000, Columns=30_000))
        assert caught.value.code == "image_too_large"
        with pytest.raises(InvalidImage, match="and 8192 a side"):
            dicom.read(changed(dicom_file(PHANTOM, syntax), Rows=8193, Columns=1))
