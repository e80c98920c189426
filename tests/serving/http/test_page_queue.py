"""The page's queue: many pictures, retries, cancelling, a busy or lost service, and API keys."""

import re

import pytest
from playwright.sync_api import Browser, Route, expect

from pipeline.images.classes import CLASSES, TITLES
from tests.browser import Visit, needs_chromium, open_page, png, upload
from tests.server import Server

pytestmark = needs_chromium


def test_after_a_lost_connection_retry_sends_the_same_picture_again(visit: Visit) -> None:
    visit.page.route("**/v1/predict*", lambda route: route.abort())
    visit.choose(upload(png(1)))
    visit.sees("error", "be reached")
    visit.page.get_by_role("button", name="Stop waiting").click()
    visit.page.unroute("**/v1/predict*")

    visit.page.locator("[data-panel=error]").get_by_role("button", name="Retry").dblclick()

    visit.sees("result", "Answer given")
    expect(visit.page.locator("#label")).to_have_text(TITLES[CLASSES[1]])
    assert visit.page.locator("#thumbs li").count() == 1


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "overloaded"])
def test_what_passes_by_itself_is_asked_again_after_a_visible_countdown(visit: Visit, lost: bool) -> None:
    def fail(route: Route) -> None:
        error = {"code": "overloaded", "message": "64 images are waiting", "request_id": "r1"}
        route.abort() if lost else route.fulfill(status=429, headers={"Retry-After": "2"}, json={"error": error})

    visit.page.clock.install(time=0)
    visit.page.clock.pause_at(1000)
    visit.page.route("**/v1/predict*", fail, times=1)
    visit.choose(upload(png(1)))

    visit.sees("error", "be reached" if lost else "The service is busy")
    expect(visit.page.locator("#countdown")).to_have_text("Asking again in 2 s")
    visit.page.clock.run_for(2500)
    visit.sees("result", "Answer given")


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

    visit.sees("result", "Answer given")


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
    visit.sees("result", "Answer given")

    held[0].continue_()
    visit.page.wait_for_timeout(300)

    expect(visit.page.locator("#label")).to_have_text(TITLES[CLASSES[3]])
    expect(visit.page.locator("#file-name")).to_have_text("second.png")


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
    visit.page.get_by_role("button", name="Retry the one that failed").click()  # the other would fail again
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
    visit.sees("result", "Answer given")
    expect(dialog).to_be_hidden()
    for request in ("curl", "python", "grpc"):
        expect(page.locator(f"#{request}")).to_contain_text("CHESTCT_KEY")


def test_if_the_browser_blocks_site_data_the_key_lasts_until_the_page_is_left(browser: Browser, server: Server) -> None:
    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer right":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": {"code": "unauthenticated", "message": "", "request_id": "r1"}})

    page = open_page(browser)
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
    page.context.close()
