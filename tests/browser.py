"""Opens the page in Chromium, and makes pictures to send."""

import shutil
from io import BytesIO
from typing import Any, Final

import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, FilePayload, Page, Request, expect

from chestct.image import encode_png
from tests.graphs import narrow_picture, tiny_picture, unfamiliar_picture

CHROMIUM: Final = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS: Final = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
WIDE: Final = (1280, 800)
PHONE: Final = (390, 844)
UNFAMILIAR: Final = "Can't be judged: unlike the images this model learned from"
"""The page's title of the answer `unfamiliar`."""
PATIENCE: Final = 300_000
"""Milliseconds that a test waits. On an idle machine everything happens at once."""

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")


def png(label: int, size: int = 64) -> bytes:
    """Return a PNG file that the tiny model confidently assigns to the class `label`."""
    return encode_png(tiny_picture(label, size)[:, :, 0])


def jpeg(label: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(tiny_picture(label, 64)[:, :, 0]).save(buffer, "JPEG")
    return buffer.getvalue()


def close_call() -> bytes:
    """Return a PNG file between CLASSES[1], the label, and CLASSES[2], which is normal."""
    return encode_png(tiny_picture(1, 64, marks=800)[:, :, 0])


def unfamiliar() -> bytes:
    return encode_png(unfamiliar_picture(64)[:, :, 0])


def no_chest_ct() -> bytes:
    return encode_png(narrow_picture(64)[:, :, 0])


def upload(data: bytes, name: str = "slice.png", mime: str = "image/png") -> FilePayload:
    return {"name": name, "mimeType": mime, "buffer": data}


def open_page(browser: Browser, **options: Any) -> Page:
    """Open a page in a context of its own, with options of `Browser.new_context`. Close `page.context` in the end."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    return context.new_page()


class Visit:
    """The page in a browser context of its own, and the problems that occurred in it."""

    def __init__(self, browser: Browser, url: str, size: tuple[int, int]) -> None:
        viewport = {"width": size[0], "height": size[1]}
        self.page: Final = open_page(browser, viewport=viewport, reduced_motion="reduce")
        self._context = self.page.context
        self._origin = url
        self.problems: list[str] = []
        self.failed_loads: list[str] = []
        self._context.on("console", self._hear)
        self._context.on("weberror", lambda error: self.problems.append(str(error.error)))
        self._context.on("request", self._watch)
        # Without a listener from the start, the browser would open its own dialog.
        self.page.on("filechooser", lambda _: None)
        self.page.goto(url)
        expect(self.page.locator("#foot-model")).to_contain_text("chestct:")
        self.page.evaluate("window.sameVisit = true")

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            failed_load = message.text.startswith("Failed to load resource")
            (self.failed_loads if failed_load else self.problems).append(message.text)

    def _watch(self, request: Request) -> None:
        if not request.url.startswith((self._origin + "/", "blob:", "data:")):
            self.problems.append(f"request to {request.url}")

    def choose(self, file: FilePayload) -> None:
        self.page.set_input_files("#file", file)

    def sees(self, state: str, title: str) -> None:
        expect(self.page.locator("#main")).to_have_attribute("data-state", state)
        expect(self.page.get_by_role("heading", name=title)).to_be_visible()

    def bars(self) -> dict[str, float]:
        """Return the percentages on screen by class title."""
        rows = self.page.locator("#bars li")
        names = rows.locator(".bar-name").all_inner_texts()
        values = rows.locator(".bar-value").all_inner_texts()
        return {name: float(value.removesuffix("%")) for name, value in zip(names, values, strict=True)}

    def close(self) -> None:
        still_here = self.page.evaluate("window.sameVisit")
        self._context.close()
        assert still_here, "the page was loaded again"
        assert self.problems == []
