"""The window of a request for its DICOM files, the same over every protocol."""

import contextlib
from collections.abc import Mapping
from typing import Final, NamedTuple


class Window(NamedTuple):
    """Hounsfield units that become grey: `width` of them around `center`. Below them is black, above them white."""

    center: float
    width: float


LUNG: Final = Window(-600, 1500)
WINDOW_PARAMETERS: Final = ("window_center", "window_width")
"""Parameters of a request, over every protocol."""
CENTERS: Final = (-32_768, 32_767)
WIDTHS: Final = (1, 65_536)
"""Least and most value of each parameter in Hounsfield units."""


def choose_window(parameters: Mapping[str, object]) -> Window:
    """The window in a request's WINDOW_PARAMETERS, which are numbers or text; LUNG if both are missing.

    Raises ValueError with a message for the client.
    """
    given = [parameters.get(name) for name in WINDOW_PARAMETERS]
    if given == [None, None]:
        return LUNG
    if None in given:
        raise ValueError(f"expected both {' and '.join(WINDOW_PARAMETERS)}, or neither, got one of them")
    return Window(*map(_in_bounds, WINDOW_PARAMETERS, given, (CENTERS, WIDTHS)))


def _in_bounds(name: str, value: object, bounds: tuple[int, int]) -> float:
    low, high = bounds
    with contextlib.suppress(ValueError, OverflowError):  # OverflowError: an integer that no float can hold
        if (
            isinstance(value, str | int | float)
            and not isinstance(value, bool)
            and low <= (number := float(value)) <= high
        ):
            return number
    raise ValueError(f"{name}: expected Hounsfield units from {low} to {high}, got {_quote(value)}")


def _quote(value: object) -> str:
    if not isinstance(value, str | int | float):
        return type(value).__name__
    try:
        return repr(str(value)[:32])
    except ValueError:  # Python converts no integer of more than 4,300 digits
        return "a whole number of thousands of digits"
