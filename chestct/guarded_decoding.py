"""Decodes a file without trust in it: a cheap picture here, anything else in the guarded process.

The service and the archive both decode by this module, so a file has the same pixels or the same error in both.
"""

import time
from collections.abc import Callable
from typing import Final

from chestct.card import InputSpec
from chestct.dicom_format import is_dicom
from chestct.image import SIGNATURES, Picture, decode_encoded, inspect
from chestct.invalid_image import InvalidImage, undecodable
from chestct.reader_process import MAX_SECONDS, Cause, ProcessEnded, ReaderProcess
from chestct.unsupported_formats import describe_unsupported

MIN_SECONDS: Final = 2
"""Seconds that a file gets even if its request has less left. A restart of the process costs nearly as much."""
_FAULTS_OF_THE_FILE: Final = {
    Cause.CRASHED: ("undecodable_image", "the file is corrupt: its decoder failed"),
    Cause.OUT_OF_TIME: ("undecodable_image", "the file takes more time to decode than is allowed"),
    Cause.OUT_OF_MEMORY: ("image_too_large", "the file takes more memory to decode than is allowed"),
}


class GuardedProcessFailed(RuntimeError):
    """The guarded process ended twice, and not because of this file. Another try may succeed."""


def check_kind(data: bytes) -> None:
    """Raise InvalidImage unless the bytes begin like a PNG, a JPEG or a DICOM file."""
    if not data:
        raise InvalidImage("empty_image", "expected a PNG or JPEG image or a DICOM file, got no bytes")
    if not data.startswith(SIGNATURES) and not is_dicom(data):
        raise undecodable(f"expected a PNG or JPEG image or a DICOM file, got {describe_unsupported(data)}")


def decode_if_cheap(data: bytes, spec: InputSpec) -> Picture | None:
    """The standard picture of a cheap PNG or JPEG; None if only the guarded process may decode the file.

    Raises InvalidImage like chestct.image.decode.
    """
    if is_dicom(data):
        return None
    encoded = inspect(data)
    return decode_encoded(encoded, spec) if encoded.cheap else None


def decode_guarded(
    process: ReaderProcess, data: bytes, spec: InputSpec, deadline: float, on_end: Callable[[Cause], None]
) -> Picture:
    """Decode a DICOM file, a PNG or a JPEG in the guarded process, within a deadline on time.monotonic's clock.

    If the process ends, `on_end` gets the cause, and a new process tries the file once more. Raises InvalidImage like
    chestct.dicom.read and chestct.image.decode, and also if the file ends both processes or uses up its time. Raises
    GuardedProcessFailed if the process ended for another reason.
    """
    for attempt in (1, 2):
        remaining = deadline - time.monotonic()
        try:
            return process.decode(data, spec, min(MAX_SECONDS, max(MIN_SECONDS, remaining)))
        except ProcessEnded as ended:
            on_end(ended.cause)
            if ended.cause is Cause.OUT_OF_TIME or (attempt == 2 and ended.cause in _FAULTS_OF_THE_FILE):
                raise InvalidImage(*_FAULTS_OF_THE_FILE[ended.cause]) from None
            if remaining < 0:
                break
    raise GuardedProcessFailed("the process that decodes such files ended, and not by this file")
