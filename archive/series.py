"""Groups the rows of DICOM files by their series. A series' row is a summary, and no diagnosis."""

from typing import Final

from chestct.card import DISCLAIMER
from chestct.dicom_format import is_dicom, read_elements
from chestct.invalid_image import InvalidImage
from chestct.tables import COUNT, NUMBER, TEXT, Row

NOTE: Final = f"A summary of single slices, and no diagnosis. {DISCLAIMER}"
COLUMNS: Final = {
    "series": TEXT,
    "files": COUNT,
    "errors": COUNT,
    "accept": COUNT,
    "refer": COUNT,
    "reject": COUNT,
    "highest_any_cancer": NUMBER,
    "highest_file": TEXT,
    "note": TEXT,
}
_COUNTS: Final = ("files", "errors", "accept", "refer", "reject")
_SERIES_INSTANCE_UID: Final = 0x0020_000E
_LONGEST_UID: Final = 64


def uid(data: bytes) -> str | None:
    """The SeriesInstanceUID of a DICOM file; None if it has none, and for other files."""
    if not is_dicom(data):
        return None
    try:
        value = read_elements(data, {_SERIES_INSTANCE_UID}, ()).values.get(_SERIES_INSTANCE_UID, b"")
    except InvalidImage:
        return None
    text = value[: _LONGEST_UID + 1].strip(b" \0").decode("ascii", "replace")
    return text if text and len(text) <= _LONGEST_UID and set(text) <= set("0123456789.") else None


class Summary:
    """Counts the rows of each series. Its memory grows with the series, not with the files."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}

    def add(self, row: Row) -> None:
        """Count a row of the table. Without a series it counts nowhere.

        A row without a label counts in its decision, but its probabilities mean nothing.
        """
        if row["series"] is None:
            return
        start: Row = {"series": row["series"], "note": NOTE, **dict.fromkeys(_COUNTS, 0)}
        found = self._rows.setdefault(row["series"], start)
        found["files"] += 1
        found[row["decision"] or "errors"] += 1
        if row["label"] is not None and row["any_cancer"] > found.get("highest_any_cancer", -1):
            found["highest_any_cancer"], found["highest_file"] = row["any_cancer"], row["file"]

    def rows(self) -> list[Row]:
        """A row for each series, by its UID."""
        return [self._rows[series] for series in sorted(self._rows)]
