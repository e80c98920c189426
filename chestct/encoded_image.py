"""What a PNG and a JPEG say of themselves before a pixel is decoded, whichever of the two it is."""

from collections.abc import Callable
from typing import Final, Literal, NamedTuple

CheckSize = Callable[[int, int], None]
"""Raises where a picture of this width and height is not read; called before anything else is looked at."""

CHEAP_PIXELS: Final = 2048 * 2048
CHEAP_BYTES: Final = 1024 * 1024
CHEAP_SAMPLES: Final = 4 * CHEAP_PIXELS
"""What is decoded without limits on time and memory: within 0.2 s and CHEAP_MEMORY, however the file was made.

By files made to be slow, a byte costs up to 0.15 µs (Deflate's tables without codes behind them), a sample of a JPEG
4 ns in each scan."""
CHEAP_MEMORY: Final = 48 * 1024 * 1024
"""Bytes that decoding takes at most beside the file, where that is cheap."""
MAX_MEMORY: Final = 160 * 1024 * 1024
"""Bytes that decoding takes at most beside the file, for any picture that is read."""


class BrokenFile(Exception):
    """The file is truncated, corrupt or of a kind that is not read; the message completes "the image ..."."""


class EncodedImage(NamedTuple):
    """A PNG or JPEG whose container is whole. Its pixels may still turn out to be corrupt."""

    kind: Literal["PNG", "JPEG"]
    width: int
    height: int
    """As stored, before it is turned."""
    orientation: int
    """EXIF's, 1 to 8. 1 needs no turning."""
    samples: int
    """Levels of one colour that the decoder goes through, those of each scan counted again."""
    parts: tuple[memoryview, ...]
    """The file without what stands beside its pixels: text, colour profiles, EXIF, previews, a second picture."""
    mode: str
    """Pillow's name of what is stored: L, LA, P, RGB or RGBA in a PNG, L, YCbCr, RGB or CMYK in a JPEG."""
    bits: int
    """Of a sample."""

    @property
    def cheap(self) -> bool:
        """Whether it is cheap to decode, whatever its pixels turn out to be."""
        return (
            self.width * self.height <= CHEAP_PIXELS
            and sum(map(len, self.parts)) <= CHEAP_BYTES
            and self.samples <= CHEAP_SAMPLES
        )
