"""The one rule for a request's id, whatever the protocol."""

import uuid
from typing import Final

_LONGEST: Final = 128


def choose(*wanted: object) -> str:
    """The first that is short printable ASCII, so that it can travel as a header and in a log; else a new one."""
    for text in wanted:
        if isinstance(text, str) and 0 < len(text) <= _LONGEST and text.isascii() and text.isprintable():
            return text
    return uuid.uuid4().hex
