"""The page in the system's Chromium, served by the real service with the tiny model: pictures and their answers."""

from base64 import b64encode
from io import BytesIO

import pytest
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Route, expect

from chestct.card import DISCLAIMER
from chestct.prediction import RULES, WARNINGS
from pipeline.images.classes import CLASSES, TITLES
from tests.browser import (
    PHONE,
    UNFAMILIAR,
    WIDE,
    Visit,
    close_call,
    jpeg,
    needs_chromium,
    no_chest_ct,
    open_page,
    png,
    unfamiliar,
    upload,
)
from tests.dicom import dicom_file
from tests.graphs import tiny_picture
from tests.server import Server

pytestmark = needs_chromium
WORDS = {rule.name: rule.words for rule in RULES}


def test_a_chosen_picture_is_shown_with_its_answer(visit: Visit) -> None:
    visit.choose(upload(png(1)))

    visit.sees("result", "Answer given")
    expect(visit.page.locator("#label")).to_have_text(TITLES[CLASSES[1]])
    bars = visit.bars()
    assert list(bars) == [TITLES[name] for name in CLASSES]
    assert sum(bars.values()) == pytest.approx(100, abs=1e-9)
    assert max(bars, key=bars.__getitem__) == TITLES[CLASSES[1]]
    confidence = visit.page.locator("#confidence").inner_text()
    assert float(confidence.removesuffix("%")) == bars[TITLES[CLASSES[1]]]
    width = visit.page.locator("#bars li.first i").evaluate("bar => bar.offsetWidth / bar.parentElement.offsetWidth")
    assert width == pytest.approx(bars[TITLES[CLASSES[1]]] / 100, abs=0.01)
    expect(visit.page.locator("#picture")).to_be_visible()
    expect(visit.page.locator("#file-facts")).to_contain_text("64 \u00d7 64")
    # The card's bin holds 30 answers, 97 % of them right. The page shows counts: a rounded share could read 100 %.
    pro = visit.page.locator("#for")
    expect(pro).to_contain_text("In validation, 29 of 30 images with similar confidence were correct (97\u00a0%).")
    expect(pro).to_contain_text("Passed all automatic checks")
    expect(pro).not_to_contain_text("class is left")  # nearly every set of an accepted answer has one class
    expect(visit.page.get_by_role("heading", name="Supporting evidence")).to_be_visible()
    assert visit.failed_loads == []


def test_a_close_call_says_that_a_person_should_look_and_why(visit: Visit) -> None:
    visit.choose(upload(close_call()))

    visit.sees("result", "Uncertain: needs a reader")
    expect(visit.page.locator("#against")).to_contain_text(WORDS["close_call"])
    expect(visit.page.locator("#against")).to_contain_text("More than one class is left")
    # The second class reaches into the band below the label, both drawn and in words.
    band = visit.page.locator("#bars li:nth-child(3) .refer-band")
    assert band.evaluate("band => band.offsetWidth / band.parentElement.offsetWidth") == pytest.approx(0.2, abs=0.02)
    expect(visit.page.locator("#bars li:nth-child(3)")).to_contain_text("within the refer band")
    expect(visit.page.get_by_role("heading", name="Reasons for caution")).to_be_visible()
    expect(visit.page.locator("#label")).to_be_visible()
    size = "node => parseFloat(getComputedStyle(node).fontSize)"
    assert visit.page.locator("#outcome").evaluate(size) > visit.page.locator("#label").evaluate(size)
    expect(visit.page.get_by_role("status")).to_contain_text(f"Uncertain: needs a reader. {TITLES[CLASSES[1]]}")


def without_a_label(visit: Visit) -> None:
    """Check that the page shows no label, no bars and no heat map."""
    for part in ("#answer", "#heat-controls", "#heat", "#bars-part"):
        expect(visit.page.locator(part)).to_be_hidden()
    expect(visit.page.locator("#bars li")).to_have_count(0)
    expect(visit.page.locator("#against-title")).to_have_text("Why")
    expect(visit.page.locator("#against")).not_to_contain_text(WARNINGS["meaningless_probabilities"])


def test_a_picture_that_is_no_ct_gets_no_label_and_no_heat_map(visit: Visit) -> None:
    visit.choose(upload(no_chest_ct()))

    visit.sees("result", "Not a chest CT")
    without_a_label(visit)
    expect(visit.page.locator("#against")).to_contain_text(WORDS["not_chest_ct"])
    expect(visit.page.locator("#against")).to_contain_text("and must be at least 30.0\u00a0%")
    assert not visit.page.get_by_text("distance").is_visible()


def test_an_unfamiliar_slice_is_no_other_kind_of_picture_and_gets_no_label(visit: Visit) -> None:
    visit.choose(upload(unfamiliar()))

    visit.sees("result", UNFAMILIAR)
    without_a_label(visit)
    result = visit.page.locator("[data-panel=result]")
    expect(result).to_contain_text(WORDS["unfamiliar"])
    expect(result).to_contain_text("It needs a reader")
    expect(result).to_contain_text("far from the CT slices the model knows")
    expect(result).not_to_contain_text("Not a chest CT")
    expect(visit.page.locator("#for-part")).to_be_hidden()
    expect(visit.page.get_by_role("status")).to_contain_text(f"{UNFAMILIAR}. {WORDS['unfamiliar']}")
    assert visit.page.locator("#picture").evaluate("image => image.naturalWidth") == 64


def test_a_slice_that_is_rejected_for_another_reason_is_not_called_no_chest_ct(visit: Visit) -> None:
    red = Image.fromarray(tiny_picture(1, 64)[:, :, 0]).convert("RGB")
    red.paste((255, 0, 0), (0, 0, 64, 20))
    file = BytesIO()
    red.save(file, "PNG")
    visit.choose(upload(file.getvalue()))

    visit.sees("result", "Not usable as it is")
    without_a_label(visit)
    expect(visit.page.locator("#against")).to_contain_text(WORDS["not_grey"])


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_dropped_or_pasted_picture_is_answered(visit: Visit, way: str) -> None:
    visit.page.evaluate(
        """([way, base64]) => {
            const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], "slice.png", { type: "image/png" }));
            const options = { bubbles: true, cancelable: true };
            document.getElementById("screen").dispatchEvent(way === "drop"
                ? new DragEvent("drop", { ...options, dataTransfer: data })
                : new ClipboardEvent("paste", { ...options, clipboardData: data }));
        }""",
        [way, b64encode(png(3)).decode()],
    )

    visit.sees("result", "Answer given")
    expect(visit.page.locator("#label")).to_have_text(TITLES[CLASSES[3]])


def in_a_tiff(dicom: bytes) -> bytes:
    """Return a DICOM file whose preamble also makes it a TIFF."""
    return b"II*\0" + dicom[4:]


@pytest.mark.parametrize(
    "file",
    [
        upload(jpeg(1), "photo.heic", "image/heic"),
        upload(png(1), "slice.webp", "image/webp"),
        upload(png(1), "slice.txt", "text/html"),
        upload(dicom_file(tiny_picture(1, 64)[:, :, 0]), "slice.img", "application/x-raw-disk-image"),
        upload(dicom_file(tiny_picture(1, 64)[:, :, 0]), "slice.raw", ""),
        upload(in_a_tiff(dicom_file(tiny_picture(1, 64)[:, :, 0])), "slice.tif", "image/tiff"),
    ],
    ids=lambda file: file["name"],
)
def test_a_file_s_bytes_decide_and_not_its_name(visit: Visit, file: FilePayload) -> None:
    visit.choose(file)

    visit.sees("result", "Answer given")
    expect(visit.page.locator("#label")).to_have_text(TITLES[CLASSES[1]])


@pytest.mark.parametrize(
    ("begins", "name", "title", "advice"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "slice.jpg", "This is a HEIC picture", "Settings, Camera, Formats"),
        (b"II*\0\x08\0\0\0", "slice.png", "This is a TIFF picture", "Save it as PNG or JPEG"),
        (b"MM\0*\0\0\0\x08", "slice.dcm", "This is a TIFF picture", "Save it as PNG or JPEG"),
    ],
)
def test_a_picture_of_another_kind_is_named_unsent(
    visit: Visit, begins: bytes, name: str, title: str, advice: str
) -> None:
    visit.page.route("**/v1/predict*", lambda route: route.abort())
    visit.choose(upload(begins + bytes(200), name, "image/png"))

    visit.sees("error", title)
    expect(visit.page.locator("#error-advice")).to_contain_text(advice)
    expect(visit.page.get_by_role("button", name="Retry")).to_have_count(0)


@pytest.mark.parametrize(
    ("file", "title", "said"),
    [
        (upload(png(0)[:60]), "be read as a picture", "truncated or corrupt"),
        (upload(b"no picture", "slice.png"), "be read as a picture", "10 bytes"),
        (upload(b"", "empty.png"), "The file is empty", "empty body"),
        (upload(b"no picture", "notes.txt", "text/plain"), "be read as a picture", "10 bytes"),
        (upload(dicom_file(tiny_picture(1, 64)[:, :, 0], Modality="CR"), "x.dcm"), "not one CT slice", "CT"),
    ],
    ids=["truncated", "text named png", "empty", "text", "another modality"],
)
def test_a_file_that_is_no_picture_is_refused_in_words_and_the_next_one_answered(
    visit: Visit, file: FilePayload, title: str, said: str
) -> None:
    visit.choose(file)

    visit.sees("error", title)
    expect(visit.page.locator("#error-said")).to_contain_text(said)
    assert visit.page.locator("#error-request").inner_text()
    expect(visit.page.get_by_role("button", name="Retry")).to_have_count(0)  # it would fail again

    with visit.page.expect_file_chooser() as chooser:
        visit.page.get_by_role("button", name="Try another").click()
    chooser.value.set_files(upload(png(0)))
    visit.sees("result", "Answer given")


def test_the_keyboard_alone_chooses_and_retries(visit: Visit) -> None:
    keyboard = visit.page.keyboard
    for _ in range(8):
        keyboard.press("Tab")
        if visit.page.evaluate("document.activeElement.id") == "file":
            break
    with visit.page.expect_file_chooser() as chooser:
        keyboard.press("Enter")
    error = {"code": "internal_error", "message": "no", "request_id": "r1"}
    visit.page.route("**/v1/predict*", lambda route: route.fulfill(status=500, json={"error": error}), times=1)
    chooser.value.set_files(upload(png(1)))
    visit.sees("error", "Something went wrong")
    assert visit.page.evaluate("document.activeElement.id") == "outcome"

    keyboard.press("Tab")
    keyboard.press("Enter")

    visit.sees("result", "Answer given")
    assert visit.page.evaluate("document.activeElement.id") == "outcome"


@pytest.mark.parametrize("visit", [WIDE, PHONE], ids=["wide", "phone"], indirect=True)
def test_the_disclaimer_stays_in_view_and_nothing_overflows(visit: Visit) -> None:
    for step in (lambda: None, lambda: visit.choose(upload(png(1)))):
        step()
        visit.page.evaluate("scrollTo({ top: document.body.scrollHeight, behavior: 'instant' })")
        expect(visit.page.get_by_text(DISCLAIMER)).to_be_in_viewport()
        assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    visit.sees("result", "Answer given")
    assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(
    ("probabilities", "shown"),
    [
        ((0.40045, 0.2002, 0.2002, 0.19915), ("40.1", "20.0", "20.0", "19.9")),
        ((0.0002, 0.9997, 0.0001, 0), ("under 0.1", "over 99.9", "under 0.1", "0.0")),
    ],
)
def test_an_answer_shows_the_same_confidence_everywhere(
    visit: Visit, probabilities: tuple[float, ...], shown: tuple[str, ...]
) -> None:
    first = max(range(4), key=probabilities.__getitem__)

    def answer(route: Route) -> None:
        told = {"label": CLASSES[first], "confidence": probabilities[first]}
        given = {"decision": "accept", "probabilities": dict(zip(CLASSES, probabilities, strict=True))}
        route.fulfill(json={**route.fetch().json(), **told, **given})

    visit.page.route("**/v1/predict*", answer)
    visit.choose(upload(png(first)))

    visit.sees("result", "Answer given")
    words = [f"{share}\u00a0%" for share in shown]
    assert visit.page.locator("#bars li .bar-value").all_inner_texts() == words
    assert visit.page.locator("#confidence").inner_text() == words[first]
    expect(visit.page.get_by_role("status")).to_contain_text(f"confidence {words[first]}.")
    assert visit.page.locator("#history-rows td").nth(4).inner_text() == words[first]
    visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    report = visit.page.locator("#report-entries").text_content() or ""
    assert f"{TITLES[CLASSES[first]]}, confidence {words[first]}." in report
    assert all(f"{TITLES[name]} {word}" in report for name, word in zip(CLASSES, words, strict=True))


def test_a_file_over_the_limit_is_refused_before_it_is_sent(visit: Visit) -> None:
    asked: list[str] = []
    visit.page.on("request", lambda request: asked.append(request.url) if "predict" in request.url else None)
    visit.page.evaluate(
        """() => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(200e6)], "huge.png", { type: "image/png" }));
            document.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: data }));
        }"""
    )

    visit.sees("error", "The file is too large")
    expect(visit.page.locator("#error-said")).to_contain_text("got 200.0 MB")
    assert asked == []


def test_two_tabs_know_nothing_of_each_other(visit: Visit) -> None:
    visit.choose(upload(png(1)))
    other = visit.page.context.new_page()
    other.goto(visit.page.url)
    other.set_input_files("#file", upload(png(3)))

    expect(other.locator("#label")).to_have_text(TITLES[CLASSES[3]])
    expect(visit.page.locator("#label")).to_have_text(TITLES[CLASSES[1]])


def test_a_phone_offers_its_camera(browser: Browser, server: Server) -> None:
    page = open_page(browser, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.goto(server.url)
    for width in (390, 360, 320):
        page.set_viewport_size({"width": width, "height": 640})
        button, screen = (
            page.get_by_text("Photograph", exact=True).bounding_box(),
            page.locator("#screen").bounding_box(),
        )
        assert button
        assert screen
        assert screen["x"] <= button["x"]
        assert button["x"] + button["width"] <= screen["x"] + screen["width"]
        assert button["y"] + button["height"] <= screen["y"] + screen["height"]
    page.set_input_files("#camera", upload(png(2)))
    expect(page.locator("#label")).to_have_text(TITLES[CLASSES[2]])
    page.context.close()
