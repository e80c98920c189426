"""What the load tests send: drawn phantoms, so nobody's picture."""

from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image

from pipeline.classes import CLASSES
from pipeline.phantoms import draw_phantom

SIZE: Final = (414, 282)
"""Of the real set's middle picture; the middle one of its files has 90 KB, half of them 78 to 112 KB."""
EVERY_JPEG: Final = 8
"""One file of so many is a JPEG. The real set holds fewer."""


def phantom(seed: int = 0) -> bytes:
    """A PNG file; the classes take turns with the seed."""
    return _file(_draw(seed), "PNG")


def pictures(count: int) -> list[tuple[str, bytes]]:
    """Media type and bytes of phantoms that cost a decoder what real pictures do: RGBA PNG and RGB JPEG of SIZE."""
    files = []
    for seed in range(count):
        picture = _draw(seed).resize(SIZE, Image.Resampling.BICUBIC)
        if seed % EVERY_JPEG == EVERY_JPEG - 1:
            files.append(("image/jpeg", _file(picture.convert("RGB"), "JPEG")))
        else:
            files.append(("image/png", _file(picture.convert("RGBA"), "PNG")))
    return files


def _draw(seed: int) -> Image.Image:
    return draw_phantom(seed % len(CLASSES), np.random.default_rng(seed))


def _file(picture: Image.Image, kind: str) -> bytes:
    file = BytesIO()
    picture.save(file, format=kind, quality=95)
    return file.getvalue()
