"""The files that make the page: their size, their words, and the description of the API."""

import gzip
import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

from chestct.card import DISCLAIMER
from serving.http.page_routes import PAGE
from tests.browser import (
    Visit,
    close_call,
    needs_chromium,
    open_page,
    upload,
)
from tests.server import Server

pytestmark = needs_chromium

SHOUT = """
const shout = (value) => {
    if (typeof value === "string") return value.toUpperCase();
    if (typeof value === "function") return (...given) => shout(value(...given));
    if (Array.isArray(value)) return value.map(shout);
    const other = ([name, one]) => [name, ["language", "locale"].includes(name) ? one : shout(one)];
    return Object.fromEntries(Object.entries(value).map(other));
};
export const TEXT = shout(ENGLISH);
"""
"""JavaScript that follows the English words and makes a language of them that is all capitals."""


def test_the_page_is_small_and_names_no_other_host() -> None:
    """What is sent counts, compressed as it is sent: first what every visit loads, then what is loaded on demand."""
    parts = [path for path in PAGE.rglob("*") if path.suffix in (".html", ".css", ".js", ".svg")]
    sizes = {path: len(gzip.compress(path.read_bytes(), 9)) for path in parts}
    on_demand = [path for path in parts if path.parent == PAGE / "later" or path.stem == "docs"]
    assert len(on_demand) > 4
    assert sum(size for path, size in sizes.items() if path not in on_demand) <= 42_000
    assert sum(size for path, size in sizes.items() if path in on_demand) <= 10_000
    for path in parts:
        hosts = set(re.findall(r"https?://[\w.]+", path.read_text(encoding="utf-8")))
        assert hosts <= {"http://www.w3.org"}, path.name


def test_every_visit_loads_what_index_html_names_and_nothing_on_demand(visit: Visit) -> None:
    loaded = visit.page.evaluate(
        "performance.getEntriesByType('resource').map((entry) => new URL(entry.name).pathname)"
    )
    scripts = {path.removeprefix("/") for path in loaded if path.endswith(".js")}
    index = (PAGE / "index.html").read_text(encoding="utf-8")
    assert scripts == set(re.findall(r'"(page/[\w/]+\.js)"', index))


def test_a_translation_is_one_more_file(browser: Browser, server: Server) -> None:
    """With a text file in capitals the whole page is, but for the model's card, file names and requests."""
    english = (PAGE / "text" / "en.js").read_text(encoding="utf-8")
    script = english.replace("export const TEXT", "const ENGLISH") + SHOUT
    page = open_page(browser)
    page.route("**/page/text.js", lambda route: route.fulfill(body=script, content_type="text/javascript"))
    page.goto(server.url)
    page.set_input_files("#file", upload(close_call(), "1.PNG"))
    expect(page.locator("#main")).to_have_attribute("data-state", "result")
    for part in ("all", "byClass"):
        page.locator(f"#about-{part} summary").click()
    expect(page.locator("figure svg")).to_have_count(3)
    lower = page.evaluate(
        """() => {
            const words = [];
            const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
            for (let node = walk.nextNode(); node; node = walk.nextNode()) {
                if (!node.parentElement.closest("noscript, code, .code")) words.push(node.data.trim());
            }
            for (const one of document.querySelectorAll("[aria-label]")) words.push(one.getAttribute("aria-label"));
            return words.filter((word) => /[a-z]{3}/.test(word));
        }"""
    )
    page.context.close()
    model = httpx.get(f"{server.url}/v1/model", timeout=300).text.replace("_", " ")
    told = sorted(set(re.findall(r'"([^"]{4,}?)\.?"', model)), key=len, reverse=True)
    from_the_model = re.compile("|".join(map(re.escape, told)), re.IGNORECASE)
    left = [from_the_model.sub("", word) for word in lower if word not in ("curl", "Python")]
    assert [word for word in left if re.search("[a-z]{3}", word)] == []


@pytest.mark.parametrize("file", sorted(PAGE.glob("*.html")), ids=lambda file: file.name)
def test_the_disclaimer_needs_no_javascript(file: Path) -> None:
    assert DISCLAIMER in re.sub("<head>.*</head>", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_api_is_described_in_the_browser_without_requests_to_other_hosts(browser: Browser, server: Server) -> None:
    page = open_page(browser)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(server.url) else problems.append(request.url))
    page.goto(f"{server.url}/docs")
    page.locator("#operations-predict-predict .opblock-summary").click()
    expect(page.locator("#operations-predict-predict .responses-inner").first).to_contain_text("Not a medical device")
    page.context.close()
    assert problems == []
