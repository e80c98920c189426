"""`python -m docs.screenshot [URL]`: takes the README's screenshots of the page, with drawn pictures.

It needs a running `make serve`. The default URL is http://localhost:3000.
"""

import shutil
import sys
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, sync_playwright

from load_tests.images import phantom

IMAGES: Final = Path(__file__).with_name("images")
WIDE: Final = {"width": 1280, "height": 860}
PHONE: Final = {"width": 390, "height": 844}


def photograph(url: str, folder: Path) -> None:
    """Write screenshots of the page at `url` to `folder`: result, refer, reject, dark, phone and batch, each a PNG."""
    folder.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-background-networking"]
        )
        for name, sample, options in (
            ("result", "Drawn slice, no lesion", {"viewport": WIDE}),
            ("refer", "Drawn slice, large mass", {"viewport": {**WIDE, "height": 1000}}),
            ("reject", "Drawn landscape", {"viewport": WIDE}),
            ("dark", "Drawn slice, no lesion", {"viewport": WIDE, "color_scheme": "dark"}),
            ("phone", "Drawn slice, no lesion", {"viewport": PHONE, "has_touch": True, "is_mobile": True}),
        ):
            page = _visit(browser, url, **options)
            page.locator("#sample-list button", has_text=sample).click()
            _shoot(page, folder / f"{name}.png")
        page = _visit(browser, url, viewport=WIDE)
        page.set_input_files("#file", _batch())
        _shoot(page, folder / "batch.png")
        browser.close()


def _visit(browser: Browser, url: str, **options: Any) -> Page:
    page = browser.new_context(reduced_motion="reduce", **options).new_page()
    page.goto(url)
    page.wait_for_selector("#sample-list button")
    return page


def _batch() -> list[FilePayload]:
    """Return phantoms of every class, and a file that is no picture."""
    files: list[FilePayload] = []
    for seed in range(11):
        files.append({"name": f"slice-{seed}.png", "mimeType": "image/png", "buffer": phantom(seed)})
    files.insert(3, {"name": "notes.png", "mimeType": "image/png", "buffer": b"no picture"})
    return files


def _shoot(page: Page, path: Path) -> None:
    page.wait_for_selector("main[data-state=result]")
    page.wait_for_selector("#progress[hidden]", state="attached")
    page.wait_for_selector("#heat:not([hidden]), #heat-controls[hidden]", state="attached")
    page.wait_for_timeout(1000)  # thumbnails are drawn one after another
    page.evaluate("scrollTo(0, 0)")
    picture = Image.open(BytesIO(page.screenshot()))
    page.context.close()
    # Levels in steps of five look the same and halve the file.
    picture.convert("RGB").point(lambda level: 5 * round(level / 5)).save(path, optimize=True)


if __name__ == "__main__":
    photograph(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:3000", IMAGES)
