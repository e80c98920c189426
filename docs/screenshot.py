"""Photograph the page with a phantom for the README.

With `make demo` running: python -m docs.screenshot [http://localhost:3000]
"""

import shutil
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from pipeline.classes import CLASSES
from pipeline.phantoms import draw_phantom


def screenshot(url: str, out: Path) -> None:
    """Let the service at `url` answer a drawn squamous cell carcinoma and write the page to `out`, a PNG."""
    picture = BytesIO()
    draw_phantom(CLASSES.index("squamous_cell_carcinoma"), np.random.default_rng(5)).save(picture, "PNG")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-background-networking"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 860}, reduced_motion="reduce")
        page.goto(url)
        file = {"name": "phantom.png", "mimeType": "image/png", "buffer": picture.getvalue()}
        page.set_input_files("#file", file)
        page.wait_for_selector("main[data-state=result]")
        page.wait_for_selector("#heat:not([hidden]), #heat-controls[hidden]", state="attached")
        photograph = Image.open(BytesIO(page.screenshot()))
        browser.close()
    # Every fifth level looks the same and halves the file.
    photograph.convert("RGB").point(lambda level: 5 * round(level / 5)).save(out, optimize=True)


if __name__ == "__main__":
    screenshot(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:3000", Path(__file__).with_name("page.png"))
