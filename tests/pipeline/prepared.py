"""Runs ingest and prepare on a data set, and changes its files."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.core import paths
from pipeline.images.classes import CLASSES
from pipeline.images.phantoms import draw_phantom

ADENOCARCINOMA, LARGE_CELL, NORMAL, SQUAMOUS = range(4)
SIZE = 64


class Prepared:
    """The files that prepare wrote."""

    def __init__(self) -> None:
        with np.load(paths.POOL) as pool:
            self.pool = dict(pool)
        with np.load(paths.TEST) as test:
            self.test = dict(test)
        self.audit = json.loads(paths.AUDIT.read_text(encoding="utf-8"))

    def label(self, path: str) -> int:
        (index,) = np.flatnonzero(self.pool["paths"] == path)
        return int(self.pool["labels"][index])


def folder_of(data_set: Path, part: str, label: int) -> Path:
    return next(data_set.glob(f"{part}/{CLASSES[label].split('_')[0]}*"))


def path_of(data_set: Path, path: Path) -> str:
    return path.relative_to(data_set).as_posix()


def first(data_set: Path, part: str, label: int) -> Path:
    return sorted(folder_of(data_set, part, label).iterdir())[0]


def in_other_bytes(path: Path) -> bytes:
    """The same pixels in a file of other bytes, as RGBA."""
    buffer = BytesIO()
    Image.open(path).convert("RGBA").save(buffer, "PNG", compress_level=9)
    assert buffer.getvalue() != path.read_bytes()
    return buffer.getvalue()


def other_phantom() -> Image.Image:
    """A slice, in mode L, that is not in the data set."""
    return draw_phantom(NORMAL, np.random.default_rng(5)).convert("L")


def noisy(image: Image.Image, share: float) -> Image.Image:
    """The picture with coarse noise, in multiples of its own standard deviation."""
    grey = np.asarray(image.convert("L"), np.float32)
    noise = np.random.default_rng(0).normal(0, share * grey.std(), (16, 16))
    fine = np.asarray(Image.fromarray(noise).resize(grey.shape[::-1]))
    return Image.fromarray((grey + fine).clip(0, 255).astype(np.uint8))
