"""The facts about a PNG or JPEG that are known before a pixel is decoded."""

from typing import Final, Literal, NamedTuple

CHEAP_PIXELS: Final = 2048 * 2048
CHEAP_BYTES: Final = 1024 * 1024
CHEAP_SAMPLES: Final = 4 * CHEAP_PIXELS
"""Limits of a cheap picture, which is decoded outside the guarded process: in 0.2 s and CHEAP_MEMORY at most.

In files made to be slow, a byte takes up to 0.15 µs (empty Deflate tables), and a JPEG's sample 4 ns a scan."""
CHEAP_MEMORY: Final = 48 * 1024 * 1024
"""Most bytes to decode a cheap picture, beside the file."""
MAX_MEMORY: Final = 160 * 1024 * 1024
"""Most bytes to decode any picture, beside the file."""


class EncodedImage(NamedTuple):
    """A PNG or JPEG with an intact container. Its pixels may still be corrupt."""

    kind: Literal["PNG", "JPEG"]
    width: int
    height: int
    """Width and height as stored, before the orientation is applied."""
    orientation: int
    """EXIF orientation, 1 to 8; 1 is upright."""
    samples: int
    """Levels of single colours that the decoder processes, in all scans together."""
    parts: tuple[memoryview, ...]
    """The file without text, colour profiles, EXIF, previews and a second picture."""
    mode: str
    """Pillow's mode of the stored pixels: L, LA, P, RGB or RGBA of a PNG, L, YCbCr, RGB or CMYK of a JPEG."""
    bits: int
    """Bits of a sample."""

    @property
    def cheap(self) -> bool:
        """Whether it is cheap to decode, whatever its pixels are."""
        return (
            self.width * self.height <= CHEAP_PIXELS
            and sum(map(len, self.parts)) <= CHEAP_BYTES
            and self.samples <= CHEAP_SAMPLES
        )
