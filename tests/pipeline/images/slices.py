"""Makes slices for tests without reading a file."""

import numpy as np

from chestct.card import InputSpec
from chestct.image import decode, encode_png
from pipeline.images.manifest import ImageFile
from pipeline.images.slices import Slice, grey_levels
from pipeline.images.thumbnails import thumbnails


def slice_of(
    grey: np.ndarray, path: str = "train/normal/a.png", *, sha256: str = "", label: int = 2, scan: int = -1
) -> Slice:
    """A slice whose standard picture, source and thumbnail are of `grey`, uint8 [side, side]."""
    pixels = grey[:, :, np.newaxis]
    facts = decode(encode_png(grey), InputSpec(height=32, width=32)).facts
    file = ImageFile(path=path, sha256=sha256 or path, bytes=0)
    return Slice(
        file,
        label,
        pixels,
        facts,
        mode="L",
        format="PNG",
        greys=grey_levels(pixels),
        source=grey,
        thumbnail=thumbnails(pixels[np.newaxis])[0],
        lung=0.3,
        scan=scan,
    )
