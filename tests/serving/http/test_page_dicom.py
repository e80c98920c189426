"""DICOM on the page: windows, level and width, and series and ZIPs as stacks that are scrolled through."""

import zipfile
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import FilePayload, expect
from pydicom import uid

from chestct import dicom
from pipeline.images.classes import CLASSES, TITLES
from tests.browser import PHONE, Visit, needs_chromium, png, upload
from tests.dicom import dicom_file
from tests.graphs import narrow_picture, tiny_picture, unfamiliar_picture

pytestmark = needs_chromium

LEVELS = tiny_picture(1, size=64)[:, :, 0]
READ_HERE = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian)


def on_screen(visit: Visit) -> np.ndarray:
    """The canvas as grey levels, uint8 [rows, columns]."""
    expect(visit.page.locator("#hounsfield")).to_be_visible()
    url = visit.page.locator("#hounsfield").evaluate("canvas => canvas.toDataURL()")
    return np.asarray(Image.open(BytesIO(b64decode(url.partition(",")[2]))).convert("L"))


def through(levels: np.ndarray, level: float, width: float) -> np.ndarray:
    """Grey levels through the model's window, seen through another window."""
    units = dicom.CENTER - 0.5 - (dicom.WIDTH - 1) / 2 + levels.astype(float) * (dicom.WIDTH - 1) / 255
    share = np.clip((units - (level - 0.5)) / (width - 1) + 0.5, 0, 1)
    return np.asarray(np.rint(255 * share))


@pytest.mark.parametrize("syntax", [*READ_HERE, uid.ExplicitVRBigEndian], ids=lambda syntax: syntax.name)
def test_the_page_reads_uncompressed_dicom_as_the_service_does(visit: Visit, syntax: uid.UID) -> None:
    file = dicom_file(LEVELS, syntax, signed=syntax != uid.ImplicitVRLittleEndian)
    visit.choose(upload(file, "slice.dcm", "application/dicom"))

    visit.sees("result", "Answer given")
    expect(visit.page.locator("#file-facts")).to_contain_text("64 \u00d7 64")
    assert np.abs(on_screen(visit).astype(int) - dicom.read(file)).max() <= 1
    expect(visit.page.get_by_role("radio", name="The model's")).to_be_checked()


@pytest.mark.parametrize("monochrome1", [False, True], ids=["light is dense", "dark is dense"])
def test_padding_is_black_in_either_photometric(visit: Visit, monochrome1: bool) -> None:
    padded = LEVELS.copy()
    padded[:8] = 7
    file = dicom_file(padded, monochrome1=monochrome1, PixelPaddingValue=7)
    visit.choose(upload(file, "slice.dcm"))

    visit.sees("result", "Answer given")
    assert np.abs(on_screen(visit).astype(int) - dicom.read(file)).max() <= 1
    assert on_screen(visit)[:8].max() == 0


def test_presets_sliders_and_dragging_change_the_window(visit: Visit) -> None:
    page = visit.page
    visit.choose(upload(dicom_file(LEVELS), "slice.dcm"))
    visit.sees("result", "Answer given")
    on_screen(visit)
    for name, level, width in (("Lung", -600, 1500), ("Mediastinal", 40, 400), ("Bone", 400, 1800), ("Wide", 0, 2000)):
        page.locator("#windows").get_by_text(name).click()
        assert (page.get_by_label("Level").input_value(), page.get_by_label("Width").input_value()) == (
            str(level),
            str(width),
        )
        assert np.abs(on_screen(visit) - through(LEVELS, level, width)).max() <= 1
    page.get_by_label("Width").fill("1000")
    assert np.abs(on_screen(visit) - through(LEVELS, 0, 1000)).max() <= 1
    expect(page.locator("#windows input:checked")).to_have_count(0)

    page.evaluate("scrollTo(0, 0)")
    box = page.locator("#hounsfield").bounding_box()
    assert box
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 70)
    page.mouse.up()
    assert (page.get_by_label("Level").input_value(), page.get_by_label("Width").input_value()) == ("60", "1300")
    page.get_by_role("button", name="Reset").click()
    expect(page.get_by_role("radio", name="The model's")).to_be_checked()
    expect(page.get_by_label("Brightness")).to_be_hidden()


def test_the_heat_map_lies_on_what_the_model_saw_of_a_dicom_file(visit: Visit) -> None:
    visit.choose(upload(dicom_file(LEVELS), "slice.dcm"))
    visit.sees("result", "Answer given")
    on_screen(visit)
    expect(visit.page.locator("#heat")).to_be_hidden()

    visit.page.locator("#heat-classes").get_by_text(TITLES[CLASSES[1]]).click()

    expect(visit.page.locator("#heat")).to_be_visible()
    expect(visit.page.locator("#hounsfield")).to_be_hidden()
    expect(visit.page.get_by_text("What the model saw of this file")).to_be_visible()
    assert visit.page.locator("#picture").evaluate("image => image.naturalWidth") == 32


def test_of_compressed_dicom_the_page_shows_what_the_model_saw(visit: Visit) -> None:
    visit.choose(upload(dicom_file(LEVELS, uid.JPEG2000Lossless), "slice.dcm", "application/dicom"))

    visit.sees("result", "Answer given")
    expect(visit.page.locator("#picture")).to_be_visible()
    expect(visit.page.get_by_text("What the model saw of this file")).to_be_visible()
    expect(visit.page.locator("#windows")).to_be_hidden()


def series(count: int) -> list[FilePayload]:
    """Slices of one series, whose places run against their names. Slice i is of class i % 4."""
    return [
        upload(
            dicom_file(
                tiny_picture(i % 4, size=64)[:, :, 0],
                SeriesInstanceUID="1.2.3",
                InstanceNumber=i + 1,
                ImagePositionPatient=[0, 0, -2.5 * i],
                ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ),
            f"{i}.dcm",
        )
        for i in range(count)
    ]


def test_a_series_is_one_stack_in_the_order_of_its_places(visit: Visit) -> None:
    page = visit.page
    page.set_input_files("#file", series(5))

    expect(page.locator("#progress-words")).to_have_text("5 of 5 pictures done")
    expect(page.locator("#thumbs li")).to_have_count(1)
    expect(page.locator(".thumb-name")).to_have_text("0.dcm: 5 slices")
    expect(page.locator(".thumb-outcome .icon")).to_be_hidden()  # slices may have different answers
    expect(page.locator("#stack-place")).to_have_text("3 of 5")
    expect(page.locator("#file-name")).to_have_text("2.dcm")
    expect(page.locator("#stack-counts")).to_have_text("Answer given: 5.")
    assert page.locator("#stack-strip i[data-tone=accept]").count() == 5

    page.locator("#windows").get_by_text("Bone").click()
    page.locator("#screen").hover()
    page.mouse.wheel(0, 100)
    expect(page.locator("#file-name")).to_have_text("1.dcm")
    expect(page.locator("#label")).to_have_text(TITLES[CLASSES[1]])
    expect(page.get_by_role("radio", name="Bone")).to_be_checked()  # the window stays
    page.get_by_role("slider", name="Slice").press("Home")
    expect(page.locator("#file-name")).to_have_text("4.dcm")
    page.locator("#stack-strip i").last.click()
    expect(page.locator("#file-name")).to_have_text("0.dcm")
    expect(page.locator("#stack-strip .here")).to_have_count(1)


def test_each_answer_has_its_own_height_in_the_strip(visit: Visit) -> None:
    levels = (tiny_picture(1, 64), tiny_picture(1, 64, marks=800), unfamiliar_picture(64), narrow_picture(64))
    files = [dicom_file(each[:, :, 0], SeriesInstanceUID="1.2.3", InstanceNumber=i) for i, each in enumerate(levels)]
    visit.page.set_input_files("#file", [upload(file, f"{i}.dcm") for i, file in enumerate(files)])
    expect(visit.page.locator("#progress-words")).to_have_text("4 of 4 pictures done")
    heights = "marks => marks.map(mark => mark.style.getPropertyValue('--tall'))"
    assert visit.page.locator("#stack-strip i").evaluate_all(heights) == ["100%", "80%", "60%", "40%"]


@pytest.mark.parametrize("visit", [PHONE], ids=["phone"], indirect=True)
def test_on_a_phone_a_stack_is_scrolled_right_below_its_picture(visit: Visit) -> None:
    visit.page.set_input_files("#file", series(2))
    visit.sees("result", "Answer given")
    picture, slider, answer = (
        visit.page.locator(f"#{name}").bounding_box() for name in ("screen", "stack-slider", "outcome")
    )
    assert picture
    assert slider
    assert answer
    assert picture["y"] < slider["y"] < answer["y"]


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_a_zip_is_a_stack_of_its_pictures(visit: Visit, compression: int) -> None:
    files = {f"scan/{i}.png": png(i % 4) for i in (10, 9, 2)}
    archive = zipped({**files, "__MACOSX/scan/._2.png": b"no picture", "scan/": b""}, compression)
    visit.choose(upload(archive, "scan.zip", "application/zip"))

    visit.sees("result", "Answer given")
    expect(visit.page.locator("#stack-place")).to_have_text("2 of 3")
    expect(visit.page.locator("#file-name")).to_have_text("scan/9.png")
    expect(visit.page.locator(".thumb-name")).to_have_text("scan.zip: 3 slices")


@pytest.mark.parametrize(
    ("archive", "title"),
    [
        (zipped({"slice.png": png(1)})[:-40], "This ZIP can't be opened"),
        (zipped({"scan/": b""}), "This ZIP can't be opened"),
        (zipped({f"{i}.png": b"" for i in range(2001)}), "The ZIP is too large"),
    ],
    ids=["cut off", "no picture", "too many"],
)
def test_a_zip_that_is_no_stack_is_refused_in_words(visit: Visit, archive: bytes, title: str) -> None:
    visit.choose(upload(archive, "scan.zip", "application/zip"))

    visit.sees("error", title)
    expect(visit.page.get_by_role("button", name="Retry")).to_have_count(0)
