"""Other ways to show the same slice. Its label must not depend on them. Stage trust shows held-out slices so."""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from chestct.card import InputSpec
from chestct.image import Picture, from_dicom
from pipeline.network.augmentation import Source, windowed

Show = Callable[[Source], Image.Image]

BODY_SHARE: Final = 0.8
"""Share of the padded square's width that the body fills."""
BORDER: Final = 0.06
"""Width of a mirrored border, as a share of the picture's side."""


def _in_window(centre: float, width: float) -> Show:
    """Show the slice in a window, in Hounsfield units. What the picture's own window clipped stays lost."""

    def show(source: Source) -> Image.Image:
        return source.picture.point(windowed(np.arange(256), source.body, centre, width).tolist())

    return show


def _on_square(source: Source) -> Image.Image:
    """Put the picture on a black square, of which the body fills BODY_SHARE of the width."""
    left, _, right, _ = source.body.box
    side = max(round((right - left) * source.picture.width / BODY_SHARE), *source.picture.size)
    square = Image.new("L", (side, side))
    square.paste(source.picture, ((side - source.picture.width) // 2, (side - source.picture.height) // 2))
    return square


def _lung_window_on_square(source: Source) -> Image.Image:
    return _on_square(source._replace(picture=STYLES["lung_window"](source)))


def _at_half_resolution(source: Source) -> Image.Image:
    width, height = source.picture.size
    return source.picture.resize((max(1, width // 2), max(1, height // 2)), Image.Resampling.BILINEAR)


def _with_mirrored_border(source: Source) -> Image.Image:
    levels = np.asarray(source.picture)
    return Image.fromarray(np.pad(levels, [(round(side * BORDER),) * 2 for side in levels.shape], mode="reflect"))


STYLES: Final[dict[str, Show]] = {
    "lung_window": _in_window(-600, 1500),
    "mediastinal_window": _in_window(40, 400),
    "wide_window": _in_window(0, 2000),
    "padded_square": _on_square,
    "lung_window_on_square": _lung_window_on_square,
    "half_resolution": _at_half_resolution,
    "mirrored_border": _with_mirrored_border,
}
"""By name."""


def show(source: Source, style: str, spec: InputSpec) -> Picture:
    """The slice in that style, as the service reads it."""
    levels: NDArray[np.uint8] = np.asarray(STYLES[style](source))
    return from_dicom(levels, spec)
