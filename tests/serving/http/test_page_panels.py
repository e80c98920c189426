"""The page's panels: heat map, display, samples, request snippets, history and the model's card."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

from chestct.card import DISCLAIMER
from chestct.image import encode_png
from chestct.prediction import RULES
from chestct.standard_picture import AIR
from pipeline.images.classes import CLASSES, TITLES
from tests.browser import PHONE, UNFAMILIAR, Visit, close_call, needs_chromium, no_chest_ct, png, unfamiliar, upload
from tests.graphs import CHEST_CT_LIMIT, tiny_picture
from tests.server import needs_curl

pytestmark = needs_chromium


def test_the_heat_map_lies_on_what_the_model_saw_and_not_on_the_file(visit: Visit) -> None:
    wide = np.pad(tiny_picture(1, 64)[:, :, 0], ((0, 0), (64, 0)), constant_values=AIR)  # the body is in its right half
    picture, note = visit.page.locator("#picture"), visit.page.get_by_text("What the model saw of this file")
    width = "image => image.naturalWidth"
    visit.choose(upload(encode_png(wide)))
    visit.sees("result", "Answer given")
    expect(visit.page.locator("#heat")).to_be_visible()
    expect(note).to_be_visible()
    assert picture.evaluate(width) == 32
    box = picture.bounding_box()
    assert box is not None
    assert box["width"] == pytest.approx(box["height"], abs=1)
    expect(visit.page.locator("#file-facts")).to_contain_text("128 \u00d7 64")

    visit.page.locator("#heat-classes").get_by_text("Off").click()
    expect(note).to_be_hidden()
    expect(visit.page.locator("#heat")).to_be_hidden()
    assert picture.evaluate(width) == 128
    visit.page.locator("#heat-classes").get_by_text(TITLES[CLASSES[2]]).click()
    expect(note).to_be_visible()
    expect(visit.page.locator("#heat")).to_be_visible()
    assert picture.evaluate(width) == 32


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
    visit.sees("result", "Answer given")

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
    names = ["ROC AUC (any cancer or normal)", "Sensitivity (any cancer)", "Specificity", "Accuracy", "Macro F1"]
    assert about.locator("tbody th").all_inner_texts() == names
    for words in ("90.0\u00a0%", "85.0\u201395.0", "40 images", "3 folds by scan"):
        expect(about).to_contain_text(words)
    for part, words in (("What to know", "brightness of bands"), ("Where it comes from", "5eed")):
        about.locator("summary").get_by_text(part).click()
        expect(about).to_contain_text(words)


def test_about_gives_no_number_for_a_figure_that_could_not_be_measured(visit: Visit) -> None:
    draw = "found => import('/page/about.js').then(about => about.estimate(found, true).textContent)"
    assert visit.page.evaluate(draw, {"value": 0, "low": 0, "high": 1}) == "\u2013"  # as a class without images has it
    assert visit.page.evaluate(draw, {"value": 0, "low": 0, "high": 0.7}) == "0.0\u00a0%0.0\u201370.0"


@pytest.mark.parametrize("visit", [PHONE], ids=["phone"], indirect=True)
def test_about_is_one_screen_on_a_phone(visit: Visit) -> None:
    assert visit.page.locator("#about").evaluate("about => about.offsetHeight") <= PHONE[1]


def test_a_figure_of_one_hundred_per_cent_fits_its_table(visit: Visit) -> None:
    visit.page.locator("summary").get_by_text("All figures").click()
    table = visit.page.locator("#about-all table")
    expect(table).to_be_visible()
    table.locator(".point").last.evaluate("(point) => point.style.left = '100%'")
    assert table.evaluate("(table) => table.parentElement.scrollWidth <= table.parentElement.clientWidth")


@pytest.mark.parametrize("visit", [(360, 740)], ids=["narrow phone"], indirect=True)
def test_the_figures_of_each_class_fit_a_narrow_phone(visit: Visit) -> None:
    visit.page.locator("summary").get_by_text("Class by class").click()
    table = visit.page.locator("#about-byClass table")
    expect(table).to_be_visible()
    assert table.evaluate("(table) => table.parentElement.scrollWidth <= table.parentElement.clientWidth")


def test_the_picture_can_be_enlarged_moved_and_brightened(visit: Visit) -> None:
    page = visit.page
    visit.choose(upload(png(1)))
    visit.sees("result", "Answer given")
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

    samples.filter(has_text="Drawn landscape").dblclick()

    visit.sees("result", "Not usable as it is")
    words = next(rule.words for rule in RULES if rule.name == "not_grey")
    expect(visit.page.locator("#against")).to_contain_text(words)
    expect(visit.page.get_by_text("This picture is synthetic")).to_be_visible()
    assert visit.page.locator("#thumbs li").count() == 1
    expect(samples.filter(has_text="Drawn landscape")).to_contain_text("Synthetic. Not usable as it is")


def test_a_row_of_the_history_opens_its_picture(visit: Visit) -> None:
    page = visit.page
    page.set_input_files("#file", [upload(png(1), "first.png"), upload(png(3), "second.png")])
    expect(page.locator("#progress-words")).to_have_text("2 of 2 pictures done")
    assert page.locator(".thumb-name").all_inner_texts() == ["first.png", "second.png"]

    page.locator("#history-rows").get_by_role("button", name="second.png").click()

    expect(page.locator("#file-name")).to_have_text("second.png")
    expect(page.locator("#label")).to_have_text(TITLES[CLASSES[3]])
    expect(page.locator("#outcome")).to_be_in_viewport()


def test_a_visit_is_exported_printed_and_cleared(visit: Visit) -> None:
    page = visit.page
    page.set_input_files(
        "#file",
        [
            upload(png(1), "=1+1.png"),
            upload(no_chest_ct(), "narrow, and tall.png"),
            upload(b"", "x.png"),
            upload(unfamiliar(), "lungless.png"),
        ],
    )
    expect(page.locator("#progress-words")).to_have_text("4 of 4 pictures done, 1 failed")
    expect(page.locator("#history-rows tr")).to_have_count(4)
    answers = ["Answer given", "Not a chest CT", "The file is empty", UNFAMILIAR]
    assert page.locator("#history-rows td:nth-child(3)").all_inner_texts() == answers
    assert page.locator("#history-rows td:nth-child(4)").all_inner_texts() == [TITLES[CLASSES[1]], "", "", ""]
    counts = page.locator("#history-counts")
    for words in ("Answer given: 1", "Not a chest CT: 1", f"{UNFAMILIAR}: 1"):
        expect(counts).to_contain_text(words)
    said = page.locator(".thumb-words").all_inner_texts()
    assert (said[1], said[3]) == ("Not a chest CT", UNFAMILIAR)

    with page.expect_download() as download:
        page.get_by_role("button", name="Export as CSV").click()
    with Path(download.value.path()).open(encoding="utf-8", newline="") as file:
        first, second, third, fourth = csv.DictReader(file)
    assert (first["file"], first["decision"], first["label"]) == ("'=1+1.png", "accept", CLASSES[1])
    assert float(first[CLASSES[1]]) == float(first["confidence"]) > 0.9
    assert (second["file"], second["decision"], second["label"]) == ("narrow, and tall.png", "reject", "")
    assert (second["reasons"], second["warnings"]) == ("not_chest_ct", "meaningless_probabilities")
    assert float(second["chest_ct"]) < CHEST_CT_LIMIT < float(first["chest_ct"])
    assert (fourth["decision"], fourth["label"], fourth["confidence"]) == ("refer", "", "")
    assert fourth["reasons"] == "unfamiliar"
    assert third["error"] == "empty_body"
    assert {line["disclaimer"] for line in (first, second, third, fourth)} == {DISCLAIMER}

    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    report = page.locator("#report")
    expect(report.get_by_text(DISCLAIMER)).to_be_visible()
    expect(report.locator("article")).to_have_count(4)
    expect(report).to_contain_text(f"{TITLES[CLASSES[1]]}, ")
    expect(report.locator("article").last).to_contain_text(UNFAMILIAR)
    expect(report.locator("article").last).not_to_contain_text("Probabilities")
    expect(report.locator("article").first).to_contain_text("Supporting evidence: Passed all automatic checks.")
    assert all(page.locator(part).is_hidden() for part in ("main", "header", "aside", "footer"))
    page.emulate_media(media="screen")

    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#main")).to_have_attribute("data-state", "empty")
    expect(page.locator("#history")).to_be_hidden()
    assert page.locator("#thumbs li").count() == 0


def test_the_report_adds_up_the_cancers_as_the_page_does_if_the_label_is_normal(visit: Visit) -> None:
    visit.choose(upload(png(CLASSES.index("normal"))))
    visit.sees("result", "Answer given")
    together = visit.page.locator("#bars .sum .bar-value").inner_text()
    visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    expect(visit.page.locator("#report-entries")).to_contain_text(f"The cancers together {together}.")


def test_in_forced_colours_what_is_chosen_and_the_bars_can_be_seen(visit: Visit) -> None:
    features = [{"name": "forced-colors", "value": "active"}]
    session = visit.page.context.new_cdp_session(visit.page)
    session.send("Emulation.setEmulatedMedia", {"features": features})
    visit.choose(upload(close_call()))
    visit.sees("result", "Uncertain: needs a reader")

    def colours(selector: str) -> tuple[str, str]:
        look = "node => [getComputedStyle(node).backgroundColor, getComputedStyle(node).backgroundImage]"
        colour, image = visit.page.locator(selector).first.evaluate(look)
        return colour, image

    assert colours("#heat-classes input:checked + span") != colours("#heat-classes input:not(:checked) + span")
    assert colours("#bars .first .fill") != colours("#bars .first .bar-track")
    assert "gradient" in colours("#bars .refer-band")[1]
    visit.choose(upload(unfamiliar()))
    visit.sees("result", UNFAMILIAR)
    for mark in (".fill", ".tick"):
        assert colours(f"#against {mark}") != colours("#against .bar-track")


def test_about_draws_the_curves_of_the_card(visit: Visit) -> None:
    about = visit.page.locator("#about")
    about.locator("summary").get_by_text("Class by class").click()
    reliability = about.get_by_role("img", name="Reliability: of 10 images answered with 60")
    expect(reliability.locator("circle")).to_have_count(2)
    expect(about.get_by_role("img", name="Risk and coverage: answering 50").locator("polyline")).to_have_count(1)
    confusion = about.get_by_role("img", name="Confusion.")
    assert [cell.text_content()[0] for cell in confusion.locator(".count").all()[:2]] == ["9", "1"]
