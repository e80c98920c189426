"""The error of images that can't be read, and the limits of their size."""

from typing import Final

MAX_SIDE: Final = 8192
MAX_PIXELS: Final = 4096 * 4096
"""Most pixels of a picture before resizing. A CT slice has 512 x 512, seldom 2048 x 2048.

A picture is decoded whole, with up to four bytes a pixel, so this also limits the memory of a request."""


class InvalidImage(ValueError):
    """The bytes are no supported picture. The message says what was expected and what came.

    `code` is `empty_image`, `undecodable_image`, `image_too_large` or, from chestct.dicom, `unsupported_dicom`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def undecodable(message: str) -> InvalidImage:
    """The error of a truncated, corrupt or unsupported image."""
    return InvalidImage("undecodable_image", message)


def check_size(width: int, height: int, got: str = "") -> None:
    """Raise InvalidImage for more than MAX_SIDE or MAX_PIXELS. `got` describes the image, by default by its size."""
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        got = got or f"{width} x {height} = {width * height}"
        raise InvalidImage("image_too_large", f"expected at most {MAX_PIXELS} pixels and {MAX_SIDE} a side, got {got}")
