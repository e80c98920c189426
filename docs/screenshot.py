"""`python -m docs.screenshot [URL]`: takes the screenshots of the page that docs/ shows, with drawn pictures.

It needs a running `make serve`, Chromium and the development set. The default URL is http://localhost:3000.
"""

import argparse
import shutil
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, ViewportSize, sync_playwright

from pipeline.images.classes import CLASSES
from pipeline.images.phantoms import draw_phantom
from tests.dicom import dicom_file

IMAGES: Final = Path(__file__).with_name("images")
WIDE: Final[ViewportSize] = {"width": 1280, "height": 860}


def photograph(url: str, folder: Path) -> None:
    """Write PNG screenshots of the page at `url` to `folder`: result and stack."""
    folder.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-background-networking"]
        )
        page = _visit(browser, url, WIDE)
        page.locator("#sample-list button", has_text="Drawn slice, large mass").click()
        _shoot(page, folder / "result.png")
        page = _visit(browser, url, {**WIDE, "height": 1120})
        page.set_input_files("#file", _series())
        page.locator("#windows").get_by_text("Lung").click()
        _shoot(page, folder / "stack.png")
        browser.close()


def _visit(browser: Browser, url: str, size: ViewportSize) -> Page:
    page = browser.new_context(reduced_motion="reduce", viewport=size).new_page()
    page.goto(url)
    page.wait_for_selector("#sample-list button")
    return page


def _series() -> list[FilePayload]:
    """Return a series of drawn slices. Seven of them have a lesion.

    The released model accepts few drawings. With this seed it accepts those without a lesion.
    """
    files: list[FilePayload] = []
    for number in range(30):
        label = CLASSES.index("large_cell_carcinoma" if 10 <= number < 17 else "normal")
        slice_ = draw_phantom(label, np.random.default_rng(16)).convert("L").resize((512, 400))
        place = {"ImagePositionPatient": [0, 0, -2.5 * number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        data = dicom_file(np.asarray(slice_), SeriesInstanceUID="1.2.3", InstanceNumber=number + 1, **place)
        files.append({"name": f"IM{number + 1:04}.dcm", "mimeType": "application/dicom", "buffer": data})
    return files


def _shoot(page: Page, path: Path) -> None:
    page.wait_for_selector("main[data-state=result]")
    page.wait_for_selector("#progress[hidden]", state="attached")
    page.wait_for_selector("#heat:not([hidden]), #hounsfield:not([hidden]), #heat-controls[hidden]", state="attached")
    page.wait_for_timeout(1000)  # thumbnails are drawn one after another
    page.evaluate("scrollTo(0, 0)")
    picture = Image.open(BytesIO(page.screenshot()))
    page.context.close()
    # Levels in steps of five look the same and halve the file.
    picture.convert("RGB").point(lambda level: 5 * round(level / 5)).save(path, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m docs.screenshot", description=__doc__)
    parser.add_argument("url", nargs="?", default="http://localhost:3000", help="the page (default %(default)s)")
    photograph(parser.parse_args().url, IMAGES)
