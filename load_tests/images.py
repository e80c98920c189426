"""What the load tests send: a drawn phantom, so nobody's picture."""

from io import BytesIO

import numpy as np

from pipeline.classes import CLASSES
from pipeline.phantoms import draw_phantom


def phantom(seed: int = 0) -> bytes:
    """A PNG file; the classes take turns with the seed."""
    file = BytesIO()
    draw_phantom(seed % len(CLASSES), np.random.default_rng(seed)).save(file, format="PNG")
    return file.getvalue()
