"""`python -m docs.samples [FOLDER]`: draws the page's sample pictures: a phantom of each class, and a landscape.

A sample is named by what is drawn. A class's name would promise an answer, which only a model can give.
"""

import argparse
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from pipeline.images.phantoms import draw_phantom

FOLDER: Final = Path(__file__).parents[1] / "serving" / "http" / "page" / "samples"
DRAWN: Final = (("nodule", 27), ("mass", 29), ("clear", 9), ("cavity", 1))
"""What is drawn for each class, and a seed. With these the released model gives every kind of answer."""
WIDTH: Final = 192


def draw_samples(folder: Path) -> None:
    """Write small JPEG files. A comment in each says that it is drawn."""
    for label, (name, seed) in enumerate(DRAWN):
        phantom = draw_phantom(label, np.random.default_rng(seed)).convert("L")
        phantom = phantom.resize((WIDTH, round(WIDTH * phantom.height / phantom.width)), Image.Resampling.LANCZOS)
        _save(phantom, folder / f"drawn-{name}.jpg")
    _save(_landscape(), folder / "drawn-landscape.jpg")


def _landscape() -> Image.Image:
    picture = Image.new("RGB", (144, 132), (150, 200, 235))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((124, 14, 152, 42), fill=(250, 214, 90))
    pen.polygon([(0, 96), (46, 40), (92, 96)], fill=(112, 128, 148))
    pen.polygon([(52, 96), (104, 56), (176, 96)], fill=(132, 148, 164))
    pen.rectangle((0, 94, 144, 132), fill=(92, 152, 84))
    pen.rectangle((30, 84, 62, 112), fill=(206, 120, 92))
    pen.polygon([(24, 86), (46, 66), (68, 86)], fill=(140, 62, 54))
    pen.rectangle((41, 96, 51, 112), fill=(88, 58, 44))
    return picture


def _save(picture: Image.Image, path: Path) -> None:
    picture.save(path, "JPEG", quality=50, optimize=True, comment=b"Synthetic: drawn, not of any patient.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m docs.samples", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help="where to write (default: the page's)")
    draw_samples(parser.parse_args().folder)
