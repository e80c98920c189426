"""The web page in the system's Chromium, served by the real service with the tiny model."""

import csv
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, FilePayload, Route, expect

from chestct.card import DISCLAIMER
from chestct.prediction import RULES, WARNINGS
from pipeline.images.classes import CLASSES, TITLES
from serving.http.web import PAGE
from tests.browser import PHONE, WIDE, Visit, grey, jpeg, needs_chromium, png, upload
from tests.dicom import dicom_file
from tests.graphs import tiny_picture
from tests.server import Server, needs_curl

pytestmark = needs_chromium


@pytest.fixture
def visit(request: pytest.FixtureRequest, browser: Browser, server: Server) -> Iterator[Visit]:
    visit = Visit(browser, server.url, getattr(request, "param", WIDE))
    yield visit
    visit.close()


def test_a_chosen_picture_is_shown_with_its_answer(visit: Visit) -> None:
    visit.choose(upload(png(1)))

    visit.sees("result", "The label stands")
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
    assert visit.page.locator("#picture").evaluate("image => image.naturalWidth") == 64
    # The card's bin holds 30 answers, 97 % of them right. The page shows counts: a rounded share could read 100 %.
    pro = visit.page.locator("#for")
    expect(pro).to_contain_text("Of 30 unseen images answered about as confidently, 29 got")
    expect(pro).to_contain_text(f"None of the {len(RULES)} rules objects.")
    expect(pro).to_contain_text("Only one class is left")
    expect(pro).to_contain_text("the limit 0.90")
    assert visit.failed_loads == []


def test_of_a_dicom_file_the_page_shows_what_the_model_saw(visit: Visit) -> None:
    levels = tiny_picture(1, size=64)[:, :, 0]
    visit.choose(upload(dicom_file(levels), "slice.dcm", "application/dicom"))

    visit.sees("result", "The label stands")
    expect(visit.page.locator("#picture")).to_be_visible()
    assert visit.page.locator("#picture").evaluate("image => image.naturalWidth") == 32
    expect(visit.page.locator("#against")).to_contain_text(WARNINGS["dicom_windowing"])
    expect(visit.page.get_by_text("What the model saw of this file")).to_be_visible()


def test_a_close_call_says_that_a_person_should_look_and_why(visit: Visit) -> None:
    visit.choose(upload(grey(100)))

    visit.sees("result", "A person should look")
    words = next(rule.words for rule in RULES if rule.name == "close_call")
    expect(visit.page.locator("#against")).to_contain_text(words)
    expect(visit.page.locator("#against")).to_contain_text("More than one class is left")
    # The second class reaches into the band below the label, both drawn and in words.
    band = visit.page.locator("#bars li:nth-child(2) .refer-band")
    assert band.evaluate("band => band.offsetWidth / band.parentElement.offsetWidth") == pytest.approx(0.2, abs=0.02)
    expect(visit.page.locator("#bars li:nth-child(2)")).to_contain_text("within the refer band")
    expect(visit.page.locator("#label")).to_be_visible()
    expect(visit.page.get_by_role("status")).to_contain_text(f"A person should look. {TITLES[CLASSES[0]]}")


def test_a_picture_that_is_no_ct_gets_no_label_and_no_heat_map(visit: Visit) -> None:
    visit.choose(upload(grey(255)))

    visit.sees("result", "Not a chest CT")
    words = next(rule.words for rule in RULES if rule.name == "out_of_distribution")
    expect(visit.page.locator("#against")).to_contain_text(words)
    expect(visit.page.locator("#label")).to_be_hidden()
    expect(visit.page.locator("#heat-controls")).to_be_hidden()
    expect(visit.page.locator("#bars-title")).to_contain_text("meaningless")


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

    visit.sees("result", "The label stands")
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

    visit.sees("result", "The label stands")
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

    with visit.page.expect_file_chooser() as chooser:
        visit.page.get_by_role("button", name="Try another").click()
    chooser.value.set_files(upload(png(0)))
    visit.sees("result", "The label stands")


def test_after_a_lost_connection_retry_sends_the_same_picture_again(visit: Visit) -> None:
    visit.page.route("**/v1/predict*", lambda route: route.abort())
    visit.choose(upload(png(1)))
    visit.sees("error", "be reached")
    visit.page.get_by_role("button", name="Stop waiting").click()
    visit.page.unroute("**/v1/predict*")

    visit.page.locator("[data-panel=error]").get_by_role("button", name="Retry").dblclick()

    visit.sees("result", "The label stands")
    expect(visit.page.locator("#label")).to_have_text(TITLES[CLASSES[1]])
    assert visit.page.locator("#thumbs li").count() == 1


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "overloaded"])
def test_what_passes_by_itself_is_asked_again_after_a_visible_countdown(visit: Visit, lost: bool) -> None:
    def fail(route: Route) -> None:
        error = {"code": "overloaded", "message": "64 images are waiting", "request_id": "r1"}
        route.abort() if lost else route.fulfill(status=429, headers={"Retry-After": "2"}, json={"error": error})

    visit.page.route("**/v1/predict*", fail, times=1)
    visit.choose(upload(png(1)))

    visit.sees("error", "be reached" if lost else "The service is busy")
    expect(visit.page.locator("#countdown")).to_have_text(re.compile(r"Asking again in [12] s"))
    visit.sees("result", "The label stands")


def test_waiting_for_an_overloaded_service_can_be_stopped(visit: Visit) -> None:
    asked: list[str] = []

    def starting(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(status=503, headers={"Retry-After": "9"}, json={"error": {"code": "not_ready", "message": "no"}})

    visit.page.clock.install()
    visit.page.route("**/v1/predict*", starting)
    visit.choose(upload(png(1)))
    visit.page.get_by_role("button", name="Stop waiting").click()

    expect(visit.page.locator("#countdown")).to_be_hidden()
    visit.page.clock.run_for(20_000)
    assert len(asked) == 1


def test_a_running_request_can_be_cancelled_and_asked_again(visit: Visit) -> None:
    held: list[Route] = []
    visit.page.route("**/v1/predict*", lambda route: held.append(route), times=1)
    visit.choose(upload(png(1)))
    visit.sees("busy", "Reading the picture")

    visit.page.get_by_role("button", name="Cancel", exact=True).click()
    visit.sees("error", "Cancelled")
    visit.page.get_by_role("button", name="Retry", exact=True).click()

    visit.sees("result", "The label stands")


def test_what_is_cleared_while_it_runs_does_not_come_back(visit: Visit) -> None:
    held: list[Route] = []
    visit.page.route("**/v1/predict*", lambda route: held.append(route), times=1)
    visit.choose(upload(png(1)))
    visit.sees("busy", "Reading the picture")

    visit.page.get_by_role("button", name="Clear").click()
    visit.page.wait_for_timeout(300)

    expect(visit.page.locator("#main")).to_have_attribute("data-state", "empty")
    expect(visit.page.locator("#history")).to_be_hidden()
    expect(visit.page.locator("#history-rows tr, #thumbs li")).to_have_count(0)


def test_a_late_answer_to_the_former_picture_is_not_shown(visit: Visit) -> None:
    held: list[Route] = []
    visit.page.route("**/v1/predict*", lambda route: held.append(route), times=1)
    visit.choose(upload(png(1), "first.png"))
    visit.sees("busy", "Reading the picture")
    visit.choose(upload(png(3), "second.png"))
    visit.sees("result", "The label stands")

    held[0].continue_()
    visit.page.wait_for_timeout(300)

    expect(visit.page.locator("#label")).to_have_text(TITLES[CLASSES[3]])
    expect(visit.page.locator("#file-name")).to_have_text("second.png")


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

    visit.sees("result", "The label stands")
    assert visit.page.evaluate("document.activeElement.id") == "outcome"


def test_the_heat_map_follows_the_chosen_class_and_the_slider(visit: Visit) -> None:
    pixels = "document.getElementById('heat').toDataURL()"
    canvas = visit.page.locator("#heat")
    visit.choose(upload(png(1)))
    expect(visit.page.get_by_role("radio", name=TITLES[CLASSES[1]])).to_be_checked()
    expect(canvas).to_be_visible()
    of_label = visit.page.evaluate(pixels)
    assert canvas.bounding_box() == visit.page.locator("#picture").bounding_box()

    visit.page.locator("#heat-classes").get_by_text(TITLES[CLASSES[3]]).click()
    visit.page.wait_for_function(f"{pixels} !== arguments[0]".replace("arguments[0]", repr(of_label)))
    visit.page.locator("#opacity").fill("80")
    expect(canvas).to_have_css("opacity", "0.8")
    expect(visit.page.locator("#heat-controls")).to_contain_text("Not a localisation")
    visit.page.locator("#heat-classes").get_by_text("Off").click()
    expect(canvas).to_be_hidden()


@needs_curl
def test_the_request_on_the_page_gives_the_answer_on_the_page(visit: Visit, tmp_path: Path) -> None:
    name = "it's a slice.png"
    (tmp_path / name).write_bytes(png(1))
    visit.choose(upload(png(1), name))
    visit.sees("result", "The label stands")

    python = visit.page.locator("#python").inner_text()
    run = subprocess.run([sys.executable, "-c", python], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"accept {CLASSES[1]} 0.9")
    curl = visit.page.locator("#curl").inner_text()
    run = subprocess.run(["sh", "-c", curl], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f'"label":"{CLASSES[1]}"' in run.stdout
    grpc = visit.page.locator("#grpc").inner_text()
    run = subprocess.run([sys.executable, "-c", grpc], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout == f"accept {CLASSES[1]}\n"


def test_about_tells_figures_intervals_splits_caveats_and_lineage(visit: Visit) -> None:
    about = visit.page.locator("#about")
    figures = ("90.0\u00a0%", "85.0\u201395.0", "40 images")
    for words in (*figures, "3 folds by visual cluster", "brightness of bands", "5eed"):
        expect(about).to_contain_text(words)


@pytest.mark.parametrize("visit", [WIDE, PHONE], ids=["wide", "phone"], indirect=True)
def test_the_disclaimer_stays_in_view_and_nothing_overflows(visit: Visit) -> None:
    for step in (lambda: None, lambda: visit.choose(upload(png(1)))):
        step()
        visit.page.evaluate("scrollTo({ top: document.body.scrollHeight, behavior: 'instant' })")
        expect(visit.page.get_by_text(DISCLAIMER)).to_be_in_viewport()
        assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    visit.sees("result", "The label stands")
    assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_figure_of_one_hundred_per_cent_fits_its_table(visit: Visit) -> None:
    table = visit.page.locator("table:has(.interval)").first
    table.locator(".point").last.evaluate("(point) => point.style.left = '100%'")
    assert table.evaluate("(table) => table.parentElement.scrollWidth <= table.parentElement.clientWidth")


def test_the_page_is_small_and_names_no_other_host() -> None:
    files = [path for path in PAGE.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 100_000
    for path in files:
        hosts = set(re.findall(r"https?://[\w.]+", path.read_text(encoding="utf-8")))
        assert hosts <= {"http://www.w3.org"}, path.name


@pytest.mark.parametrize("file", sorted(PAGE.glob("*.html")), ids=lambda file: file.name)
def test_the_disclaimer_needs_no_javascript(file: Path) -> None:
    assert DISCLAIMER in re.sub("<head>.*</head>", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_api_is_described_in_the_browser_without_requests_to_other_hosts(browser: Browser, server: Server) -> None:
    page = browser.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(server.url) else problems.append(request.url))
    page.goto(f"{server.url}/docs")
    page.locator("#operations-predict-predict .opblock-summary").click()
    expect(page.locator("#operations-predict-predict .responses-inner").first).to_contain_text("Not a medical device")
    page.close()
    assert problems == []


def test_many_pictures_each_have_their_outcome_and_those_that_failed_are_retried(visit: Visit) -> None:
    def fail(route: Route) -> None:
        error = {"code": "internal_error", "message": "no", "request_id": "r1"}
        route.fulfill(status=500, json={"error": error})

    visit.page.route("**/v1/predict*", fail, times=1)
    broken = upload(b"no picture", "broken.png")
    visit.page.set_input_files("#file", [upload(png(i % 4), f"{i}.png") for i in range(5)] + [broken])

    thumbs = visit.page.locator("#thumbs li")
    expect(visit.page.locator("#progress-words")).to_have_text("6 of 6 pictures done, 2 failed")
    expect(visit.page.get_by_role("status")).to_have_text("6 of 6 pictures done, 2 failed.")
    outcomes = thumbs.locator(".thumb-words").all_inner_texts()
    assert outcomes.count("Something went wrong in the service") == 1
    assert outcomes[-1].endswith("be read as a picture")
    visit.page.get_by_role("button", name="Retry all 2 that failed").click()
    expect(visit.page.locator("#progress-words")).to_have_text("6 of 6 pictures done, 1 failed")
    titles = [TITLES[CLASSES[i % 4]] for i in range(5)]
    assert thumbs.locator(".thumb-words").all_inner_texts()[:5] == titles

    thumbs.nth(3).get_by_role("button").click()
    expect(visit.page.locator("#label")).to_have_text(titles[3])
    visit.page.keyboard.press("ArrowLeft")
    expect(visit.page.locator("#label")).to_have_text(titles[2])
    expect(visit.page.locator("#file-name")).to_have_text("2.png")
    assert thumbs.nth(2).locator("img").evaluate("image => image.naturalWidth") > 0


def test_a_busy_service_holds_the_whole_queue_and_all_can_be_cancelled(visit: Visit) -> None:
    asked: list[str] = []

    def busy(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(status=429, headers={"Retry-After": "30"}, json={"error": {"code": "overloaded", "message": ""}})

    visit.page.route("**/v1/predict*", busy)
    visit.page.set_input_files("#file", [upload(png(1), f"{i}.png") for i in range(9)])
    expect(visit.page.locator("#progress-words")).to_have_text(
        re.compile(r"^0 of 9 pictures done, asking again in \d+ s$")
    )

    visit.page.get_by_role("button", name="Cancel all").click()

    expect(visit.page.locator("#progress-words")).to_have_text("9 of 9 pictures done, 9 failed")
    assert len(asked) <= 4


def test_the_picture_can_be_enlarged_moved_and_brightened(visit: Visit) -> None:
    page = visit.page
    visit.choose(upload(png(1)))
    visit.sees("result", "The label stands")
    before = page.locator("#picture").bounding_box()
    assert before

    page.get_by_label("Zoom").fill("200")
    enlarged = page.locator("#picture").bounding_box()
    assert enlarged
    assert enlarged["width"] == pytest.approx(2 * before["width"], rel=0.01)
    assert page.locator("#heat").bounding_box() == enlarged
    page.locator("#screen").focus()
    page.keyboard.press("ArrowRight")
    moved = page.locator("#picture").bounding_box()
    assert moved
    assert moved["x"] == pytest.approx(enlarged["x"] - 40)
    page.get_by_label("Brightness").fill("150")
    page.get_by_label("Contrast").fill("80")
    expect(page.locator("#picture")).to_have_css("filter", "brightness(1.5) contrast(0.8)")
    page.get_by_role("button", name="Reset").click()
    after = page.locator("#picture").bounding_box()
    assert after
    assert (after["x"], after["width"]) == (before["x"], before["width"])
    expect(page.locator("#picture")).to_have_css("filter", "brightness(1) contrast(1)")


def test_a_sample_is_labelled_synthetic_and_shows_what_the_model_says(visit: Visit) -> None:
    samples = visit.page.locator("#sample-list button")
    expect(samples).to_have_count(5)
    assert all("Synthetic" in words for words in samples.all_inner_texts())

    samples.filter(has_text="Landscape").dblclick()

    visit.sees("result", "Not a chest CT")
    words = next(rule.words for rule in RULES if rule.name == "not_grey")
    expect(visit.page.locator("#against")).to_contain_text(words)
    expect(visit.page.get_by_text("This picture is synthetic")).to_be_visible()
    assert visit.page.locator("#thumbs li").count() == 1


def test_a_visit_is_exported_printed_and_cleared(visit: Visit) -> None:
    page = visit.page
    page.set_input_files(
        "#file", [upload(png(1), "=1+1.png"), upload(grey(255), "white, and flat.png"), upload(b"", "x.png")]
    )
    expect(page.locator("#progress-words")).to_have_text("3 of 3 pictures done, 1 failed")
    expect(page.locator("#history-rows tr")).to_have_count(3)

    with page.expect_download() as download:
        page.get_by_role("button", name="Export as CSV").click()
    with Path(download.value.path()).open(encoding="utf-8", newline="") as file:
        first, second, third = csv.DictReader(file)
    assert (first["file"], first["decision"], first["label"]) == ("'=1+1.png", "accept", CLASSES[1])
    assert float(first[CLASSES[1]]) == float(first["confidence"]) > 0.9
    assert (second["file"], second["decision"], second["label"]) == ("white, and flat.png", "reject", "")
    assert second["reasons"] == "out_of_distribution"
    assert third["error"] == "empty_body"
    assert {line["disclaimer"] for line in (first, second, third)} == {DISCLAIMER}

    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    report = page.locator("#report")
    expect(report.get_by_text(DISCLAIMER)).to_be_visible()
    expect(report.locator("article")).to_have_count(3)
    expect(report).to_contain_text(f"{TITLES[CLASSES[1]]}, ")
    assert all(page.locator(part).is_hidden() for part in ("main", "header", "aside", "footer"))
    page.emulate_media(media="screen")

    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#main")).to_have_attribute("data-state", "empty")
    expect(page.locator("#history")).to_be_hidden()
    assert page.locator("#thumbs li").count() == 0


def test_a_key_is_asked_for_once_and_kept_in_the_session(visit: Visit) -> None:
    page = visit.page

    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer right":
            route.continue_()
        else:
            error = {"code": "unauthenticated", "message": "expected a key", "request_id": "r1"}
            route.fulfill(status=401, json={"error": error})

    page.route("**/v1/**", guard)
    dialog = page.get_by_role("dialog", name="This service asks for a key")
    page.set_input_files("#file", [upload(png(1), f"{i}.png") for i in range(3)])
    dialog.get_by_role("button", name="Cancel").click()
    visit.sees("error", "This service asks for a key")
    expect(page.locator("#progress-words")).to_have_text("3 of 3 pictures done, 3 failed")
    page.get_by_role("button", name="Retry all 3 that failed").click()
    dialog.get_by_label("API key").fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog.get_by_text("not known here")).to_be_visible()
    dialog.get_by_label("API key").fill("right")
    page.keyboard.press("Enter")

    expect(page.locator("#progress-words")).to_have_text("3 of 3 pictures done")
    assert page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [["right"], 0, ""]
    visit.choose(upload(png(2)))
    visit.sees("result", "The label stands")
    expect(dialog).to_be_hidden()
    for request in ("curl", "python", "grpc"):
        expect(page.locator(f"#{request}")).to_contain_text("CHESTCT_KEY")


def test_if_the_browser_blocks_site_data_the_key_lasts_until_the_page_is_left(browser: Browser, server: Server) -> None:
    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer right":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": {"code": "unauthenticated", "message": "", "request_id": "r1"}})

    page = browser.new_page()
    page.add_init_script(
        """Object.defineProperty(window, "sessionStorage", {
            get() { throw new DOMException("Access is denied", "SecurityError"); },
        })"""
    )
    page.route("**/v1/**", guard)
    page.goto(server.url)
    for key in ("wrong", "right"):
        page.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
    expect(page.locator("#foot-model")).to_contain_text("chestct:")
    page.set_input_files("#file", upload(png(1)))
    expect(page.locator("#label")).to_have_text(TITLES[CLASSES[1]])
    page.close()


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

    visit.sees("result", "The label stands")
    words = [f"{share}\u00a0%" for share in shown]
    assert visit.page.locator("#bars li .bar-value").all_inner_texts() == words
    assert visit.page.locator("#confidence").inner_text() == words[first]
    expect(visit.page.get_by_role("status")).to_contain_text(f"confidence {words[first]}.")
    assert visit.page.locator("#history-rows td").nth(4).inner_text() == words[first]
    visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    report = visit.page.locator("#report-entries").text_content() or ""
    assert f"{TITLES[CLASSES[first]]}, {words[first]} confidence." in report
    assert all(f"{TITLES[name]} {word}" in report for name, word in zip(CLASSES, words, strict=True))


def test_in_forced_colours_what_is_chosen_and_the_bars_can_be_seen(visit: Visit) -> None:
    features = [{"name": "forced-colors", "value": "active"}]
    session = visit.page.context.new_cdp_session(visit.page)
    session.send("Emulation.setEmulatedMedia", {"features": features})
    visit.choose(upload(grey(100)))
    visit.sees("result", "A person should look")

    def colours(selector: str) -> tuple[str, str]:
        look = "node => [getComputedStyle(node).backgroundColor, getComputedStyle(node).backgroundImage]"
        colour, image = visit.page.locator(selector).first.evaluate(look)
        return colour, image

    assert colours("#heat-classes input:checked + span") != colours("#heat-classes input:not(:checked) + span")
    for mark in (".fill", ".tick"):
        assert colours(f"#for {mark}") != colours("#for .bar-track")
    assert colours("#bars .first .fill") != colours("#bars .first .bar-track")
    assert "gradient" in colours("#bars .refer-band")[1]


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


def test_about_draws_the_curves_of_the_card(visit: Visit) -> None:
    about = visit.page.locator("#about")
    reliability = about.get_by_role("img", name="Reliability: of 10 images answered with 60")
    expect(reliability.locator("circle")).to_have_count(2)
    expect(about.get_by_role("img", name="Risk and coverage: answering 50").locator("polyline")).to_have_count(1)
    confusion = about.get_by_role("img", name="Confusion.")
    assert [cell.text_content()[0] for cell in confusion.locator(".count").all()[:2]] == ["9", "1"]


def test_two_tabs_know_nothing_of_each_other(visit: Visit) -> None:
    visit.choose(upload(png(1)))
    other = visit.page.context.new_page()
    other.goto(visit.page.url)
    other.set_input_files("#file", upload(png(3)))

    expect(other.locator("#label")).to_have_text(TITLES[CLASSES[3]])
    expect(visit.page.locator("#label")).to_have_text(TITLES[CLASSES[1]])


def test_a_phone_offers_its_camera(browser: Browser, server: Server) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(server.url)
    expect(page.get_by_text("Photograph", exact=True)).to_be_visible()
    page.set_input_files("#camera", upload(png(2)))
    expect(page.locator("#label")).to_have_text(TITLES[CLASSES[2]])
    context.close()
