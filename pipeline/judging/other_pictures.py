"""Makes pictures that are not upright chest-CT slices, to measure which of them the model rejects.

They are drawn or come with installed packages. The probe "is it a chest CT" is fitted on all kinds but SHOWN_WRONGLY.
"""

import gzip
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from pydicom import dcmread
from pydicom.data import get_testdata_file
from sklearn.datasets import load_sample_images

from pipeline.images import drawn_scans, made_scans
from pipeline.images.classes import CLASSES
from pipeline.images.phantoms import draw_phantom

COUNT: Final = 24
"""Pictures in each group that is drawn here."""

SHOWN_WRONGLY: Final = frozenset(
    {"drawn_phantoms", "inverted_ct", "upside_down_ct", "screenshots_of_ct", "contact_sheets_of_ct"}
)
"""Groups that show a chest CT slice after all, if only a drawn one, or wrongly."""

_WORDS: Final = ("lorem", "ipsum", "dolor", "sit", "amet", "consectetur", "adipiscing", "elit", "sed", "do", "eiusmod")
_PYDICOM: Final = {
    "head_ct": ("693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm"),
    "mr": ("examples_overlay.dcm", "MR_small.dcm"),
    "ultrasound": ("examples_jpeg2k.dcm", "examples_palette.dcm", "examples_rgb_color.dcm", "examples_ybr_color.dcm"),
}
"""pydicom's test files of each group."""


def draw_other_pictures(
    slices: NDArray[np.uint8], pictures: Sequence[Image.Image], seed: int
) -> Iterator[tuple[str, bytes]]:
    """Yield each picture's group and its PNG or JPEG file.

    `slices` uint8 [N, S, S, 1] are standard pictures of chest CT, which give other scans their texture. `pictures` are
    the same slices as they came, of mode L. They are shown inverted, upside down, in a screenshot and in a contact
    sheet.
    """
    rng = np.random.default_rng(seed)
    yield from (("photographs", _encode(image, "JPEG")) for image in _photographs(rng))
    yield from (("grey_photographs", _encode(image.convert("L"))) for image in _photographs(rng))
    yield from ((group, _encode(image)) for group, image in _scans())
    for index in range(COUNT):
        yield "text", _encode(_page(rng, dark=index % 4 == 3))
        yield "noise", _encode(_noise(rng, index % 4))
        for group, draw in drawn_scans.SCANS.items():
            yield group, _encode(draw(rng))
        yield "drawn_phantoms", _encode(draw_phantom(index % len(CLASSES), rng))
    for index, (pixels, image) in enumerate(zip(slices, pictures, strict=True)):
        tissue = np.asarray(Image.fromarray(pixels[:, :, 0]).resize((made_scans.SIDE,) * 2))
        for group, make in made_scans.SCANS.items():
            yield group, _encode(make(tissue, rng))
        yield "inverted_ct", _encode(ImageOps.invert(image))
        yield "upside_down_ct", _encode(ImageOps.flip(image))
        yield "screenshots_of_ct", _encode(_screenshot(image, rng))
        yield "contact_sheets_of_ct", _encode(_contact_sheet([*pictures[index:], *pictures[:index]], rng))


def _encode(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def _photographs(rng: np.random.Generator) -> Iterator[Image.Image]:
    """Whole photographs and random crops of them."""
    with Image.open(Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")) as portrait:
        wholes = [*map(Image.fromarray, load_sample_images().images), portrait.convert("RGB")]
    for whole in wholes:
        yield whole
        for _ in range(COUNT // len(wholes) - 1):
            width, height = (round(side * rng.uniform(0.3, 0.7)) for side in whole.size)
            left, top = (
                int(rng.integers(outer - inner)) for outer, inner in zip(whole.size, (width, height), strict=True)
            )
            yield whole.crop((left, top, left + width, top + height))


def _scans() -> Iterator[tuple[str, Image.Image]]:
    """Head CT, MR and ultrasound of pydicom, and an MR slice of a head of matplotlib, each in three windows."""
    for group, names in _PYDICOM.items():
        for name in names:
            file = get_testdata_file(name, download=False)
            assert file is not None, f"pydicom ships no {name}"
            values = dcmread(file).pixel_array
            values = values[len(values) // 2] if values.ndim == 4 else values  # of a film, the frame in the middle
            yield from ((group, image) for image in _windows(values.mean(axis=2) if values.ndim == 3 else values))
    head = gzip.decompress(Path(matplotlib.get_data_path(), "sample_data", "s1045.ima.gz").read_bytes())
    yield from (("mr", image) for image in _windows(np.frombuffer(head, ">u2").reshape(256, 256)))


def _windows(values: NDArray[Any]) -> Iterator[Image.Image]:
    for low, high in ((0, 100), (1, 99), (10, 90)):
        black, white = np.percentile(values, (low, high))
        levels = ((values - black) / max(white - black, 1)).clip(0, 1) * 255
        yield Image.fromarray(levels.round().astype(np.uint8))


def _page(rng: np.random.Generator, *, dark: bool) -> Image.Image:
    """A page of text."""
    paper, ink = (18, 220) if dark else (255, 20)
    image = Image.new("L", (420, 560), paper)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(int(rng.integers(11, 20)))
    for top in range(30, 520, int(rng.integers(18, 30))):
        draw.text((30, top), " ".join(rng.choice(_WORDS, int(rng.integers(3, 8)))), ink, font)
    return image


def _noise(rng: np.random.Generator, coarseness: int) -> Image.Image:
    small = rng.integers(0, 256, (256 >> coarseness, 320 >> coarseness), dtype=np.uint8)
    return Image.fromarray(small).resize((320, 256), Image.Resampling.BICUBIC)


def _screenshot(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A viewer's window: a menu at the top, a list on the left and the slice in the middle."""
    paper = int(rng.choice([30, 45, 190, 240, 255]))
    window = Image.new("L", (640, 480), paper)
    draw = ImageDraw.Draw(window)
    for place in range(20, 440, 70):
        draw.text((place, 14), str(rng.choice(_WORDS)), 255 - paper)
        draw.text((14, place + 40), str(rng.choice(_WORDS)), 255 - paper)
    window.paste(image.resize((380, 340)), (150, 80))
    return window


def _contact_sheet(images: Sequence[Image.Image], rng: np.random.Generator) -> Image.Image:
    """Two to six slices side by side and below each other, with gaps."""
    columns, rows = (int(number) for number in rng.choice([(2, 1), (1, 2), (2, 2), (3, 1), (3, 2)]))
    gap = int(rng.choice([2, 8, 20]))
    sheet = Image.new("L", (columns * (200 + gap) + gap, rows * (180 + gap) + gap), int(rng.choice([0, 0, 128, 255])))
    for place in range(columns * rows):
        corner = gap + place % columns * (200 + gap), gap + place // columns * (180 + gap)
        sheet.paste(images[place % len(images)].resize((200, 180)), corner)
    return sheet
