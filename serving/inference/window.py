"""The window that a request chooses for its DICOM files, over every protocol."""

import math
from collections.abc import Mapping
from typing import Final, NamedTuple


class Window(NamedTuple):
    """The Hounsfield units that become grey: `width` of them around `center`; below is black, above white."""

    center: float
    width: float


LUNG: Final = Window(-600, 1500)
WINDOW_PARAMETERS: Final = ("window_center", "window_width")
"""Over every protocol; they choose another window for the DICOM files of a request."""
CENTERS: Final = (-32_768, 32_767)
WIDTHS: Final = (1, 65_536)
"""The least and the most of each."""


def choose_window(parameters: Mapping[str, object]) -> Window:
    """The window that a request asks for in WINDOW_PARAMETERS, as numbers or as text, else LUNG.

    Raises ValueError in words.
    """
    given = [parameters.get(name) for name in WINDOW_PARAMETERS]
    if given == [None, None]:
        return LUNG
    if None in given:
        raise ValueError(f"expected both {' and '.join(WINDOW_PARAMETERS)}, or neither, got one of them")
    return Window(*map(_in_bounds, WINDOW_PARAMETERS, given, (CENTERS, WIDTHS)))


def _in_bounds(name: str, value: object, bounds: tuple[int, int]) -> float:
    low, high = bounds
    number = _to_number(value)
    if low <= number <= high:
        return number
    raise ValueError(f"{name}: expected Hounsfield units from {low} to {high}, got {_in_words(value)}")


def _to_number(value: object) -> float:
    """NaN for what is no number, and for a whole number that no float can hold."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _in_words(value: object) -> str:
    if not isinstance(value, str | int | float):
        return type(value).__name__
    try:
        return repr(str(value)[:32])
    except ValueError:  # Python writes out no whole number of more than 4,300 digits
        return "a whole number of thousands of digits"
