import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.data import get_testdata_file

from chestct import dicom
from chestct.image import InvalidImage, encode_png
from pipeline.phantoms import draw_phantom
from serving.window import LUNG
from tests.dicom import PATIENT, SYNTAXES, dicom_file, with_frame, written

PHANTOM = np.asarray(draw_phantom(0, np.random.default_rng(7)).convert("L"))


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pydicom")  # of what is wrong in a file, which is what is tested
        yield


def read(data):
    return dicom.read(data, *LUNG)


def changed(data, **elements):
    """The file with other values in its header; its pixels stay."""
    file = pydicom.dcmread(io.BytesIO(data))
    for name, value in elements.items():
        setattr(file, name, value)
    return written(file)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_every_transfer_syntax_gives_the_windowed_picture(syntax):
    grey = read(dicom_file(PHANTOM, syntax))
    assert grey.dtype == np.uint8
    assert np.array_equal(grey, PHANTOM)


def test_a_lossy_jpeg_gives_nearly_the_windowed_picture():
    assert np.abs(read(dicom_file(PHANTOM, uid.JPEGBaseline8Bit)).astype(int) - PHANTOM).max() <= 4


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("monochrome1", [False, True])
def test_signed_and_inverted_pixels_give_the_same_picture(signed, monochrome1):
    assert np.array_equal(read(dicom_file(PHANTOM, signed=signed, monochrome1=monochrome1)), PHANTOM)


def test_the_window_says_which_units_are_black_and_white():
    data = dicom_file(np.arange(256, dtype=np.uint8)[np.newaxis], RescaleSlope="10", RescaleIntercept="-1000")
    units = np.arange(-1000, 1560, 10)
    grey = dicom.read(data, 40, 400)[0]
    assert np.all(grey[units <= 40 - 200] == 0)
    assert np.all(grey[units >= 40 + 199] == 255)
    assert np.array_equal(grey, np.rint(255 * np.clip((units - 39.5) / 399 + 0.5, 0, 1)))
    assert np.array_equal(dicom.read(data, 40, 1)[0], np.where(units > 39.5, 255, 0))


def test_a_modality_lut_gives_the_units():
    item = pydicom.Dataset()
    item.LUTDescriptor, item.ModalityLUTType, item.LUTData = [256, 0, 16], "US", [2000] * 128 + [0] * 128
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    data = dicom_file(np.arange(256, dtype=np.uint8)[np.newaxis], RescaleSlope=None, RescaleIntercept=None)
    assert (
        read(changed(data, ModalityLUTSequence=[item]))[0].tolist()
        == [255] * 128 + [read(dicom_file(PHANTOM * 0 + 230))[0, 0]] * 128
    )


def test_bits_above_the_stored_ones_do_not_count():
    data = dicom_file(PHANTOM, BitsStored=12, HighBit=11)
    file = pydicom.dcmread(io.BytesIO(data))
    file.PixelData = (file.pixel_array | 0x4000).tobytes()
    assert np.array_equal(read(written(file)), PHANTOM)


def test_of_pydicoms_test_files_the_ct_is_read_and_the_mr_refused():
    grey = read(Path(get_testdata_file("CT_small.dcm")).read_bytes())
    assert grey.shape == (128, 128)
    assert (grey.min(), grey.max()) == (77, 255)
    with pytest.raises(InvalidImage, match="modality CT"):
        read(Path(get_testdata_file("MR_small.dcm")).read_bytes())


@pytest.mark.parametrize(
    ("elements", "word"),
    [
        ({"Modality": "SECRET"}, "modality"),
        ({"Modality": None}, "modality"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"NumberOfFrames": 2}, "one frame"),
        ({"PixelData": None}, "pixels"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}, "colours"),
        ({"BitsAllocated": 32}, "bits"),
        ({"HighBit": 14}, "bits"),
        ({"RescaleSlope": None}, "Rescale"),
    ],
)
def test_what_is_no_single_ct_slice_is_refused_with_the_reason(elements, word):
    with pytest.raises(InvalidImage, match=word) as caught:
        read(dicom_file(PHANTOM, **elements))
    assert caught.value.code == "unsupported_dicom"
    assert "SECRET" not in caught.value.message


def test_another_transfer_syntax_is_refused_with_those_that_are_read():
    data = dicom_file(PHANTOM).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0")
    with pytest.raises(InvalidImage, match=r"transfer syntaxes.*JPEG 2000") as caught:
        read(data)
    assert caught.value.code == "unsupported_dicom"


ROWS = PHANTOM.shape[0]
BROKEN = {
    "cut in the pixels": lambda: dicom_file(PHANTOM)[:-1000],
    "cut in the deflated part": lambda: dicom_file(PHANTOM, uid.DeflatedExplicitVRLittleEndian)[:-1000],
    "more rows than pixels": lambda: dicom_file(PHANTOM, Rows=ROWS + 1),
    "fewer rows than pixels": lambda: dicom_file(PHANTOM, Rows=ROWS - 1),
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


@pytest.mark.parametrize("make", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_with_nothing_of_its_header(make):
    with pytest.raises(InvalidImage) as caught:
        read(make())
    assert caught.value.code == "undecodable_image"
    assert PATIENT not in caught.value.message


def test_a_header_of_a_huge_picture_is_refused_before_anything_is_decoded():
    for syntax in (uid.ExplicitVRLittleEndian, uid.JPEG2000Lossless):
        with pytest.raises(InvalidImage, match="at most 16777216 pixels") as caught:
            read(changed(dicom_file(PHANTOM, syntax), Rows=30_000, Columns=30_000))
        assert caught.value.code == "image_too_large"
